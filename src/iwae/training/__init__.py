"""Training: whole epochs in one compiled program, many independently seeded replicates at once.

`schedules` has the optimisers and learning rates, `steps` the compiled program, `diagnosis` says
what broke, `loop` goes from the first dispatch to the last, `stages` from one stage to the next.
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
    Schedule,
    StagedSchedule,
    adam,
    authors_adam,
    check_steps,
    decaying,
    stage_epochs,
    staged,
    warming_up,
)
from iwae.training.soap import soap
from iwae.training.stages import Stage, is_carried, stage_at, train_stages
from iwae.training.steps import (
    Clock,
    Settings,
    TrainState,
    init_state,
    replicate_model,
    run_steps,
    weights,
)

__all__ = [
    "AUTHORS_RATES",
    "PAPER_EPOCHS",
    "PAPER_RATES",
    "Best",
    "Clock",
    "NonFiniteError",
    "Plan",
    "Report",
    "Schedule",
    "Settings",
    "Stage",
    "StagedSchedule",
    "TrainState",
    "Trained",
    "adam",
    "authors_adam",
    "check_steps",
    "decaying",
    "init_best",
    "init_state",
    "is_carried",
    "replicate_model",
    "run_steps",
    "soap",
    "stage_at",
    "stage_epochs",
    "staged",
    "train",
    "train_stages",
    "training",
    "update_best",
    "warming_up",
    "weights",
]
