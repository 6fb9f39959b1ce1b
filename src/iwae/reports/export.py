"""Export a model of a run as a folder to share."""

from pathlib import Path

from iwae.config.experiment import config_without_folders, make_config
from iwae.config.toml import config_toml_values, write_config
from iwae.errors import UserError
from iwae.files import atomic_folder
from iwae.precision import float32
from iwae.reports import figures
from iwae.reports.card import model_card
from iwae.reports.gallery import gallery_layout, gallery_samples_figure
from iwae.runs.folder import folder_config
from iwae.runs.model_files import (
    DESCRIPTION,
    WEIGHTS,
    copy_model_files,
    load_model,
    read_model_facts,
)
from iwae.runs.trained import trained_model_folder

CONFIG, CARD, PICTURE = "config.toml", "README.md", "samples.png"

FILES = (WEIGHTS, DESCRIPTION, CONFIG, CARD, PICTURE)
"""The files in the folder of a shared model."""


@float32
def export_run(
    run: Path,
    folder: Path,
    *,
    weights: str = "final",
    replicate: int = 0,
    license: str | None = None,  # noqa: A002 - the hub's word
    overwrite: bool = False,
) -> Path:
    """Export one model of a run as a folder to share: weights, description, card and picture.

    The card states the records of this very model on the test set. The folder contains no data and
    no local path, and is written whole or not at all.

    Args:
        run: folder of the run.
        folder: the folder to write; new or empty.
        weights: "final" or "best".
        replicate: index of the model in the run, from 0.
        license: licence of the model by its identifier on the Hugging Face hub, such as "mit".
        overwrite: replace an earlier export, but no folder with other files.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such model, or the folder holds other files.
    """
    run, folder = Path(run), Path(folder)
    config = folder_config(run)
    if not 0 <= replicate < config.replicates:
        raise UserError(f"no replicate {replicate}: {run} has 0 to {config.replicates - 1}")
    source = trained_model_folder(run, weights, replicate)
    if not source.is_dir():
        raise UserError(f"{run} has no {weights} weights of replicate {replicate}")
    _refuse_used(folder, overwrite=overwrite)
    model, about = load_model(source), read_model_facts(source)
    trained = about.get("config", config_toml_values(config))  # the run's file may be edited
    shared = config_without_folders(make_config(trained, str(source)))
    about = {**about, "config": config_toml_values(shared), "weights": weights}
    with atomic_folder(folder) as unfinished:
        copy_model_files(source, unfinished, **about)
        write_config(shared, unfinished / CONFIG)
        samples = gallery_samples_figure(model, gallery_layout(model, about))
        figures.save_figure(samples, unfinished / PICTURE)
        card = model_card(run, model, about, weights, replicate, license)
        (unfinished / CARD).write_text(card, encoding="utf-8")
    return folder


def _refuse_used(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError if the folder cannot hold an export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the model")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others = sorted(found - set(FILES))
    if others:
        raise UserError(f"{folder} holds {others[0]}, which is not part of a model: choose another")
    if found and not overwrite:
        raise UserError(f"{folder} holds a model already; --overwrite replaces it")
