"""Small data and runs of one shape, so that tests share compiled programs and trained runs."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from iwae.config import toml
from iwae.config.experiment import make_config
from iwae.config.toml import read_config
from iwae.models.conditional import ConditionalVAE
from iwae.models.vae import VAE
from iwae.results import record_files
from iwae.runs.checkpoints import list_checkpoints, load_checkpoint
from iwae.runs.jobs import blank_job_state, make_job
from iwae.runs.model_files import save_model
from iwae.runs.start_and_resume import start_run
from iwae.runs.trained import trained_model_folder
from iwae.training.loop import Report

_folder = tempfile.TemporaryDirectory(prefix="iwae-tests-")
FOLDER = Path(_folder.name)

STEPS_PER_EPOCH = 30
OPTIONS = {
    "latent_sizes": (2,),
    "hidden_sizes": ((5,),),
    "k": 2,
    "batch_size": 10,
    "epochs": 4,
    "learning_rate": 0.1,
    "validation": 50,
}

LABEL_SHARES = np.float32([0.25, 0.75])

# The two replicates of this run stop at different epochs, and both before its end.
PATIENT = {
    "patience": 1,
    "threshold": 0.05,
    "epochs": 7,
    "schedule": "constant",
    "learning_rate": 0.02,
}


def grey(seed=0):
    """400 images of 4 x 4 pixels: one of two shades of grey on each half, plus noise."""
    rng = np.random.default_rng(seed)
    halves = np.repeat(rng.choice([40, 200], (400, 1, 2)), [2, 2], axis=2)
    return np.uint8(np.clip(halves + rng.normal(0, 40, (400, 4, 4)), 0, 255))


def two_halves(path):
    """Images with the bright half on the left (label a) or on the right (label b)."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    images = rng.normal(60, 20, (300, 4, 4))
    images[y == 0, :, :2] += 120
    images[y == 1, :, 2:] += 120
    labels = np.array(["a", "b"])[y]
    pixels = np.uint8(images.clip(0, 255))
    examples = {"train": pixels[:250], "test": pixels[250:]}
    np.savez(path, **examples, train_labels=labels[:250], test_labels=labels[250:])
    return {"dataset": str(path), "conditional": True, "epochs": 6}


@cache
def pictures():
    """A file of 350 training examples, 50 of which a run holds out, and 50 test examples."""
    images = grey()
    np.savez(FOLDER / "pictures.npz", train=images[:350], test=images[350:])
    return FOLDER / "pictures.npz"


def own_data(path, seed=0, **more):
    """Write a file of named arrays with the split sizes of `pictures`; return options for it."""
    images = grey(seed)
    np.savez(path, train=images[:300], test=images[350:], **more)
    return {"dataset": str(path), "validation": None, "epochs": 1}


def config(**changes):
    return make_config({"dataset": str(pictures()), **OPTIONS, **changes}, "test")


def train_in(run, **changes):
    """Train a new run to its end; return its reports."""
    return list(start_run(config(**changes), run))


@cache
def finished(**changes):
    """A finished run, which tests share and must not change."""
    run = Path(tempfile.mkdtemp(dir=FOLDER)) / "run"
    train_in(run, **changes)
    return run


def unmeasured(run, folder):
    """A copy of a run without the records and figures that other tests may have added."""
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluations", "figures"))


def unpacked(run, folder, *without):
    """A copy of a committed run without some files, with its records unpacked."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*without))
    record_files.unpack(folder / "evaluations")
    return folder


def record_of(run, name):
    """A record of a run, packed or not, by its name."""
    return record_files.read_documents(run / "evaluations")[run / "evaluations" / f"{name}.json"]


@cache
def unvalidated():
    """A finished run without held-out examples."""
    return finished(**own_data(FOLDER / "unvalidated.npz"))


def run_from_models(run, models, **changes):
    """A run with the given models, one for each replicate, in place of trained ones."""
    job = make_job(config(replicates=len(models), **changes))
    about = {"dataset": job.dataset.identity, "config": toml.config_toml_values(job.config)}
    toml.write_config(job.config, run / "config.toml")
    for replicate, model in enumerate(models):
        folder = trained_model_folder(run, "final", replicate)
        save_model(model, folder, replicate=replicate, epoch=0, **about)
    return run


def perturbed(model, seed=1, size=0.3):
    """The model with noise on every parameter, biases too, so that each one matters."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    rng = np.random.default_rng(seed)
    # In NumPy, which does not compile a program for each shape.
    noisy = jax.tree.map(
        lambda p: jnp.asarray(np.asarray(p) + np.float32(rng.normal(0, size, p.shape))), params
    )
    return eqx.combine(noisy, static)


def perturbed_conditional(model, size=0.3):
    """The model with noise on every parameter except its label frequencies."""
    return eqx.tree_at(lambda m: m.frequencies, perturbed(model, size=size), model.frequencies)


def conditional_model(
    n_data=16, n_classes=2, *, size=0.5, seed=0, learned_prior=True, latent=2, **options
):
    """An untrained model that distinguishes labels."""
    vae = VAE(n_data, (latent,), ((5,),), **options, key=jax.random.key(seed))
    shares = LABEL_SHARES if n_classes == 2 else None
    model = ConditionalVAE(vae, n_classes, learned_prior=learned_prior, frequencies=shares)
    return perturbed_conditional(model, size=size)


def bits(tree):
    """The type, shape and bytes of every array of a tree, random keys too."""
    leaves = []
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        leaves.append((str(leaf.dtype), raw.shape, raw.tobytes()))
    return leaves


@cache
def _like(config_toml, step):
    path = Path(tempfile.mkdtemp(dir=FOLDER)) / "config.toml"
    path.write_text(config_toml)
    return blank_job_state(make_job(read_config(path), resumed=True), step)


def newest(run):
    """The newest checkpoint of a run."""
    path = list_checkpoints(run / "checkpoints")[-1]
    return load_checkpoint(path, _like((run / "config.toml").read_text(), int(path.stem)))


def outcome(run):
    """The outcome of a run, bit for bit: state, best weights, models and metrics."""
    models = {
        str(path.relative_to(run)): path.read_bytes() for path in (run / "models").rglob("*.*")
    }
    checkpoint = newest(run)
    return (
        bits((checkpoint.state, checkpoint.best)),
        models,
        (run / "metrics.jsonl").read_text(),
    )


def write_config(path):
    """Write the configuration of `finished()` as an experiment file."""
    toml.write_config(config(), path)


def report(**changes):
    """The report of a dispatch, whose other fields are None."""
    rest = dict.fromkeys(Report._fields)
    return Report(**{**rest, "stage": 0, **changes})
