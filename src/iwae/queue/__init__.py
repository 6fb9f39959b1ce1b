"""Runs to train and to measure, one after another or on many machines, stopped and resumed at will.

OUT/NAME/           the run folder of a task (see `iwae.runs`)
OUT/.queue/         who is at work on which task, and why one failed
"""

from iwae.queue.cluster import Home, pack, unpack, work_on_ray
from iwae.queue.here import Outcome, do_task, work
from iwae.queue.tasks import Measure, State, Task, final_models, is_trained, state_of

__all__ = [
    "Home",
    "Measure",
    "Outcome",
    "State",
    "Task",
    "do_task",
    "final_models",
    "is_trained",
    "pack",
    "state_of",
    "unpack",
    "work",
    "work_on_ray",
]
