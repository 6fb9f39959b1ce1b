"""Reliability of a likelihood: bounds from both sides, tails of weights, agreement.

A mean log-likelihood has separate errors: `monte_carlo_error` (chains and particles),
`test_sample_error` (the choice of test examples), the error of one draw of their pixels, and the
deviation of the means between seeds.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.errors import UserError
from iwae.evaluation.examples import (
    ROWS,
    check_positive,
    gather,
    map_chains,
    map_examples,
    placeholders,
)
from iwae.evaluation.likelihood import checked_schedule, streamed_bound
from iwae.inference.chains import bidirectional_bounds
from iwae.inference.temperatures import Betas, StepSize
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey, Scalar

STANDARD_ERRORS = 3.0
"""Two numbers agree if they are no further apart than this many standard errors."""

ROUNDING = 1e-6
"""Relative rounding error of a float32 log-likelihood over thousands of terms."""

# --- weights --------------------------------------------------------------------------------


def pareto_threshold(k: int) -> float:
    """k-hat above which k weights are unreliable: min(1 - 1/log10 k, 0.7) (Vehtari et al. 2024)."""
    return min(1 - 1 / float(np.log10(k)), 0.7) if k > 1 else float("nan")


def tail_doubt(tail: float, n: int) -> str | None:
    """The reason to doubt a mean over n ratios w/c, given their k-hat; None if there is none."""
    if np.isnan(tail):
        return "too few examples to know the tail of w/c"
    if tail > pareto_threshold(n):
        return f"the tail of w/c is heavy (k-hat {tail:.2f}): the upper side may be too low"
    return None


def share_unreliable(khat: Float[np.ndarray, " n"], k: int) -> float:
    """The share of examples whose k-hat is above the threshold; nan if none is known."""
    known = khat[~np.isnan(khat)]
    return float(np.mean(known > pareto_threshold(k))) if known.size else float("nan")


def monte_carlo_error(errors: Float[np.ndarray, " n"]) -> float:
    """Standard error of the mean of n log-likelihoods due to their particles, nats.

    Args:
        errors: the Monte Carlo error of each example, nats, as from `evaluation.jackknife`;
            examples have independent particles.
    """
    return float(np.sqrt((errors**2).sum()) / len(errors))


def test_sample_error(values: Float[np.ndarray, " n"]) -> float:
    """Standard error of the mean due to the choice of examples: sd / sqrt(n), nats."""
    n = len(values)
    return float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


test_sample_error.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect


# --- agreement ------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Mean of a - b over the same examples, and its standard error, nats.

    The error is that of the per-example differences, in which common variation cancels.
    `rounding` bounds the rounding error of float32 in the difference.
    """

    mean: float
    stderr: float
    rounding: float = 0.0

    @property
    def significant(self) -> bool:
        """Whether it is further from zero than chance and rounding explain."""
        return abs(self.mean) > STANDARD_ERRORS * self.stderr + self.rounding


def paired_difference(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> Difference:
    """The mean of a - b and its standard error; UserError unless n = m."""
    if a.shape != b.shape:
        raise UserError(f"{len(a)} and {len(b)} examples: a paired comparison needs the same ones")
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    rounding = ROUNDING * float(np.abs(a).mean()) if np.isfinite(a).all() else 0.0
    return Difference(float(d.mean()), test_sample_error(d), rounding)


def ordering_violations(bounds: Mapping[str, Float[np.ndarray, " n"]]) -> list[str]:
    """Describe violations of L_1 <= L_50 <= L_5000 <= AIS; empty if there are none.

    More samples cannot loosen the bound. If an L_k lies below one of fewer samples by more than
    three standard errors of their paired difference, something is broken. If annealing lies below
    L_k, it may also be too short.

    Args:
        bounds: name -> per-example values, loosest first; all of the same examples.
    """
    violations = []
    for (low, a), (high, b) in combinations(bounds.items(), 2):
        difference = paired_difference(b, a)
        if difference.mean < 0 and difference.significant:
            reason = (
                "the annealing is too short (give more temperatures), or something is broken"
                if high.startswith("AIS")
                else "something is broken"
            )
            violations.append(
                f"{high} is {-difference.mean:.3f} +- {difference.stderr:.3f} nats below {low}, "
                f"but should be above it: {reason}; trust neither until this is explained"
            )
    return violations


class Verdict(NamedTuple):
    """Whether an annealed likelihood can be quoted.

    Attributes:
        word: "converged", "not converged", or "undecided" if the examples are too few to resolve
            the tolerance, or the tail behind a gap is heavy or unknown.
        difference: AIS at T minus AIS at T/10, on the same examples.
        gap: mean gap of bidirectional Monte Carlo, nats; None if it was not run.
        tolerance: maximum acceptable error, nats.
        reason: the explanation.
        sandwich_gap: mean gap of the bounds from both sides on real examples; None if they were not
            computed.
    """

    word: str
    difference: Difference
    gap: float | None
    tolerance: float
    reason: str
    sandwich_gap: float | None = None

    @property
    def converged(self) -> bool:
        """Whether the verdict is "converged"."""
        return self.word == "converged"


def verdict(
    ais: Float[np.ndarray, " n"],
    ais_tenth: Float[np.ndarray, " n"],
    bdmc_gap: Float[np.ndarray, " m"] | None,
    tolerance: float,
    sandwich_gap: Float[np.ndarray, " l"] | None = None,
    sandwich_tail: float = float("nan"),
) -> Verdict:
    """Judge convergence: T and T/10 must agree, and any gap between two sides must be small.

    A gap is small if its mean plus three standard errors is within the tolerance.

    Args:
        ais, ais_tenth: log-likelihoods at T and at T/10 temperatures, of the same examples.
        bdmc_gap: upper minus lower bound on examples drawn from the model; None if it was not run.
        tolerance: nats.
        sandwich_gap: upper minus lower bound on real examples; None if it was not computed.
        sandwich_tail: k-hat of its ratios w/c, as from `evaluation.sandwich.ratio_tail`; a small
            gap counts only if this is known and small.
    """
    difference = paired_difference(ais, ais_tenth)
    gaps = {"bidirectional": bdmc_gap, "sandwich": sandwich_gap}
    known = {name: values for name, values in gaps.items() if values is not None}
    means = {name: float(np.mean(values)) for name, values in known.items()}
    wide = [name for name, values in known.items() if not _is_reliably_below(values, tolerance)]
    doubt = None if sandwich_gap is None else tail_doubt(sandwich_tail, len(sandwich_gap))
    apart = f"T and T/10 differ by {difference.mean:.3f} +- {difference.stderr:.3f} nats"
    if difference.significant:
        word, reason = "not converged", f"{apart}: more than chance explains"
    elif wide:
        wide_gaps = " and ".join(f"the {name} gap is {means[name]:.3f} nats" for name in wide)
        word, reason = "not converged", f"{wide_gaps}, not reliably below {tolerance:g}"
    elif not STANDARD_ERRORS * difference.stderr <= tolerance:
        word = "undecided"
        reason = f"{apart}, too uncertain to tell {tolerance:g} from chance"
    elif doubt is not None:
        word = "undecided"
        reason = f"{apart}, and the sandwich gap is {means['sandwich']:.3f} nats, but {doubt}"
    else:
        word, reason = "converged", apart
    simulated, real = means.get("bidirectional"), means.get("sandwich")
    return Verdict(word, difference, simulated, tolerance, reason, real)


def _is_reliably_below(values: Float[np.ndarray, " m"], tolerance: float) -> bool:
    upper = np.mean(values) + STANDARD_ERRORS * test_sample_error(values)
    return bool(upper <= tolerance)


# --- both sides -----------------------------------------------------------------------------


class Bidirectional(NamedTuple):
    """Bounds from both sides on log p(x) of examples drawn from the model.

    Each holds in expectation; a single upper bound can lie below its lower bound by chance.

    Attributes:
        lower, upper: `[n]` float64, nats. With annealing, `upper` is from reverse chains.
        mixed_upper: `[n]` float64, nats, from reverse and forward chains, as from
            `inference.chains.mixed_upper`. With importance samples, `upper` is the same.
        acceptance: `[n]` mean probability of acceptance; nan for importance sampling.
    """

    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    mixed_upper: Float[np.ndarray, " n"]
    acceptance: Float[np.ndarray, " n"]

    @property
    def gap(self) -> Float[np.ndarray, " n"]:
        """Upper minus lower bound, nats: on average, neither is in error by more."""
        return self.upper - self.lower

    @property
    def mixed_gap(self) -> Float[np.ndarray, " n"]:
        """Mixed upper minus lower bound, nats: the same holds."""
        return self.mixed_upper - self.lower


def bdmc(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    chains: int = 16,
    betas: Betas,
    step_size: StepSize,
    n_leapfrog: int,
    start: str = "posterior",
    batch_size: int | None = None,
) -> Bidirectional:
    """Bidirectional Monte Carlo (Grosse, Ghahramani & Adams 2015), by annealing in both directions.

    Example i, its latents and all chains depend only on `fold_in(key, i)`.

    Args:
        n_examples: number of pairs (z, x) to draw from the model.
        chains: number of chains per example, in each direction.
        betas, step_size, n_leapfrog, start: as for `annealed_particles`; step sizes from a
            pilot with another key.
        batch_size: examples at a time on each device; changes the speed, not the numbers.

    Raises:
        UserError: if n_examples or chains is not positive, or the temperatures or step sizes are
            not a valid schedule.
    """
    slabs = bdmc_slabs(
        model,
        key,
        n_examples=n_examples,
        chains=chains,
        betas=betas,
        step_size=step_size,
        n_leapfrog=n_leapfrog,
        start=start,
        batch_size=batch_size,
    )
    return Bidirectional(**gather(slabs))


def bdmc_slabs(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    chains: int,
    batch_size: int | None = None,
    first: int = 0,
    **path: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """`bdmc` from example `first` on, slab by slab, to show progress and keep partial results."""
    fn = eqx.Partial(_annealed_bounds, **checked_schedule(chains=chains, **path))
    check_positive("n_examples", n_examples)
    batch, nothing = batch_size or None, placeholders(n_examples)
    return map_chains(fn, model, nothing, key, chains=chains, batch_size=batch, first=first)


def bdmc_importance_slabs(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    k: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Bounds from importance samples: the lower from k - 1, the upper with the true z as k-th.

    If z ~ p(z|x) is one of the k particles and q draws the others, E log mean w is no longer
    below log p(x) but above it (Grosse et al. 2015, sec. 4.1, with one temperature).

    Args:
        k: particles, at least two; memory does not depend on it.

    Yields:
        The fields of `Bidirectional`, from example `first` on, slab by slab.
    """
    if k < 2:
        raise UserError(f"k is {k}; it must be at least 2: the true latent and a proposal")
    check_positive("n_examples", n_examples)
    fn = eqx.Partial(_importance_bounds, k=k, chunk=min(k - 1, ROWS // 4))
    nothing = placeholders(n_examples)
    return map_examples(fn, model, nothing, key, batch_size=batch_size or 4, first=first)


def _annealed_bounds(
    model: AbstractLatentModel,
    nothing: Example,  # noqa: ARG001
    key: PRNGKey,
    **options: Any,
) -> dict[str, Array]:
    return bidirectional_bounds(model, key, **options)


def _importance_bounds(
    model: AbstractLatentModel,
    nothing: Example,  # noqa: ARG001
    key: PRNGKey,
    *,
    k: int,
    chunk: int,
) -> dict[str, Scalar]:
    model_key, q_key = jax.random.split(key)
    z, x = model.sample(model_key)
    model, x = model.condition(x)
    lower = streamed_bound(k - 1, chunk)(model, x, q_key)["log_likelihood"]
    log_w = model.log_joint(x, z) - model.posterior(x).log_prob(z)
    total = jnp.logaddexp(lower + jnp.log(jnp.float32(k - 1)), log_w)
    upper = total - jnp.log(jnp.float32(k))
    nothing_moved = jnp.float32(jnp.nan)
    return {"lower": lower, "upper": upper, "mixed_upper": upper, "acceptance": nothing_moved}
