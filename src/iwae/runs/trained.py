"""The trained models of a run: their folders, whether they are final, and reading them."""

import logging
from pathlib import Path
from typing import Any

from iwae.config.experiment import TrainConfig
from iwae.data import Dataset
from iwae.errors import UserError
from iwae.models.conditional import Model
from iwae.runs.folder import run_config
from iwae.runs.models import DESCRIPTION, WEIGHTS, is_one_model, load_model, read_about

log = logging.getLogger("iwae")


def model_folder(run: Path, weights: str, replicate: int) -> Path:
    """The folder of one replicate's model in a run; `weights` is "final" or "best"."""
    return Path(run) / "models" / f"{weights}-{replicate}"


def is_finished(run: Path, config: TrainConfig) -> bool:
    """Whether all final models of a run exist and are fully trained."""
    folders = [model_folder(run, "final", replicate) for replicate in range(config.replicates)]
    return all(
        (folder / WEIGHTS).is_file()
        and (folder / DESCRIPTION).is_file()
        and is_final(read_about(folder), config.epochs)
        and is_one_model(folder)  # otherwise a write was interrupted: keep training
        for folder in folders
    )


def warn_unfinished(run: Path) -> None:
    """Warn if the training of a run has not ended, so that its weights are not the final ones."""
    config = run_config(run)
    if not is_finished(run, config):
        log.warning(
            "%s is not trained to its end, and its weights are those of the last checkpoint; "
            "resume it with: iwae train --resume %s",
            run,
            run,
        )


def is_final(about: dict[str, Any], epochs: int) -> bool:
    """Whether training of a model had ended, by patience or after all epochs."""
    # The last epoch's models are first written unfinished. Older versions noted the epoch alone.
    return about.get("finished", about.get("epoch", 0) >= epochs)


def run_model(run: Path, weights: str, replicate: int, dataset: Dataset) -> Model:
    """A trained model of a run, for use on `dataset`.

    Raises:
        UserError: if the run has no such weights, or they do not fit the data.
    """
    model = trained_model(run, weights, replicate)
    found, wanted = dataset.examples("train").shape[1], model.example_size
    if found != wanted:
        raise UserError(
            f"the examples of {dataset.name} have {found} values, but those that {run} was "
            f"trained on have {wanted}"
        )
    return model


def trained_model(run: Path, weights: str, replicate: int) -> Model:
    """A trained model of a run; UserError if it has no such weights."""
    folder = model_folder(run, weights, replicate)
    if not folder.parent.exists():
        run_config(run)  # or the message that this is no run
        raise UserError(
            f"no model in {run}: its training was stopped before the first checkpoint, or is under "
            f"way; resume it with: iwae train --resume {run}"
        )
    if weights == "best" and not folder.exists():
        raise UserError(
            f"{run} has no best weights: nothing was held out for validation, or no validation "
            "has been reached yet; use the final weights"
        )
    return load_model(folder)
