"""Annealed importance sampling with HMC: better particles, bounds from both sides.

Everything here is of one example; `iwae.evaluate`, `iwae.diagnostics` and `iwae.posterior` map
it over a split. BlackJAX is touched in `kernels` only.
"""

from iwae.annealing.chains import annealed_particles, bidirectional_bounds, reverse_log_weights
from iwae.annealing.kernels import KHAT_LEAST, pareto_k
from iwae.annealing.pilot import tune_step_size
from iwae.annealing.rate import rate_distortion_bounds
from iwae.annealing.schedules import linear_schedule, sigmoid_schedule

__all__ = [
    "KHAT_LEAST",
    "annealed_particles",
    "bidirectional_bounds",
    "linear_schedule",
    "pareto_k",
    "rate_distortion_bounds",
    "reverse_log_weights",
    "sigmoid_schedule",
    "tune_step_size",
]
