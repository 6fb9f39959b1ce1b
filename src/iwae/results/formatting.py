"""Numbers and settings in words, and the one formatter of a mean and its error."""

from pathlib import Path

from iwae.results import schema
from iwae.results.schema import Number
from iwae.wording import count_in_words

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


def format_mean(row: schema.Fields, name: str = "log_likelihood") -> str:
    """A mean of a row and its standard error, for a terminal."""
    return format_ascii(plus_minus(*row.mean(name)))


def format_errors(row: schema.Fields, digits: int = 3) -> list[str]:
    """The known errors of a log-likelihood, nats, besides the one after its `±`."""
    if not isinstance(row, schema.Weights):
        return []
    words = format_monte_carlo_error(row, digits)
    if row.whole is not None and row.whole.subset_error is not None:
        words.append(f"subset error {_small(row.whole.subset_error, digits)}")
    if row.binarizations is not None and row.binarizations.one_draw_error is not None:
        words.append(f"pixel draw error {_small(row.binarizations.one_draw_error, digits)}")
    return words


def format_monte_carlo_error(row: schema.Weights, digits: int = 3) -> list[str]:
    """The error from particles or chains, as a list of one text, or none for a single weight.

    Where k-hat is too large for a tenth of the examples, weights that were not drawn may matter, so
    the error is a lower bound. Fewer than 25 weights do not give a k-hat.
    """
    share = row.pareto_k_unreliable
    if row.monte_carlo_error is not None:
        words = f"{' at least' * has_heavy_weights(row)} {_small(row.monte_carlo_error, digits)}"
        return [f"Monte Carlo error{words}{', k-hat unknown' * (share is None)}"]
    if (count := row.monte_carlo_infinite) is not None:
        return [f"Monte Carlo error not finite ({count_in_words(count, 'example')})"]
    several = (row.monte_carlo_batches or getattr(row, "k", None) or 1) > 1
    return ["Monte Carlo error unknown"] * several


def has_heavy_weights(row: schema.Weights) -> bool:
    """Whether k-hat is known to be too large for a tenth of the examples."""
    return row.pareto_k_unreliable is not None and row.pareto_k_unreliable >= UNRELIABLE


def _small(error: float, digits: int) -> str:
    """An error, with one significant digit where so few decimals would show none."""
    words = f"{error:.{digits}f}"
    return words if error == 0 or float(words) else f"{error:.0e}"


def format_ascii(words: str) -> str:
    """A text without "±", which some terminals lack."""
    return words.replace("±", "+-")


def format_annealing(settings: schema.Settings) -> str:
    """The settings of annealing but for the number of temperatures."""
    schedule = settings.schedule if isinstance(settings.schedule, str) else "given"
    return (
        f"from the {settings.start}, {count_in_words(settings.chains, 'chain')}, "
        f"{count_in_words(settings.leapfrog or 0, 'leapfrog step')}, {schedule} schedule"
    )


def format_estimator(row: schema.Gradient | schema.Slope) -> str:
    """A gradient estimator, and the number of particles that carry it if not all do."""
    return row.gradient if row.backward is None else f"{row.gradient}, backward {row.backward}"


def format_minus(text: str) -> str:
    """Replace hyphens by minus signs, as on axes."""
    return text.replace("-", "\N{MINUS SIGN}")


def format_short_path(value: object) -> str:
    """The last part of an absolute path, so that the page does not expose private folders."""
    return Path(str(value)).name if Path(str(value)).is_absolute() else str(value)
