"""The number of epochs by cross-validation, and the p-values that come with it."""

import contextlib
import itertools
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest

from iwae import TrainConfig, UserError, load_model, resume_run, score, score_rows, start_run
from iwae.cli import main
from iwae.cli.train import _base_config
from iwae.config.experiment import make_config
from iwae.runs.folder import folder_config
from iwae.runs.folds import cross_validate, load_folds
from iwae.runs.initial_models import make_initial_models
from iwae.runs.jobs import load_job_dataset, make_job
from iwae.training.loop import validation_bounds
from iwae.training.steps import init_state
from reference import equal

SMALL = {"latent_sizes": (1,), "hidden_sizes": ((3,),), "k": 2}


def table(path, n=40):
    """A table of two columns that depend."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=n)
    rows = np.stack([z, 2 * z + rng.normal(size=n)], axis=1)
    path.write_text("a,b\n" + "".join(f"{a:.4f},{b:.4f}\n" for a, b in rows))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the defaults for few rows, but of fewer epochs."""
    folder = tmp_path_factory.mktemp("folds")
    config = TrainConfig(
        dataset=table(folder / "t.csv"),
        **SMALL,
        folds=4,
        epochs=12,
        patience=3,
        learning_rate=0.05,
        batch_size="auto",
    )
    list(start_run(config, folder / "run"))
    return folder / "run"


def test_every_row_is_held_out_once_and_the_best_epoch_is_that_of_all(run):
    config = folder_config(run)
    data = load_job_dataset(config)
    folds, rows = load_folds(run, data), data.examples("train")
    assert len(rows) == 32
    assert np.bincount(folds.fold_of).tolist() == [8] * 4
    assert folds.epochs == folds.bounds.argmax() + 1
    assert len(folds.bounds) == min(12, folds.epochs + 3)
    settings = make_job(config).stages[0].settings._replace(ema=None)
    found = []
    for i, model in enumerate(folds.models):
        state = init_state([model], jax.random.split(jax.random.key(0), 1), settings)
        found += [validation_bounds(state, model, settings, rows[folds.fold_of == i])[0]]
    assert np.mean(found) == pytest.approx(folds.bounds.max(), abs=1e-5)


def test_a_signal_ends_the_folds_after_an_epoch_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    own = table(tmp_path / "t.csv")
    monkeypatch.setattr(
        "iwae.runs.folds.stop_signals", lambda: contextlib.nullcontext([signal.SIGTERM])
    )
    words = ["--latent-sizes", "1", "--hidden-sizes", "3", "--folds", "2", "--epochs", "2"]
    assert main(["train", "--dataset", own, *words, "--out", str(tmp_path / "run")]) == 143
    assert capsys.readouterr().err.endswith("\nstopped by SIGTERM; repeat the command\n")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_no_model_has_seen_its_fold(tmp_path):
    """Nor does a VampPrior start at rows of it."""
    own = table(tmp_path / "t.csv")
    config = TrainConfig(dataset=own, **SMALL, prior="vamp:6", folds=2, epochs=1, output_bias=False)
    job = make_job(config)
    first = cross_validate(job)
    rows = job.dataset.train.copy()
    rows[first.fold_of == 1] += 1
    changed = replace(job.dataset, train=rows)
    models = make_initial_models(job.config, changed)
    other = cross_validate(replace(job, dataset=changed, models=models))
    assert not equal(first.models[0], other.models[0])
    assert equal(first.models[1], other.models[1])


def test_a_run_is_no_shorter_than_its_warm_up(tmp_path):
    """At this rate the first epoch is the best, and a shorter run could not be read again."""
    config = TrainConfig(
        dataset=table(tmp_path / "t.csv"),
        **SMALL,
        folds=2,
        epochs=4,
        kl_warmup=2,
        lr_warmup=2.5,
        learning_rate=1.0,
    )
    found = cross_validate(make_job(config))
    assert found.bounds.argmax() < 2
    assert found.epochs >= 3


def test_the_model_is_trained_on_all_rows_for_as_many_epochs(run, tmp_path):
    config = folder_config(run)
    assert (config.epochs, config.folds, config.validation) == (
        load_folds(run, load_job_dataset(config)).epochs,
        None,
        0,
    )
    list(start_run(config, tmp_path / "again"))
    final = load_model(run / "models" / "final-0")
    assert equal(load_model(tmp_path / "again" / "models" / "final-0"), final)
    assert not (run / "models" / "best-0").exists()


def test_what_is_resumed_is_the_training_on_all_rows(run, tmp_path):
    values = {"epochs": 12, "patience": 3, "folds": 4}
    config = folder_config(run).model_copy(update=values)
    reports = start_run(config, tmp_path / "run")
    list(itertools.islice(reports, 1))
    reports.close()  # as a kill would
    assert folder_config(tmp_path / "run").folds is None
    list(resume_run(tmp_path / "run"))
    final = load_model(run / "models" / "final-0")
    assert equal(load_model(tmp_path / "run" / "models" / "final-0"), final)


def test_p_values_are_by_models_that_have_not_seen_the_row_beside(run):
    file = run.parent / "new.csv"
    file.write_text("a,b\n0.1,0.3\n3.0,-6.0\n")
    found = score_rows(run, file, k=200)["p_value"]
    data = load_job_dataset(folder_config(run))
    folds, rows = load_folds(run, data), data.examples("train")
    new = np.float32(data.scaling.inwards(np.array([[0.1, 0.3], [3.0, -6.0]])))
    below = np.zeros(2)
    for i, model in enumerate(folds.models):
        known, ours = (
            score(model, some, jax.random.key(5), k=2000).log_likelihood
            for some in (rows[folds.fold_of == i], new)
        )
        below += (known[:, None] <= ours).sum(axis=0)
    np.testing.assert_allclose(found, (1 + below) / 33, atol=2.1 / 33)  # Monte Carlo error of ranks
    assert found[1] == 1 / 33


def test_rows_of_other_data_are_no_reference(run):
    data = load_job_dataset(folder_config(run))
    other = load_job_dataset(
        TrainConfig(dataset=table(run.parent / "other.csv", 50), **SMALL, epochs=1)
    )
    assert load_folds(run, data).epochs
    with pytest.raises(UserError, match=r"the data of .* have changed"):
        load_folds(run, other)


def test_few_rows_are_held_out_in_turn_and_more_are_not(tmp_path):
    few, more = table(tmp_path / "few.csv", 250), table(tmp_path / "more.csv", 252)
    found = [make_job(TrainConfig(dataset=one, **SMALL)) for one in (few, more)]
    assert [job.config.folds for job in found] == [5, None]
    assert [job.config.schedule for job in found] == ["constant", "cosine"]
    assert [len(job.dataset.validation) for job in found] == [0, 20]
    for name, value in {
        "validation": 0.2,
        "patience": 5,
        "schedule": "cosine",
        "init_from": tmp_path,
    }.items():
        assert TrainConfig(dataset=few, **{name: value}).folds is None
    base, _ = _base_config(["--dataset", few, "--folds", "3"])
    assert (base.folds, base.validation, base.schedule, base.patience) == (
        "auto",
        0,
        "constant",
        100,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": 3, "validation": 0.1}, "leave out validation"),
        ({"folds": 3, "schedule": "cosine"}, "needs schedule 'constant'"),
        ({"folds": 3, "stages": "epochs=2, epochs=2"}, "without stages"),
        ({"folds": 3, "init_from": "other"}, "models that have not seen the rows"),
        ({"folds": 41}, "there are 32 training rows"),
        ({"folds": 3, "dataset": "digits"}, "drawn anew in each epoch"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(options, words, tmp_path):
    values = {"dataset": table(tmp_path / "t.csv"), **SMALL, **options}
    with pytest.raises(UserError, match=words):
        make_job(make_config(values, "test"))


@pytest.mark.parametrize("word", ["1", "-3", "few"])
def test_a_number_of_folds_that_is_none_is_one_line(word, tmp_path, capsys):
    own = table(tmp_path / "t.csv")
    words = ["train", "--dataset", own, "--folds", word, "--out", str(tmp_path / "run")]
    with contextlib.suppress(SystemExit):
        assert main(words) == 2
    assert "folds" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_fold_is_larger_than_what_a_batch_leaves(tmp_path):
    """Eight training rows in five folds leave six, and a batch would be eight."""
    job = make_job(TrainConfig(dataset=table(tmp_path / "t.csv", 10), **SMALL))
    found = cross_validate(
        make_job(job.config.model_copy(update={"epochs": 2, "batch_size": job.config.batch_size}))
    )
    assert len(found.models) == 5
