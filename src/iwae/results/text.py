"""Numbers in words, and the one formatter of a mean and its error."""

from iwae.errors import counted
from iwae.results import schema
from iwae.results.schema import Number

UNRELIABLE = 0.1
"""Share of examples with too large a k-hat above which an error is a lower bound."""

MIXED_WORDS = "reverse among forward chains"
"""The chains of `mixed_upper`; the other upper side is from reverse chains alone."""

NAMES_OF_RANKS = {"q": "q(z|x)", "snis": "weighted draws"}
"""Distributions in which true latents are ranked -> their names."""


def plus_minus(
    mean: Number,
    error: Number = None,
    digits: int = 3,
    *,
    sign: str = "",
    spread: Number = None,
    of: str = "",
) -> str:
    """A mean, its standard error and the standard deviation between seeds, where they exist.

    Args:
        sign: "+" to show the sign of a difference.
        spread: standard deviation between seeds.
        of: words between "sd" and `spread`.
    """
    if mean is None:
        return "not finite"
    words = f"{mean:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
    return words if spread is None else f"{words} (sd{of} {spread:.{digits}f})"


def with_error(row: schema.Fields, name: str = "log_likelihood") -> str:
    """A mean of a row and its standard error, for a terminal."""
    return ascii_only(plus_minus(*row.mean(name)))


def error_words(row: schema.Fields, digits: int = 3) -> list[str]:
    """The known errors of a log-likelihood, nats, besides the one after its `±`."""
    if not isinstance(row, schema.Weights):
        return []
    words = monte_carlo_words(row, digits)
    if row.whole is not None and row.whole.subset_error is not None:
        words.append(f"subset error {_small(row.whole.subset_error, digits)}")
    if row.binarizations is not None and row.binarizations.one_draw_error is not None:
        words.append(f"pixel draw error {_small(row.binarizations.one_draw_error, digits)}")
    return words


def monte_carlo_words(row: schema.Weights, digits: int = 3) -> list[str]:
    """The error from particles or chains, as a list of one text, or none for a single weight.

    Where k-hat is too large for a tenth of the examples, weights that were not drawn may matter, so
    the error is a lower bound. Fewer than 25 weights do not give a k-hat.
    """
    share = row.pareto_k_unreliable
    if row.monte_carlo_error is not None:
        words = f"{' at least' * is_heavy(row)} {_small(row.monte_carlo_error, digits)}"
        return [f"Monte Carlo error{words}{', k-hat unknown' * (share is None)}"]
    if (count := row.monte_carlo_infinite) is not None:
        return [f"Monte Carlo error not finite ({counted(count, 'example')})"]
    several = (row.monte_carlo_batches or getattr(row, "k", None) or 1) > 1
    return ["Monte Carlo error unknown"] * several


def is_heavy(row: schema.Weights) -> bool:
    """Whether k-hat is known to be too large for a tenth of the examples."""
    return row.pareto_k_unreliable is not None and row.pareto_k_unreliable >= UNRELIABLE


def _small(error: float, digits: int) -> str:
    """An error, with one significant digit where so few decimals would show none."""
    words = f"{error:.{digits}f}"
    return words if error == 0 or float(words) else f"{error:.0e}"


def ascii_only(words: str) -> str:
    """A text without "±", which some terminals lack."""
    return words.replace("±", "+-")


def path_words(settings: schema.Settings) -> str:
    """The settings of annealing but for the number of temperatures."""
    schedule = settings.schedule if isinstance(settings.schedule, str) else "given"
    return (
        f"from the {settings.start}, {counted(settings.chains, 'chain')}, "
        f"{counted(settings.leapfrog or 0, 'leapfrog step')}, {schedule} schedule"
    )


def estimator_name(row: schema.Gradient | schema.Slope) -> str:
    """A gradient estimator, and the number of particles that carry it if not all do."""
    return row.gradient if row.backward is None else f"{row.gradient}, backward {row.backward}"
