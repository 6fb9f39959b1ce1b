"""Configurations and presets: valid values, error messages and round trips."""

import tomllib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from pydantic import ValidationError

from iwae.config.experiment import TrainConfig, make_config
from iwae.config.presets import PRESETS, preset
from iwae.config.toml import config_toml_values, read_config, write_config
from iwae.data import DATASETS
from iwae.errors import UserError
from iwae.objectives.declaration import OBJECTIVES
from iwae.runs.configured_stages import configured_schedule
from iwae.training.schedules import AUTHORS_RATES, PAPER_RATES

sizes = st.integers(1, 1000)
rates = st.floats(0, 10, exclude_min=True)


@st.composite
def configs(draw):
    """Draw the values of a valid configuration."""
    values = {
        "dataset": draw(st.text(max_size=12)),  # any characters
        "observation": draw(st.sampled_from(["bernoulli", "gaussian", None])),
        "binarization": draw(st.sampled_from(["dynamic", "static", "threshold", "none", None])),
        "validation": draw(st.one_of(st.none(), st.just("authors"), st.integers(1, 10**6))),
        "activation": draw(st.sampled_from(["tanh", "relu", "softplus"])),
        "objective": draw(st.sampled_from(["elbo", "vae", "iwae"])),
        "k": draw(sizes),
        "learning_rate": draw(rates),
        "seed": draw(st.integers(0, 2**31 - 1)),
        "data_seed": draw(st.integers(0, 2**31 - 1)),
        "binarization_seed": draw(st.integers(0, 2**31 - 1)),
        "shuffle": draw(st.booleans()),
        "threshold": draw(st.floats(0, 10)),
        "patience": draw(st.one_of(st.none(), sizes)),
        "log_every": draw(st.one_of(st.none(), sizes)),
        "init_from": draw(st.one_of(st.none(), st.just("some/run"))),
    }
    values["keep_optimizer"] = values["init_from"] is not None and draw(st.booleans())
    if draw(st.booleans()):
        values["layers"] = draw(sizes)
    else:
        values["latent_sizes"] = draw(st.lists(sizes, min_size=1, max_size=3))
        n = len(values["latent_sizes"])
        values["hidden_sizes"] = draw(st.lists(st.lists(sizes, max_size=3), min_size=n, max_size=n))
    objective = values["objective"]
    values["gradient"] = draw(st.sampled_from([None, *OBJECTIVES[objective].gradients[:2]]))
    values["chunk"] = draw(st.one_of(st.none(), sizes))
    values["free_bits"] = draw(st.floats(0, 10))
    return values


@given(configs())
def test_configuration_round_trips_through_its_file(tmp_path_factory, values):
    config = make_config(values, "here")
    path = tmp_path_factory.mktemp("config") / "config.toml"
    write_config(config, path)
    assert read_config(path) == config
    assert tomllib.loads(path.read_text()) == config_toml_values(config)


def test_defaults_match_the_paper():
    config = TrainConfig()
    assert (config.optimizer, config.schedule, config.epochs) == ("adam", "paper", 3280)
    assert (config.learning_rate, config.batch_size) == (1e-3, 20)
    assert config.sizes() == ((50,), ((200, 200),))
    assert TrainConfig(layers=2).sizes() == ((100, 50), ((200, 200), (100, 100)))


def test_integers_are_accepted_as_floats():
    assert make_config({"learning_rate": 1, "threshold": 0}, "here").learning_rate == 1.0


def test_configuration_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().k = 5  # type: ignore[misc]


# Invalid values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bach_size": 20}, "unknown key 'bach_size'; did you mean 'batch_size'?"),
        ({"zzz": 20}, "unknown key 'zzz'; known: dataset, "),
        ({"k": 0}, "k: .*greater than or equal to 1 .given: 0"),
        ({"k": -1}, "k: .*greater than or equal to 1"),
        ({"k": 1.5}, "k: .*integer"),
        ({"k": "five"}, "k: .*integer"),
        ({"epochs": 0}, "epochs: .*greater than or equal to 1"),
        ({"batch_size": 0}, "batch_size: "),
        ({"replicates": 0}, "replicates: "),
        ({"seed": -1}, "seed: "),
        ({"data_seed": -1}, "data_seed: .*greater than or equal to 0"),
        ({"data_seed": 2**31}, "data_seed: .*less than"),
        ({"k": 2**31}, "k: .*less than"),
        ({"seed": True}, "seed: .*integer .given: True"),
        ({"k": "5"}, "k: .*integer .given: '5'"),
        ({"k": 5.0}, "k: .*integer"),
        ({"output_bias": "no"}, "output_bias: .*boolean .given: 'no'"),
        ({"shuffle": 1}, "shuffle: .*boolean"),
        ({"learning_rate": "0.1"}, "learning_rate: .*number"),
        ({"learning_rate": True}, "learning_rate: .*number"),
        ({"validation": True}, "validation: "),
        ({"latent_sizes": ["2"], "hidden_sizes": [[5]]}, "latent_sizes: .*integer"),
        ({"latent_sizes": [2], "hidden_sizes": [[True]]}, "hidden_sizes: .*integer"),
        ({"shape": "44"}, "shape: "),
        ({"dataset": 3}, "dataset: .*string"),
        ({"seed": 2**31}, "seed: .*less than"),
        ({"learning_rate": 0}, "learning_rate: .*greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate: .*finite"),
        ({"learning_rate": float("inf")}, "learning_rate: .*finite"),
        ({"threshold": -0.1}, "threshold: "),
        ({"validation": -1}, "validation: "),
        ({"validation": "some"}, "validation: "),
        ({"optimizer": "sgd"}, "optimizer: .*'adam', 'paper', 'authors' or 'soap'"),
        ({"activation": "tan"}, "activation: .*'tanh'"),
        ({"layers": 0}, "layers: "),
        ({"latent_sizes": [], "hidden_sizes": []}, "latent_sizes: .*at least 1"),
        ({"latent_sizes": [0], "hidden_sizes": [[5]]}, "latent_sizes: "),
        ({"latent_sizes": [2], "hidden_sizes": [[0]]}, "hidden_sizes: "),
        ({"latent_sizes": [2]}, "latent_sizes names 1 layers, so hidden_sizes must"),
        ({"latent_sizes": [2, 3], "hidden_sizes": [[5]]}, "latent_sizes names 2 layers"),
        ({"hidden_sizes": [[5]]}, "hidden_sizes needs latent_sizes"),
        ({"layers": 2, "latent_sizes": [2], "hidden_sizes": [[5]]}, "layers is 2 but"),
        ({"patience": 3, "validation": 0}, "patience needs held-out examples"),
        ({"threshold": 0.1, "validation": 0}, "threshold needs held-out examples"),
        ({"keep_optimizer": True}, "keep_optimizer needs init_from"),
        ({"objective": "elbo-analytic", "layers": 2}, ".* one stochastic layer only"),
    ],
)
def test_invalid_or_contradictory_values_give_a_one_line_error(values, message):
    with pytest.raises(UserError, match=f"^here: {message}") as caught:
        make_config(values, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"k = ", "cannot be read"),
        (b"k = 5\nk = 6", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n\x00", "cannot be read"),
        (b"[train]\nk = 5", "unknown key 'train'"),
        (b"K = 5", "did you mean 'k'"),
        (b"init_from = 3", "init_from: "),
    ],
)
def test_invalid_configuration_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "experiment.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no experiment file"):
        read_config(tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path)


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_configuration(name):
    entry = preset(name)
    config = entry.config()
    assert config.dataset in DATASETS
    assert config.objective in OBJECTIVES
    assert len(entry.active) in (0, len(config.sizes()[0]))
    assert entry.needs is None or entry.needs in PRESETS
    assert config == make_config(config_toml_values(config), "its file")


def test_presets_include_the_published_tables():
    table1 = {name: entry for name, entry in PRESETS.items() if name.startswith("table1/")}
    assert len(table1) == 20
    for name, entry in table1.items():
        _, dataset, layers, objective = name.split("/")
        config = entry.config()
        assert config.dataset == dataset
        assert f"{len(config.sizes()[0])}l" == layers
        assert f"{config.objective}-k{config.k}" == objective
        assert (config.epochs, config.schedule) == (3280, "paper")
    assert PRESETS["table1/mnist/1l/iwae-k50"].nll == 84.78
    assert PRESETS["table1/omniglot/2l/iwae-k50"].active == (44, 7)


def test_warm_starts_train_for_3_to_the_7_epochs_at_a_tenth_of_the_rate():
    for name, k in (("table2/vae-to-iwae", 50), ("table2/iwae-to-vae", 1)):
        config = preset(name).config(init_from="run")
        schedule, ends = configured_schedule(config, 3000)
        assert ends == (3**7,)
        assert float(schedule.rates[0]) == pytest.approx(1e-4)
        assert config.k == k


def test_preset_overrides_are_validated():
    assert preset("camel/vae-k1").config(k=3).k == 3
    with pytest.raises(UserError, match="did you mean 'k'"):
        preset("camel/vae-k1").config(kk=3)


def test_unknown_preset_suggests_the_nearest_names():
    with pytest.raises(
        UserError, match="unknown preset 'table1/mnist/1l/iwae'; nearest: table1/mnist"
    ):
        preset("table1/mnist/1l/iwae")


# Schedules


@pytest.mark.parametrize(
    ("options", "rates", "ends"),
    [
        ({}, PAPER_RATES, (1, 4, 13, 40, 121, 364, 1093, 3280)),
        ({"schedule": "authors"}, AUTHORS_RATES, (1, 4, 13, 40, 121, 364, 1093, 3280)),
        ({"epochs": 6560}, PAPER_RATES, (2, 8, 26, 80, 242, 728, 2186, 6560)),
        ({"epochs": 10}, PAPER_RATES, (0, 0, 0, 0, 0, 1, 3, 10)),
        ({"schedule": "constant", "epochs": 7}, (1e-3,), (7,)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_schedules_scale_with_the_rate_and_stretch_with_the_epochs(options, rates, ends, scale):
    config = TrainConfig(learning_rate=1e-3 * scale, **options)
    schedule, result = configured_schedule(config, 50)
    assert result == ends
    assert schedule.rates == pytest.approx([scale * rate for rate in rates])
    assert schedule.ends.tolist() == [50 * end for end in ends]


@pytest.mark.parametrize(
    ("options", "max_epochs"),
    [({"schedule": "constant"}, 715827882), ({}, 715827882)],
)
def test_epochs_beyond_the_step_counter_are_refused(options, max_epochs):
    for epochs in (max_epochs + 1, 10**19):
        with pytest.raises(UserError, match=f"epochs is {epochs}, .* at most {max_epochs}"):
            configured_schedule(TrainConfig(epochs=epochs, **options), 3)
    schedule, _ = configured_schedule(TrainConfig(epochs=max_epochs, **options), 3)
    assert (np.diff(schedule.ends) > 0).all()
    assert schedule.ends[-1] == 3 * max_epochs
