"""The kinds of files that the program reads: how to make an undamaged one, and how to read it."""

import gzip
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

from iwae.cli.evaluate import _temperatures
from iwae.config.presets import preset
from iwae.config.toml import read_config, read_toml
from iwae.data import Dataset, load_dataset, readers
from iwae.data.catalogue import DataFile
from iwae.data.dataset_files import check_dataset_file
from iwae.experiments.sweep import read_sweep
from iwae.files import file_content_sha256
from iwae.models.vae import VAE
from iwae.objectives.building import objective
from iwae.reports import gallery
from iwae.reports.recorded_figures import recorded_calibration_figure
from iwae.results.frame import results
from iwae.results.reading import read_bounds, read_records, warn_unreadable_record
from iwae.results.record_files import read_record_arrays
from iwae.results.unfinished import Unfinished
from iwae.runs.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from iwae.runs.metrics import read_metrics, scalars
from iwae.runs.model_files import load_model, read_model_facts, save_model
from iwae.runs.trackers import _read_notes
from iwae.training.loop import init_best
from iwae.training.optimizers import adam
from iwae.training.steps import Settings, init_state

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(12, 4))
LABELS = np.arange(12) % 2


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        make: writes undamaged files into a folder.
        read: reads the files in a folder, as the program does.
        exact: whether a checksum ensures the same result, or for a set, a subset of it.
        share: how often it is chosen relative to the others; less for slow kinds.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    exact: bool = False
    share: float = 1.0


def digest(*arrays: Any) -> str:
    """A digest of arrays, with their types and shapes."""
    total = hashlib.sha256()
    for array in map(np.asarray, arrays):
        total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return total.hexdigest()


# --- data -----------------------------------------------------------------------------------


def _load(folder: Path, name: str, **options: Any) -> str:
    data = load_dataset(folder / name, **options)
    return digest(data.train[:], data.test[:])  # for streamed data, read from the file


def _save_csv(text: str, folder: Path) -> None:
    (folder / "mine.csv").write_text(text)


def _table(*, labels: bool = False, gaps: bool = False) -> str:
    lines = ["a,b,c,d" + ",kind" * labels]
    for i, row in enumerate(REAL):
        cells = [f"{value:.4f}" for value in row]
        if gaps and i % 3 == 0:
            cells[i % 4] = "NA"
        lines.append(",".join(cells + [f"word{i % 2}"] * labels))
    return "\n".join([*lines, ""])


def _save_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {name: pa.array(REAL[:, i]) for i, name in enumerate("abcd")}
    words = pa.array([f"word{label}" for label in LABELS])
    pyarrow.parquet.write_table(pa.table({**columns, "kind": words}), folder / "mine.parquet")


def _save_images(folder: Path) -> None:
    from PIL import Image

    for i, label in enumerate(("cat", "dog") * 6):
        path = folder / "images" / label / f"{i}.{'png' if i % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i % 6].reshape(2, 2) * np.uint8(255)).save(path)


PIXELS = RNG.integers(0, 2, (6, 4), dtype=np.uint8)


def _save_idx_images(folder: Path) -> None:
    content = struct.pack(">iiii", 0x803, 6, 2, 2) + PIXELS.tobytes()
    (folder / "images.gz").write_bytes(gzip.compress(content))


def _save_idx_labels(folder: Path) -> None:
    (folder / "labels.gz").write_bytes(gzip.compress(struct.pack(">ii", 0x801, 6) + bytes(6)))


def _save_amat(folder: Path) -> None:
    lines = [" ".join(map(str, row)) + "\n" for row in PIXELS]
    (folder / "images.amat").write_text("".join(lines))


def _save_mat(folder: Path) -> None:
    import scipy.io

    one_hot = np.eye(readers.ALPHABETS)[:, :6]
    arrays = {"data": PIXELS.T / 1.0, "testdata": PIXELS.T / 1.0}
    scipy.io.savemat(folder / "images.mat", {**arrays, "target": one_hot, "testtarget": one_hot})


FIRST_DIGESTS: dict[Path, str] = {}
"""The SHA-256 of files when first read, undamaged."""


def _load_published(folder: Path, reader: Callable[..., Any], shapes: Mapping[str, Any]) -> str:
    (path,) = folder.iterdir()
    known = FIRST_DIGESTS.setdefault(path, file_content_sha256(path.read_bytes()))
    file = DataFile(path.name, reader, shapes, sha256=known if path.suffix == ".mat" else None)
    return digest(*check_dataset_file(file, path).splits.values())


IMAGE_SHAPE, SPLIT_SHAPES = {"train": (6, 2, 2)}, {"train": (6, 2, 2), "test": (6, 2, 2)}


# --- experiments and runs -------------------------------------------------------------------


def _save_config(folder: Path) -> None:
    from iwae.config.toml import write_config

    write_config(preset("digits/iwae-k20").config(), folder / "config.toml")


SWEEP = """dataset = "digits"
objective = ["iwae", "elbo"]
k = [1, 5]
seed = [0, 1, 2]
latent_sizes = [10]
hidden_sizes = [[20]]
[[stages]]
epochs = 3
learning_rate = 0.1
[[stages]]
epochs = 4
optimizer = "soap"
"""


def _read_sweep(folder: Path) -> list[str]:
    return [task.name for task in read_sweep(folder / "sweep.toml", folder / "out")]


def _model(seed: int = 0) -> VAE:
    return VAE(4, (2,), ((3,),), key=jax.random.key(seed))


def _read_model(folder: Path) -> str:
    model = load_model(folder)
    read_model_facts(folder)
    return digest(*jax.tree.leaves(model))


def _state() -> tuple[Any, Any]:
    settings = Settings(objective("iwae", 2), adam())
    state = init_state([_model()], jax.random.split(jax.random.key(7), 1), settings)
    return state, init_best(state)


STATE: list[tuple[Any, Any]] = []


def _save_checkpoint(folder: Path) -> None:
    STATE[:] = [_state()]
    save_checkpoint(folder, Checkpoint(*STATE[0], {"dataset": {"name": "none"}, "version": "0"}))


def _read_checkpoint(folder: Path) -> str:
    (path,) = folder.iterdir()
    state, best, notes = load_checkpoint(path, STATE[0])
    leaves = jax.tree.leaves((state._replace(key=jax.random.key_data(state.key)), best))
    return digest(*leaves) + json.dumps(notes)


def _save_metrics(folder: Path) -> None:
    rows = [
        {
            "epoch": epoch,
            "step": 30 * epoch,
            "learning_rate": 0.01,
            "train_bound": [-3.5],
            "validation_bound": [None],
            "kl": [[1.0, 0.25]],
            "active_units": [[2, 1]],
        }
        for epoch in range(1, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read_metrics(folder: Path) -> list[Any]:
    rows = read_metrics(folder)
    max((row["epoch"] for row in rows), default=0)
    return [dict(scalars(row)) for row in rows]


def _save_frames(folder: Path) -> None:
    (folder / "frames").mkdir()
    for epoch in (0, 3):
        frame = dict.fromkeys(("samples", "reconstructions", "examples"), np.float32(REAL**2))
        np.savez(folder / "frames" / f"{epoch:06d}.npz", **frame)


@cache
def _picture_dataset() -> Dataset:
    """A data set of small pictures."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/mine.npy", np.tile(PIXELS, (2, 1)).reshape(12, 2, 2))
        return load_dataset(f"{folder}/mine.npy")


def _read_frames(folder: Path) -> str:
    courses = gallery._courses(folder, _picture_dataset())
    return digest(*(course.frames for course in courses.values()))


RESULTS = Path(__file__).parents[2] / "results"


def _copy_records(folder: Path, of: str = "digits") -> None:
    shutil.copytree(RESULTS / of / "iwae-k20/seeds-0-3/evaluations", folder / "evaluations")


def _read_records(folder: Path) -> frozenset[str]:
    """A digest of each bound in the records."""
    found = []
    for weights in ("final", "best"):
        found += read_bounds(folder, split="test", weights=weights, pruned=False)
    return frozenset(f"{one.estimator} {digest(one.places, one.values)}" for one in found)


def _read_all(folder: Path) -> frozenset[str]:
    """Digests of the values in the records of every method; also makes their tables and figures."""
    list(results([folder]))
    for weights in ("final", "best"):
        recorded_calibration_figure(folder, weights)
    plt.close("all")
    found = [
        (path, read_record_arrays(path, warn_unreadable_record)) for path, _ in read_records(folder)
    ]
    return frozenset(
        f"{path.stem} {name} {digest(array)}"
        for path, arrays in found
        for name, array in (arrays or {}).items()
    )


STOPPED_SETTINGS = {"examples": 20, "seed": 0}
"""The settings of an evaluation that was stopped."""


def _write_unfinished(folder: Path) -> None:
    Unfinished(folder).keep(STOPPED_SETTINGS, {"lower": REAL[:, 0], "upper": REAL[:, 1]})


def _read_unfinished(folder: Path) -> frozenset[str]:
    """The values that a repeated evaluation resumes from; none if it starts again."""
    kept = Unfinished(folder).kept(STOPPED_SETTINGS) or {}
    return frozenset(f"{name} {digest(array)}" for name, array in kept.items())


def _write_text(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)


NOTES = '{"id": "run-1", "step": -1}\n{"step": 30}\n{"step": 60}\n'

KINDS = {
    "npy": Kind(lambda folder: np.save(folder / "mine.npy", REAL), partial(_load, name="mine.npy")),
    "npy, streamed": Kind(
        lambda folder: np.save(folder / "mine.npy", REAL),
        partial(_load, name="mine.npy", stream=True),
    ),
    "npy of bytes": Kind(
        lambda folder: np.save(folder / "mine.npy", np.uint8(REAL * 9).reshape(12, 2, 2)),
        partial(_load, name="mine.npy"),
    ),
    "npz": Kind(
        lambda folder: np.savez(folder / "mine.npz", train=REAL, test=REAL[:3]),
        partial(_load, name="mine.npz"),
        exact=True,
    ),
    "npz with labels": Kind(
        lambda folder: np.savez_compressed(
            folder / "mine.npz", train=REAL, test=REAL, train_labels=LABELS, test_labels=LABELS
        ),
        partial(_load, name="mine.npz", labels=True),
        exact=True,
    ),
    "csv": Kind(partial(_save_csv, _table()), partial(_load, name="mine.csv")),
    "csv with gaps": Kind(
        partial(_save_csv, _table(gaps=True)),
        partial(_load, name="mine.csv", missing=True, observation="gaussian"),
    ),
    "csv with labels": Kind(
        partial(_save_csv, _table(labels=True)), partial(_load, name="mine.csv", labels="kind")
    ),
    "tsv": Kind(
        lambda folder: (folder / "mine.tsv").write_text(_table().replace(",", "\t")),
        partial(_load, name="mine.tsv"),
    ),
    "parquet": Kind(_save_parquet, partial(_load, name="mine.parquet", labels="kind")),
    "parquet, streamed": Kind(_save_parquet, partial(_load, name="mine.parquet", stream=True)),
    "images": Kind(_save_images, partial(_load, name="images"), share=0.5),
    "idx images": Kind(
        _save_idx_images,
        partial(_load_published, reader=readers.read_idx_images, shapes=IMAGE_SHAPE),
        exact=True,
    ),
    "idx labels": Kind(
        _save_idx_labels,
        partial(_load_published, reader=readers.read_idx_labels, shapes={"train": (6,)}),
        exact=True,
    ),
    "amat": Kind(
        _save_amat, partial(_load_published, reader=readers.read_amat, shapes=IMAGE_SHAPE)
    ),
    "mat": Kind(
        _save_mat, partial(_load_published, reader=readers.read_omniglot_mat, shapes=SPLIT_SHAPES)
    ),
    "mat of labels": Kind(
        _save_mat,
        partial(
            _load_published,
            reader=readers.read_omniglot_labels,
            shapes={"train": (6,), "test": (6,)},
        ),
    ),
    "experiment file": Kind(_save_config, lambda folder: str(read_config(folder / "config.toml"))),
    "values of a file": Kind(
        partial(_write_text, "sweep.toml", SWEEP),
        lambda folder: str(read_toml(folder / "sweep.toml")),
    ),
    "sweep": Kind(partial(_write_text, "sweep.toml", SWEEP), _read_sweep, share=0.3),
    "model": Kind(
        lambda folder: save_model(_model(), folder, epoch=3), _read_model, exact=True, share=0.05
    ),
    "checkpoint": Kind(_save_checkpoint, _read_checkpoint, exact=True),
    "metrics": Kind(_save_metrics, _read_metrics),
    "notes of a tracker": Kind(
        partial(_write_text, "notes.jsonl", NOTES),
        lambda folder: _read_notes(folder / "notes.jsonl"),
    ),
    "frames": Kind(_save_frames, _read_frames),
    "records": Kind(_copy_records, _read_records, exact=True, share=0.2),
    "records of all methods": Kind(
        partial(_copy_records, of="camel"), _read_all, exact=True, share=0.1
    ),
    "unfinished measurement": Kind(_write_unfinished, _read_unfinished, exact=True),
    "temperatures": Kind(
        partial(_write_text, "betas.txt", "0, 0.25\n0.5 1.0\n"),
        lambda folder: _temperatures(str(folder / "betas.txt"), ()),
    ),
}
