"""Training: whole epochs in one compiled program, many independently seeded replicates at once.

`schedules` has the optimisers and learning rates, `steps` the compiled program, `diagnosis` says
what broke, `loop` goes from the first dispatch to the last.
"""

from iwae.training.loop import (
    Best,
    NonFiniteError,
    Plan,
    Report,
    Trained,
    init_best,
    train,
    training,
    update_best,
)
from iwae.training.schedules import (
    AUTHORS_RATES,
    PAPER_EPOCHS,
    PAPER_RATES,
    StagedSchedule,
    adam,
    authors_adam,
    check_steps,
    stage_epochs,
    staged,
)
from iwae.training.steps import Settings, TrainState, init_state, replicate_model, run_steps

__all__ = [
    "AUTHORS_RATES",
    "PAPER_EPOCHS",
    "PAPER_RATES",
    "Best",
    "NonFiniteError",
    "Plan",
    "Report",
    "Settings",
    "StagedSchedule",
    "TrainState",
    "Trained",
    "adam",
    "authors_adam",
    "check_steps",
    "init_best",
    "init_state",
    "replicate_model",
    "run_steps",
    "stage_epochs",
    "staged",
    "train",
    "training",
    "update_best",
]
