"""Whether annealing has converged: a verdict from two numbers of temperatures."""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.evaluation.differences import STANDARD_ERRORS, Difference, paired_difference
from iwae.evaluation.standard_errors import standard_error
from iwae.evaluation.tails import tail_doubt


class Convergence(StrEnum):
    """Whether a likelihood is determined to within a tolerance, as records say it."""

    CONVERGED = "converged"
    NOT_CONVERGED = "not converged"
    UNDECIDED = "undecided"


class Verdict(NamedTuple):
    """Whether an annealed likelihood can be quoted.

    Attributes:
        status: undecided if the examples are too few to resolve the tolerance, or the tail behind a
            gap is heavy or unknown.
        difference: AIS at T minus AIS at T/10, on the same examples.
        gap: mean gap of bidirectional Monte Carlo, nats; None if it was not run.
        tolerance: maximum acceptable error, nats.
        reason: the explanation.
        sandwich_gap: mean gap of the bounds from both sides on real examples; None if they were not
            computed.
    """

    status: Convergence
    difference: Difference
    gap: float | None
    tolerance: float
    reason: str
    sandwich_gap: float | None = None

    @property
    def converged(self) -> bool:
        """Whether the verdict is "converged"."""
        return self.status is Convergence.CONVERGED


def convergence_verdict(
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
        sandwich_tail: k-hat of its ratios w/c, as from `evaluation.tails.ratio_tail`; a small
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
        status, reason = Convergence.NOT_CONVERGED, f"{apart}: more than chance explains"
    elif wide:
        wide_gaps = " and ".join(f"the {name} gap is {means[name]:.3f} nats" for name in wide)
        status, reason = Convergence.NOT_CONVERGED, f"{wide_gaps}, not reliably below {tolerance:g}"
    elif not STANDARD_ERRORS * difference.stderr <= tolerance:
        status = Convergence.UNDECIDED
        reason = f"{apart}, too uncertain to tell {tolerance:g} from chance"
    elif doubt is not None:
        status = Convergence.UNDECIDED
        reason = f"{apart}, and the sandwich gap is {means['sandwich']:.3f} nats, but {doubt}"
    else:
        status, reason = Convergence.CONVERGED, apart
    simulated, real = means.get("bidirectional"), means.get("sandwich")
    return Verdict(status, difference, simulated, tolerance, reason, real)


def _is_reliably_below(values: Float[np.ndarray, " m"], tolerance: float) -> bool:
    upper = np.mean(values) + STANDARD_ERRORS * standard_error(values)
    return bool(upper <= tolerance)
