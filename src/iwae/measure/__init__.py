"""Measuring the models of a run: records, with the per-example values beside them.

A record says what was measured, on which examples, by which model, how, and how sure the number
is; tables are made from records alone.
"""

from iwae.measure.annealed import SCHEDULES, Annealing, anneal_run
from iwae.measure.classes import classify_run
from iwae.measure.compare import compare
from iwae.measure.curves import rate_distortion_run
from iwae.measure.importance import evaluate_run
from iwae.measure.information import information_run
from iwae.measure.records import summary
from iwae.measure.signal import gradients_run
from iwae.measure.simulated import bdmc_run

__all__ = [
    "SCHEDULES",
    "Annealing",
    "anneal_run",
    "bdmc_run",
    "classify_run",
    "compare",
    "evaluate_run",
    "gradients_run",
    "information_run",
    "rate_distortion_run",
    "summary",
]
