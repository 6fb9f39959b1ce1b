"""The trained models of a run: their folders and digests, whether they are final, reading them."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from iwae.config.experiment import TrainConfig
from iwae.config.toml import read_config
from iwae.data import Dataset
from iwae.errors import UserError
from iwae.models.conditional import Model
from iwae.runs.folder import folder_config
from iwae.runs.model_files import (
    DESCRIPTION,
    WEIGHTS,
    load_model,
    model_files_match,
    read_model_facts,
)

log = logging.getLogger("iwae")


def trained_model_folder(run: Path, weights: str, replicate: int) -> Path:
    """The folder of one replicate's model in a run; `weights` is "final" or "best"."""
    return Path(run) / "models" / f"{weights}-{replicate}"


def is_trained_run(run: Path) -> bool:
    """Whether a run exists and is trained to its end."""
    path = run / "config.toml"
    return path.is_file() and _has_trained_models(run, read_config(path))


def _has_trained_models(run: Path, config: TrainConfig) -> bool:
    """Whether all final models of a run exist and are fully trained."""
    folders = [
        trained_model_folder(run, "final", replicate) for replicate in range(config.replicates)
    ]
    return all(
        (folder / WEIGHTS).is_file()
        and (folder / DESCRIPTION).is_file()
        and is_fully_trained(read_model_facts(folder), config.epochs)
        and model_files_match(folder)  # otherwise a write was interrupted: keep training
        for folder in folders
    )


def warn_untrained(run: Path) -> None:
    """Warn if the training of a run has not ended, so that its weights are not the final ones."""
    config = folder_config(run)
    if not _has_trained_models(run, config):
        log.warning(
            "%s is not trained to its end, and its weights are those of the last checkpoint; "
            "resume it with: iwae train --resume %s",
            run,
            run,
        )


def is_fully_trained(about: dict[str, Any], epochs: int) -> bool:
    """Whether training of a model had ended, by patience or after all epochs."""
    # The last epoch's models are first written unfinished. Older versions noted the epoch alone.
    return about.get("finished", about.get("epoch", 0) >= epochs)


def trained_model_for(run: Path, weights: str, replicate: int, dataset: Dataset) -> Model:
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
    folder = trained_model_folder(run, weights, replicate)
    if not folder.parent.exists():
        folder_config(run)  # or the message that this is no run
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


def trained_model_sha256(run: Path, weights: str, replicate: int) -> str:
    """SHA-256 of the file with a model's weights."""
    path = trained_model_folder(run, weights, replicate) / WEIGHTS
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trained_model_digests(run: Path, weights: str, replicates: int) -> list[str] | None:
    """Digests of the present models; None if some are missing."""
    try:
        return [trained_model_sha256(run, weights, replicate) for replicate in range(replicates)]
    except FileNotFoundError:
        return None
