"""Objectives: what is climbed. Reductions of log weights, and combinators that make methods.

`reductions` has the bounds as functions of log weights, `climbing` the gradient estimators,
`bounds` the objectives of importance samples, `halves` two of them in one, `penalties` KL warm-up
and free bits, and the other files one method each. Names become objectives in `iwae.methods`.
"""

from iwae.objectives.annealed import aiwae
from iwae.objectives.bounds import analytic_elbo, bound, grouped, learned_ciwae
from iwae.objectives.climbing import REPARAM, Coefficients, Estimator
from iwae.objectives.differentiable import dais
from iwae.objectives.halves import halves, split
from iwae.objectives.objective import Extra, Objective, as_objective, frozen
from iwae.objectives.penalties import Penalty
from iwae.objectives.reductions import (
    Reduction,
    ciwae,
    elbo,
    iwae,
    miwae,
    renyi,
    tvo,
    tvo_schedule,
    vr_max,
)
from iwae.objectives.sleeping import WAKE, rws, wake

__all__ = [
    "REPARAM",
    "WAKE",
    "Coefficients",
    "Estimator",
    "Extra",
    "Objective",
    "Penalty",
    "Reduction",
    "aiwae",
    "analytic_elbo",
    "as_objective",
    "bound",
    "ciwae",
    "dais",
    "elbo",
    "frozen",
    "grouped",
    "halves",
    "iwae",
    "learned_ciwae",
    "miwae",
    "renyi",
    "rws",
    "split",
    "tvo",
    "tvo_schedule",
    "vr_max",
    "wake",
]
