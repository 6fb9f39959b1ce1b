"""Standardised values: units of densities, precision beside a large mean, and defaults."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import quick_rows
from iwae import (
    VAE,
    ImportanceWeightedAutoencoder,
    TrainConfig,
    UserError,
    bound,
    elbo,
    load_dataset,
    train,
)
from iwae.config.defaults import UNTIL_CONVERGED
from iwae.config.toml import write_config
from iwae.data.scaling import fit_scaling, refuse_coarse_scaling
from iwae.objectives.building import build_objective
from iwae.objectives.compatibility import check_compatibility
from iwae.objectives.declaration import Declaration
from iwae.runs.folder import folder_config
from iwae.runs.jobs import make_job

LOG_SCALE = np.log([0.01, 3.0, 1e5])
X = np.float32([0.3, -1.0, 0.7])


def key():
    return jax.random.key(0)


def vae(layers=1, **options):
    sizes = (2,) * layers
    options |= {"observation": "gaussian", "key": key()}
    return VAE(3, sizes, ((4,),) * layers, **options)


@pytest.mark.parametrize(
    ("name", "layers", "options"),
    quick_rows(
        [
            ("iwae", 1, {"k": 3}),
            ("iwae", 2, {"k": 3, "gradient": "gdreg"}),
            ("elbo-analytic", 1, {}),
            ("elbo", 2, {"free_bits": 0.1}),
            ("dais", 1, {"k": 2, "temperatures": 2, "leapfrog": 1}),
        ],
        *(1, 2, 3),
    ),
)
def test_every_bound_is_in_the_units_of_the_data(name, layers, options):
    chosen = build_objective(check_compatibility(Declaration(name, **options), layers), layers)
    plain, scaled = (
        eqx.filter_jit(chosen.terms)(
            vae(layers, log_scale=one), jnp.asarray(X), key(), chosen.init()
        )[0]
        for one in (None, LOG_SCALE)
    )
    np.testing.assert_allclose(plain - LOG_SCALE.sum(), scaled, rtol=1e-5)


def test_only_observed_values_contribute_their_scale():
    gaps = jnp.asarray([*X[:2], jnp.nan])
    plain, scaled = (vae(missing="at-random", log_scale=one) for one in (None, LOG_SCALE))
    z, _ = plain.sample(key())
    difference = plain.log_joint(gaps, z) - scaled.log_joint(gaps, z)
    np.testing.assert_allclose(difference, LOG_SCALE[:2].sum(), rtol=1e-5)


@pytest.fixture(scope="module")
def clock_file(tmp_path_factory):
    """A table whose first column has a mean of 1.7e9 and a standard deviation of 10."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=400)
    b = np.stack([z + 0.1 * rng.normal(size=400) for _ in range(2)], 1)
    path = tmp_path_factory.mktemp("clock") / "clock.csv"
    lines = [f"{1.7e9 + 10 * first:.3f},{second:.6f}" for first, second in b]
    path.write_text("\n".join(["time,y", *lines]) + "\n")
    return path


def test_large_mean_loses_no_precision(clock_file):
    data = load_dataset(clock_file)
    lines = np.loadtxt(clock_file, delimiter=",", skiprows=1)
    inside = np.concatenate([data.train, data.test])
    np.testing.assert_allclose(inside.std(axis=0), 1, atol=0.1)
    assert len(np.unique(inside[:, 0])) == len(np.unique(lines[:, 0]))
    back = np.sort(data.outwards(inside)[:, 0])
    np.testing.assert_allclose(back, np.sort(lines[:, 0]), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(data.identity["scaling"]["shift"], data.scaling.shift)


def test_training_sets_and_keeps_the_scale_of_the_data(clock_file):
    data = load_dataset(clock_file)
    model = VAE(2, (1,), ((4,),), observation="gaussian", key=key())
    trained = train(model, data, bound(elbo, k=1), key=key(), epochs=2, learning_rate=0.1).model
    np.testing.assert_array_equal(trained.log_scale, np.float32(data.log_scale))


def test_rounding_that_would_merge_values_is_refused(clock_file):
    with pytest.raises(UserError, match=r"column 1.*: float32 merges \d+ of \d+ distinct"):
        load_dataset(clock_file, standardize=False)
    with pytest.raises(UserError, match="no real values of learned scale"):
        load_dataset("digits", standardize=True)


N = 1000
NORMAL = np.random.default_rng(0).normal(size=N)
CLUSTERS = np.where(NORMAL < 0, 0, 1.7e9)


@pytest.mark.parametrize(
    ("column", "outcome"),
    [
        (CLUSTERS + 0.37 * np.arange(N), "refused"),  # two clusters
        (np.where(NORMAL < -1.3, 0.37, 1.7e9) * np.arange(N), "refused"),  # one of them small
        (np.exp(6 * NORMAL), "refused"),  # a heavy tail
        (np.append(NORMAL[1:], 1e30), "refused"),  # a single value far away
        (np.resize([1, 2, 1e30], N), "refused"),
        (CLUSTERS + 1e5 * np.arange(N), ""),  # clusters that keep their resolution
        (np.resize([0.3, 0.1 + 0.2, 0.7, 1.0], N), ""),  # a rounded sum
        (np.random.default_rng(0).standard_cauchy(100 * N), ""),
        (np.exp(3 * np.random.default_rng(0).normal(size=100 * N)), "reported"),
    ],
)
def test_values_merged_by_single_precision_are_refused_or_reported(column, outcome):
    scaling = fit_scaling(column[:, None], np.array([True]), "x")
    if outcome == "refused":
        message = r"x, column 1: float32 merges [\d,]+ of [\d,]+ distinct values: remove extreme"
        with pytest.raises(UserError, match=message):
            refuse_coarse_scaling(column[:, None], scaling, (), "x")
        return
    remarks = refuse_coarse_scaling(column[:, None], scaling, (), "x")
    assert len(remarks) == (outcome == "reported")
    assert all("which hardly differ" in one for one in remarks)


def test_older_run_without_the_option_is_not_standardised(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(3, 5, size=(60, 2)))
    config = TrainConfig(
        dataset=str(tmp_path / "a.npy"),
        standardize=False,
        latent_sizes=(1,),
        hidden_sizes=((3,),),
        epochs=1,
    )
    file = tmp_path / "run" / "config.toml"
    write_config(make_job(config).config, file)
    assert "standardize" in file.read_text()
    kept = [line for line in file.read_text().splitlines() if "standardize" not in line]
    file.write_text("\n".join(kept))
    assert folder_config(tmp_path / "run").standardize is False


def test_user_files_have_their_own_defaults():
    own = TrainConfig(dataset="my.csv")
    assert {name: getattr(own, name) for name in UNTIL_CONVERGED} == UNTIL_CONVERGED
    assert (own.k, own.latent_sizes) == (16, (10,))
    assert TrainConfig(dataset="my.csv", epochs=7).patience is None
    assert TrainConfig(dataset="my.csv", validation=0).patience is None  # needs held-out rows
    assert TrainConfig(dataset="my.csv", layers=2).latent_sizes is None
    named = TrainConfig(dataset="mnist", objective="iwae"), TrainConfig(objective="vae")
    assert [(one.k, one.epochs, one.batch_size) for one in named] == [(16, 3280, 20), (1, 3280, 20)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_estimator_resolves_small_differences_of_large_numbers(dtype):
    rng = np.random.default_rng(0)
    z = rng.normal(size=1000)
    b = np.stack([z + 0.1 * rng.normal(size=1000) for _ in range(2)], 1)
    rows = (1e8 + 100 * b).astype(dtype)
    options = {"hidden_layer_sizes": (20,), "max_iter": 60, "early_stopping": False}
    model = ImportanceWeightedAutoencoder(1, random_state=0, **options)
    wide = rows.astype(np.float64)
    gaussian = -0.5 * (np.linalg.slogdet(2 * np.pi * np.cov(wide.T))[1] + 2)  # -10.11
    assert model.fit(rows).score(rows) > gaussian - 0.1
