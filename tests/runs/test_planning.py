"""The summary before training and the advice after it."""

from dataclasses import replace

import numpy as np
import pytest

from iwae import TrainConfig
from iwae.cli import parsing
from iwae.cli.train import Train, _base_config
from iwae.config.toml import write_config
from iwae.experiments.costs import measured_costs
from iwae.runs import planning
from iwae.runs.jobs import make_job
from iwae.runs.metrics import late_metrics_rise
from iwae.runs.planning import describe_plan, plan_next_steps


def rows(*bounds):
    return [{"epoch": i, "validation_bound": [bound]} for i, bound in enumerate(bounds, start=1)]


def test_late_rise_is_measured_over_the_last_tenth_of_all_epochs():
    course = [-5.0] * 17 + [-4.5, -4.6, -4.1]
    assert late_metrics_rise(20, rows(*course)) == -4.1 - -4.5
    earlier = rows(*course[:10], -1.0, *course[11:])  # contains the best epoch
    assert late_metrics_rise(20, earlier) < 0
    assert late_metrics_rise(21, rows(*course)) is None  # patience ended the run earlier
    assert late_metrics_rise(1, rows(-5.0)) is None  # nothing to compare with
    assert late_metrics_rise(20, []) is None
    validated = rows(*course)
    for row in validated[::2]:
        del row["validation_bound"]
    assert late_metrics_rise(20, validated) == -4.1 - -4.5


def table_config(tmp_path, **options):
    lines = "\n".join(f"{i % 7 + 0.5},{(i * i) % 11 + 0.5}" for i in range(60))
    (tmp_path / "t.csv").write_text(f"a,b\n{lines}\n")
    return TrainConfig(dataset=str(tmp_path / "t.csv"), **options)


def test_plan_describes_the_training(tmp_path):
    config = table_config(
        tmp_path, latent_sizes=(2,), hidden_sizes=((3,),), patience=4, validation=0.1
    )
    job = make_job(config)
    network, objective, length, time, average = describe_plan(job).splitlines()
    # Encoder 2*3+3 + 2(3*2+2), decoder 2*3+3 + 3*4+4; the scale of the data is not trained.
    assert network == "network: mlp, 2 - 3 - 2 latents; 50 parameters"
    assert objective == "objective: iwae, k = 16"
    assert length == (
        "training: at most 400 epochs of 2 steps with 16 rows; it stops after 4 validations "
        "without a better bound"
    )
    # 10 s to start, and 400 epochs of 6 ms; so few parameters add almost nothing.
    assert time == (
        "time: about 12 s on two cores, less if it stops early; the time left is measured as it "
        "trains"
    )
    assert average == (
        "weights: a moving average over about 100 steps, which is validated and saved (--ema None "
        "for the weights themselves)"
    )
    plain = replace(job, config=job.config.model_copy(update={"ema": None}))
    assert describe_plan(plain).splitlines() == [network, objective, length, time]


@pytest.mark.parametrize("k", [5, 50])
def test_expected_step_time_is_close_to_the_measured_one(tmp_path, k):
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (50, 784)))
    sizes = {"latent_sizes": (50,), "hidden_sizes": ((200, 200),), "batch_size": 20}
    job = make_job(TrainConfig(dataset=str(tmp_path / "bits.npy"), k=k, epochs=1, **sizes))
    steps = 2 + planning.EPOCH_STEPS
    expected = (planning.planned_seconds(job) - planning.START_SECONDS) / steps * 1000
    measured = measured_costs()["ms_per_step"][f"28x28 1l 50 iwae k{k} batch20"]["alone"]
    assert 2 / 3 < expected / measured < 3 / 2


def test_advice_to_train_longer_keeps_all_other_settings(tmp_path, monkeypatch):
    run, sizes = tmp_path / "run", {"latent_sizes": (1,), "hidden_sizes": ((2,),)}
    config = make_job(table_config(tmp_path, columns=("a=gaussian-shared",), **sizes)).config
    write_config(config, run / "config.toml")
    monkeypatch.setattr(planning, "read_metrics", lambda _: rows(*[-5.0] * 399, -3.0))
    advice = plan_next_steps(run).splitlines()[1]
    assert "still rising, by 2.00 nats over the last tenth of the 400 epochs" in advice
    base, rest = _base_config(advice.partition("iwae train ")[2].split())
    chosen = parsing.parse(Train, "train", rest, default=Train(base))
    assert chosen.config == config.model_copy(update={"epochs": 800})
    assert (config.patience, config.ema) == (100, 0.99)


def test_next_steps_name_the_commands(tmp_path):
    sizes = {"latent_sizes": (1,), "hidden_sizes": ((2,),)}
    for name, more, weights in (("a", {"validation": 0.2}, " --weights best"), ("b", {}, "")):
        run = tmp_path / name
        job = make_job(table_config(tmp_path, epochs=1, batch_size=10, **sizes, **more))
        write_config(job.config, run / "config.toml")
        assert plan_next_steps(run).splitlines() == [
            f"trained models are in {run}/models; measure them with: iwae evaluate {run}{weights}",
            f"ask about the rows of a file with: iwae score {run} FILE --out scores.csv",
        ]
