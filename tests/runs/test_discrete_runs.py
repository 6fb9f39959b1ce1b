"""Runs with discrete latents, from the command line to records and figures."""

import json

import numpy as np
import pytest

import small
from iwae import anneal_run, bdmc_run, evaluate_run, load_model
from iwae.cli import main
from iwae.config.experiment import make_config
from iwae.config.toml import read_config
from iwae.errors import UserError
from iwae.reports.gallery import draw_gallery
from iwae.results.ais import Annealing
from iwae.results.gradient_signal import gradients_run
from iwae.sklearn.estimator import ImportanceWeightedAutoencoder

MIXED = {
    "latents": ("categorical:3", "bernoulli"),
    "latent_sizes": (2, 3),
    "hidden_sizes": ((5,), ()),
    "epochs": 1,
}
SHORT = Annealing(temperatures=20, chains=4, leapfrog=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discrete") / "run"
    small.train_in(folder, **MIXED)
    return folder


@pytest.mark.slow
def test_discrete_run_is_evaluated_and_loads_the_described_model(run):
    config = read_config(run / "config.toml")
    assert (config.latents, config.gradient) == (("categorical:3", "bernoulli"), "vimco")
    model = load_model(run / "models" / "final-0")
    assert list(map(str, model.latents)) == ["categorical:3", "bernoulli"]
    assert (model.latent_sizes, model.widths, model.top.logits.shape) == ((2, 3), (6, 3), (3,))
    sampled = evaluate_run(run, ks=(1, 200))
    assert sampled["by_k"][0]["log_likelihood"] < sampled["by_k"][1]["log_likelihood"] < 0


def test_description_of_a_continuous_model_does_not_mention_latents():
    assert "latents" not in small.config().model_dump(mode="json", exclude_none=True)
    description = json.loads((small.finished() / "models" / "final-0" / "model.json").read_text())
    assert "latents" not in description["architecture"]


@pytest.mark.slow
def test_discrete_run_has_figures_gradients_and_two_sided_bounds(run):
    assert "posterior.png" not in {path.name for path in draw_gallery(run)}
    record = gradients_run(run, ks=(4,), draws=20, examples=4, gamma=1.0)
    names = {row["gradient"] for row in record["rows"]}
    assert names == {"vimco", "vimco-arithmetic", "vimco-star", "ovis"}
    assert {"encoder 1", "encoder 2", "prior 1", "prior", "decoder"} == set(
        record["rows"][0]["groups"]
    )
    assert bdmc_run(run, annealing=SHORT, examples=20)["gap"] > 0
    annealed = anneal_run(run, annealing=SHORT, examples=20)
    assert 0.3 < annealed["by_temperatures"][-1]["acceptance_mean"] < 0.99


def test_inapplicable_options_are_refused(tmp_path, capsys):
    arguments = ["train", "--dataset", str(small.pictures()), "--out", str(tmp_path / "run")]
    arguments += ["--latent-sizes", "3", "2", "--hidden-sizes", "4", "none", "--latents"]
    for more, message in (
        (["bernoulli", "--gradient", "dreg"], "use iwae with vimco"),
        (["bits"], "no kind of latents 'bits'"),
        (["bernoulli", "normal", "normal"], "names 3 kinds"),
        (["bernoulli", "--k", "1"], "k of at least 2"),
        (["bernoulli", "--objective", "aiwae"], "use elbo"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="or none for a linear layer"):
        make_config({"latent_sizes": (3,)}, "test")


@pytest.mark.slow
def test_estimator_supports_discrete_latents(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    for latents, columns in (("bernoulli", 2), ("categorical:4", 8)):
        estimator = ImportanceWeightedAutoencoder(
            2,
            hidden_layer_sizes=(4,),
            latents=latents,
            max_iter=1,
            early_stopping=False,
            random_state=0,
        )
        codes = estimator.fit(X).transform(X)
        assert codes.shape == (60, columns)
        assert ((codes > 0) & (codes < 1)).all()
        assert estimator.inverse_transform(codes).shape == X.shape
        if latents == "bernoulli":
            estimator.save(tmp_path / "model")
            loaded = ImportanceWeightedAutoencoder.load(tmp_path / "model")
            assert (loaded.transform(X) == codes).all()
    with pytest.raises(ValueError, match="no kind of latents"):
        estimator.set_params(latents="bits").fit(X)
