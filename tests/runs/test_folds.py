"""Cross-validation: the number of epochs, and the p-values of rows."""

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


def write_table(path, n=40):
    """Write a table of two dependent columns; returns its path."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=n)
    rows = np.stack([z, 2 * z + rng.normal(size=n)], axis=1)
    path.write_text("a,b\n" + "".join(f"{a:.4f},{b:.4f}\n" for a, b in rows))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the defaults for few rows, except for fewer epochs."""
    folder = tmp_path_factory.mktemp("folds")
    config = TrainConfig(
        dataset=write_table(folder / "t.csv"),
        **SMALL,
        folds=4,
        epochs=12,
        patience=3,
        learning_rate=0.05,
        batch_size="auto",
    )
    list(start_run(config, folder / "run"))
    return folder / "run"


def test_every_row_is_held_out_once_and_the_best_epoch_is_common_to_all_folds(run):
    config = folder_config(run)
    data = load_job_dataset(config)
    folds, rows = load_folds(run, data), data.examples("train")
    assert len(rows) == 32
    assert np.bincount(folds.fold_of).tolist() == [8] * 4
    assert folds.epochs == folds.bounds.argmax() + 1
    assert len(folds.bounds) == min(12, folds.epochs + 3)
    settings = make_job(config).stages[0].settings._replace(ema=None)
    bounds = []
    for i, model in enumerate(folds.models):
        state = init_state([model], jax.random.split(jax.random.key(0), 1), settings)
        bounds += [validation_bounds(state, model, settings, rows[folds.fold_of == i])[0]]
    assert np.mean(bounds) == pytest.approx(folds.bounds.max(), abs=1e-5)


def test_signal_ends_cross_validation_after_an_epoch_and_saves_nothing(
    tmp_path, monkeypatch, capsys
):
    path = write_table(tmp_path / "t.csv")
    monkeypatch.setattr(
        "iwae.runs.folds.stop_signals", lambda: contextlib.nullcontext([signal.SIGTERM])
    )
    options = ["--latent-sizes", "1", "--hidden-sizes", "3", "--folds", "2", "--epochs", "2"]
    assert main(["train", "--dataset", path, *options, "--out", str(tmp_path / "run")]) == 143
    assert capsys.readouterr().err.endswith("\nstopped by SIGTERM; repeat the command\n")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_no_model_sees_its_held_out_fold(tmp_path):
    """Nor does a VampPrior start from rows of that fold."""
    path = write_table(tmp_path / "t.csv")
    config = TrainConfig(
        dataset=path, **SMALL, prior="vamp:6", folds=2, epochs=1, output_bias=False
    )
    job = make_job(config)
    first = cross_validate(job)
    rows = job.dataset.train.copy()
    rows[first.fold_of == 1] += 1
    changed = replace(job.dataset, train=rows)
    models = make_initial_models(job.config, changed)
    other = cross_validate(replace(job, dataset=changed, models=models))
    assert not equal(first.models[0], other.models[0])
    assert equal(first.models[1], other.models[1])


def test_run_is_no_shorter_than_its_warm_up(tmp_path):
    """At this rate the first epoch is the best, but a run shorter than its warm-up is invalid."""
    config = TrainConfig(
        dataset=write_table(tmp_path / "t.csv"),
        **SMALL,
        folds=2,
        epochs=4,
        kl_warmup=2,
        lr_warmup=2.5,
        learning_rate=1.0,
    )
    folds = cross_validate(make_job(config))
    assert folds.bounds.argmax() < 2
    assert folds.epochs >= 3


def test_final_model_is_trained_on_all_rows_for_the_selected_epochs(run, tmp_path):
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


def test_resuming_continues_the_training_on_all_rows(run, tmp_path):
    values = {"epochs": 12, "patience": 3, "folds": 4}
    config = folder_config(run).model_copy(update=values)
    reports = start_run(config, tmp_path / "run")
    list(itertools.islice(reports, 1))
    reports.close()  # as a kill would
    assert folder_config(tmp_path / "run").folds is None
    list(resume_run(tmp_path / "run"))
    final = load_model(run / "models" / "final-0")
    assert equal(load_model(tmp_path / "run" / "models" / "final-0"), final)


def test_p_values_compare_with_rows_held_out_from_each_model(run):
    file = run.parent / "new.csv"
    file.write_text("a,b\n0.1,0.3\n3.0,-6.0\n")
    p_values = score_rows(run, file, k=200)["p_value"]
    data = load_job_dataset(folder_config(run))
    folds, rows = load_folds(run, data), data.examples("train")
    new = np.float32(data.scaling.inwards(np.array([[0.1, 0.3], [3.0, -6.0]])))
    below = np.zeros(2)
    for i, model in enumerate(folds.models):
        held_out, scored = (
            score(model, some, jax.random.key(5), k=2000).log_likelihood
            for some in (rows[folds.fold_of == i], new)
        )
        below += (held_out[:, None] <= scored).sum(axis=0)
    # The tolerance is the Monte Carlo error of the ranks.
    np.testing.assert_allclose(p_values, (1 + below) / 33, atol=2.1 / 33)
    assert p_values[1] == 1 / 33


def test_folds_of_other_data_are_refused(run):
    data = load_job_dataset(folder_config(run))
    other = load_job_dataset(
        TrainConfig(dataset=write_table(run.parent / "other.csv", 50), **SMALL, epochs=1)
    )
    assert load_folds(run, data).epochs
    with pytest.raises(UserError, match=r"the data of .* have changed"):
        load_folds(run, other)


def test_cross_validation_is_the_default_for_few_rows_only(tmp_path):
    few, more = write_table(tmp_path / "few.csv", 250), write_table(tmp_path / "more.csv", 252)
    jobs = [make_job(TrainConfig(dataset=one, **SMALL)) for one in (few, more)]
    assert [job.config.folds for job in jobs] == [5, None]
    assert [job.config.schedule for job in jobs] == ["constant", "cosine"]
    assert [len(job.dataset.validation) for job in jobs] == [0, 20]
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
    ("options", "message"),
    [
        ({"folds": 3, "validation": 0.1}, "leave out validation"),
        ({"folds": 3, "schedule": "cosine"}, "needs schedule 'constant'"),
        ({"folds": 3, "stages": "epochs=2, epochs=2"}, "without stages"),
        ({"folds": 3, "init_from": "other"}, "models that have not seen the rows"),
        ({"folds": 41}, "there are 32 training rows"),
        ({"folds": 3, "dataset": "digits"}, "drawn anew in each epoch"),
    ],
)
def test_impossible_folds_are_refused(options, message, tmp_path):
    values = {"dataset": write_table(tmp_path / "t.csv"), **SMALL, **options}
    with pytest.raises(UserError, match=message):
        make_job(make_config(values, "test"))


@pytest.mark.parametrize("number", ["1", "-3", "few"])
def test_invalid_number_of_folds_is_refused(number, tmp_path, capsys):
    path = write_table(tmp_path / "t.csv")
    arguments = ["train", "--dataset", path, "--folds", number, "--out", str(tmp_path / "run")]
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 2
    assert "folds" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_batch_size_is_at_most_the_rows_left_by_a_fold(tmp_path):
    """Holding out a fifth of eight training rows leaves six, fewer than a default batch."""
    job = make_job(TrainConfig(dataset=write_table(tmp_path / "t.csv", 10), **SMALL))
    folds = cross_validate(
        make_job(job.config.model_copy(update={"epochs": 2, "batch_size": job.config.batch_size}))
    )
    assert len(folds.models) == 5
