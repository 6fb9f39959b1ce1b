"""Results are the same bits under JAX_ENABLE_X64 and JAX_DEBUG_NANS as without them."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import small
from iwae import VAE, ImportanceWeightedAutoencoder, bound, iwae, load_model, log_likelihoods, train
from iwae.precision import float32
from iwae.results.likelihood import evaluate_run


def digest(tree):
    """Return a hash of the types and the bits of all arrays."""
    hasher = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            hasher.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return hasher.hexdigest()


def incomplete_rows():
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    rows[np.random.default_rng(1).uniform(size=rows.shape) < 0.3] = np.nan
    return rows


def in_memory():
    model = VAE(
        3, (2,), ((4,),), observation="gaussian", missing="at-random", key=jax.random.key(0)
    )
    return model, log_likelihoods(model, incomplete_rows(), jax.random.key(2), k=3)


def trained():
    options = {
        "key": jax.random.key(1),
        "epochs": 2,
        "batch_size": 10,
        "validation": incomplete_rows()[:10],
    }
    return train(in_memory()[0], incomplete_rows(), bound(iwae, k=2), **options).model


def estimator():
    model = ImportanceWeightedAutoencoder(
        2, hidden_layer_sizes=(4,), max_iter=2, missing="not-at-random", score_k=9, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(incomplete_rows())
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        model = ImportanceWeightedAutoencoder.load(folder)
    scores = model.score_samples(incomplete_rows()[:5])
    annealed = model.score_samples(incomplete_rows()[:5], method="ais", k=2, temperatures=3)
    return (
        model.model_,
        scores,
        annealed,
        model.impute(incomplete_rows()),
        model.sample(3, random_state=0),
    )


def run():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        small.train_in(path, epochs=1)
        record = evaluate_run(path, ks=(3,))
        return load_model(path / "models" / "final-0"), np.float64(record["log_likelihood"])


def digests():
    return {make.__name__: digest(make()) for make in (in_memory, trained, estimator, run)}


HERE = Path(__file__).parent
SCRIPT = "import json, test_precision; print(json.dumps(test_precision.digests()))"


def test_other_jax_defaults_change_no_bit_in_memory():
    with jax.enable_x64(True), jax.debug_nans(True):
        result = digest(in_memory())
    assert result == digest(in_memory())


@pytest.mark.slow
def test_other_jax_defaults_change_no_bit():
    assert jax.numpy.zeros(1).dtype == np.float32
    assert not jax.config.jax_debug_nans
    others = {"JAX_ENABLE_X64": "1", "JAX_DEBUG_NANS": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **others},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == digests()


def test_caller_of_a_generator_keeps_its_default_type():
    seen = []

    @float32
    def types():
        try:
            yield jax.numpy.zeros(1).dtype
            yield jax.numpy.zeros(1).dtype
        finally:
            seen.append("closed")

    with jax.enable_x64(True):
        values = types()
        for _ in range(2):
            assert next(values) == np.float32
            assert jax.numpy.zeros(1).dtype == np.float64
        assert list(values) == []
        next(other := types())
        other.close()
    assert seen == ["closed"] * 2


LIMITED = """
import os, resource
if {limited}:
    resource.setrlimit(resource.RLIMIT_AS, 2 * [2**46])
import iwae.precision
print(os.environ.get("TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
@pytest.mark.parametrize(("limited", "expected"), [(True, "false"), (False, "None")])
def test_contraction_kernel_is_disabled_under_a_memory_limit(limited, expected):
    command = [sys.executable, "-c", LIMITED.format(limited=limited)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == expected
