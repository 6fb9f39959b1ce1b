"""The summary before training, and the advice after it."""

from dataclasses import replace

from iwae import TrainConfig
from iwae.config.experiment import write_config
from iwae.runs.setup import make_job
from iwae.runs.summary import describe_plan, late_rise, what_next


def rows(*bounds):
    return [{"epoch": i, "validation_bound": [bound]} for i, bound in enumerate(bounds, start=1)]


def test_a_rise_is_that_of_the_last_tenth_of_all_epochs():
    course = [-5.0] * 17 + [-4.5, -4.6, -4.1]
    assert late_rise(20, rows(*course)) == -4.1 - -4.5
    assert late_rise(20, rows(*course[:10], -1.0, *course[11:])) < 0  # the best one was earlier
    assert late_rise(21, rows(*course)) is None  # patience was over before
    assert late_rise(1, rows(-5.0)) is None  # nothing to compare with
    assert late_rise(20, []) is None
    some = rows(*course)
    for row in some[::2]:
        del row["validation_bound"]
    assert late_rise(20, some) == -4.1 - -4.5


def own(tmp_path, **options):
    lines = "\n".join(f"{i % 7 + 0.5},{(i * i) % 11 + 0.5}" for i in range(60))
    (tmp_path / "t.csv").write_text(f"a,b\n{lines}\n")
    return TrainConfig(dataset=str(tmp_path / "t.csv"), **options)


def test_what_will_be_trained(tmp_path):
    config = own(tmp_path, latent_sizes=(2,), hidden_sizes=((3,),), patience=4, validation=0.1)
    job = make_job(config)
    network, objective, length, average = describe_plan(job).splitlines()
    # Encoder 2*3+3 + 2(3*2+2), decoder 2*3+3 + 3*4+4; the scale of the data is not trained.
    assert network == "network: mlp, 2 - 3 - 2 latents; 50 parameters"
    assert objective == "objective: iwae, k = 16"
    assert length == (
        "training: at most 400 epochs of 2 steps with 16 rows; it stops after 4 validations "
        "without a better bound"
    )
    assert average == (
        "weights: a moving average over about 100 steps, which is validated and saved (--ema None "
        "for the weights themselves)"
    )
    plain = replace(job, config=job.config.model_copy(update={"ema": None}))
    assert describe_plan(plain).splitlines() == [network, objective, length]


def test_what_follows(tmp_path):
    sizes = {"latent_sizes": (1,), "hidden_sizes": ((2,),)}
    for name, more, weights in (("a", {"validation": 0.2}, " --weights best"), ("b", {}, "")):
        run = tmp_path / name
        job = make_job(own(tmp_path, epochs=1, batch_size=10, **sizes, **more))
        write_config(job.config, run / "config.toml")
        assert what_next(run).splitlines() == [
            f"trained models are in {run}/models; measure them with: iwae evaluate {run}{weights}",
            f"ask about the rows of a file with: iwae score {run} FILE --out scores.csv",
        ]
