"""The command line: what it takes, what it prints where, and how it says what is wrong."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small
from iwae.cli import COMMANDS, interrupts, main, parsing
from iwae.cli.jax_setup import cores_for_jax, set_up_jax, trim_jax_cache
from iwae.cli.queue import parse_queue_budget
from iwae.cli.train import Train
from iwae.config.experiment import TrainConfig
from iwae.config.presets import PRESETS
from iwae.config.stages import stages_from_text
from iwae.config.toml import write_config
from iwae.objectives.declaration import GRADIENTS, OBJECTIVES
from iwae.runs import planning, start_and_resume
from iwae.runs.measurement_progress import measurement_progress
from iwae.runs.model_files import load_model
from iwae.training import progress
from iwae.training.loop import NonFiniteError, Report
from iwae.training.progress import show_training
from small import PATIENT, finished


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No test sees this machine's data, or changes the set-up of JAX."""
    monkeypatch.delenv("IWAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def iwae(capfd):
    """Run a command: its exit status, standard output and standard error."""

    def call(*words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as leaving:
            status = leaving.code
        return status, *capfd.readouterr()

    return call


def chosen(monkeypatch):
    """What `iwae train` would do, instead of doing it."""
    calls = []

    def note(name):
        def instead(*arguments, track, show=None):  # noqa: ARG001
            calls.append((name, *arguments, *track))
            return iter(())

        return instead

    monkeypatch.setattr(start_and_resume, "start_run", note("start"))
    monkeypatch.setattr(start_and_resume, "resume_run", note("resume"))
    monkeypatch.setattr(planning, "plan_next_steps", lambda run: f"after {run}")
    return calls


# Help and lists

LIGHT = """
import sys
from iwae.cli import COMMANDS, main

lists = [["--version"], ["data", "list"], ["presets"], ["data", "verify"]]
helps = [["--help"], ["help"], [], *([name, "--help"] for name in COMMANDS)]
mistyped = ["train", "--preset", "digits/iwae-k20", "--dataset", "digit", "--out", "nowhere"]
for words in [*helps, *lists, ["nonsense"], mistyped]:
    try:
        main(words)
    except SystemExit as leaving:
        assert leaving.code == 0, words
    heavy = {"jax", "scipy", "sklearn", "matplotlib", "numpyro", "equinox", "huggingface_hub"}
    heavy &= sys.modules.keys()
    assert not heavy, (words, heavy)
"""


def test_help_lists_and_a_mistyped_data_set_answer_without_importing_jax():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: iwae COMMAND") == 3


def test_help_names_every_command_and_every_option(iwae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # one box below the other
    status, out, _ = iwae("--help")
    assert status == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE)
        status, out_command, _ = iwae(name, "--help")
        assert status == 0
        assert out_command.startswith(f"usage: iwae {name}")
        # A default is a value, or words where the program computes it.
        assert not re.search(r"None[},|]|default: (None|''|)\)|default[^()]*\) \(def", out_command)
    _, out, _ = iwae("train", "--help")
    shown = re.findall(r"^│ --([a-z-]+)", out, re.MULTILINE)
    fields = [field.replace("_", "-") for field in TrainConfig.model_fields]
    assert shown[-len(fields) :] == fields
    plain = " ".join(re.sub(r"[│\n]", " ", out).split())
    for words in (
        "(default: 3280; 400 for your own files, with early stopping)",
        "(default: 1; 16 for your own files, and with --objective iwae)",
        "(default: never; 100 for your own files without --epochs)",
    ):
        assert words in plain
    groups = re.findall(r"─ (\w+) options ─", out)
    assert groups == ["data", "model", "objective", "optimisation", "run"]
    for group, first in zip(
        groups, ("dataset", "layers", "objective", "epochs", "seed"), strict=True
    ):
        assert re.search(rf"─ {group} options ─.*\n│ --{first} ", out)


def test_the_help_of_an_action_lists_its_options(iwae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = iwae("reproduce", "list", "--help")
    assert set(re.findall(r"^│ --([a-z-]+)", out, re.MULTILINE)) == {
        *("out", "recipe", "seeds", "epochs-scale"),
    }
    _, out, _ = iwae("reproduce", "run", "--help")
    assert "--budget" in out
    assert "--format" not in out


def test_none_unsets_an_option_of_a_file():
    found = parsing.parse(
        Train, "train", ["--patience", "None"], default=Train(TrainConfig(patience=3))
    )
    assert found.config == TrainConfig()


def test_both_ways_to_start_it():
    for command in (
        ["-m", "iwae"],
        ["-c", "import sys; from iwae.cli import main; sys.exit(main())"],
    ):
        done = subprocess.run(
            [sys.executable, *command, "--version"], capture_output=True, text=True, check=True
        )
        assert re.fullmatch(r"iwae \d+\.\d+\.\d+\n", done.stdout)


INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "tyro":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from iwae.__main__ import main

sys.exit(main())
"""


def test_ctrl_c_is_no_traceback_while_modules_are_imported():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("then", "status", "err"),
    [("waits", 130, "interrupted\n"), ("breaks", 130, "interrupted\n"), ("ends", 0, "")],
)
def test_ctrl_c_in_a_finaliser_is_not_lost(monkeypatch, capsys, then, status, err):
    class Trap:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def work(_):
        Trap()
        if then == "breaks":  # as by a module of which only half was imported
            raise AttributeError("partially initialized module")
        time.sleep(30 * (then == "waits"))
        return 0

    monkeypatch.setitem(COMMANDS, "presets", COMMANDS["presets"]._replace(run=work))
    # In the background of a shell, Python finds that SIGINT is ignored, and leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["presets"]) == status
        time.sleep(0.1)  # it is not repeated later
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == err


@pytest.mark.parametrize(("handler", "sent"), [(signal.SIG_DFL, []), (lambda *_: None, [5])])
def test_a_lost_interrupt_is_not_sent_without_a_handler(monkeypatch, handler, sent):
    calls = []
    monkeypatch.setattr(signal, "getsignal", lambda _: handler)
    monkeypatch.setattr(signal, "pthread_kill", lambda thread, _: calls.append(thread))
    interrupts._send(signal.SIGTERM, 5)
    assert calls == sent


def jax_options(monkeypatch):
    """What a command sets up in JAX, instead of setting it up."""
    options = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    set_up_jax()
    return options


def test_every_compiled_program_is_kept(monkeypatch, tmp_path):
    options = jax_options(monkeypatch)
    assert options["jax_compilation_cache_dir"] == str(tmp_path / "cache" / "iwae" / "compiled")
    assert options["jax_persistent_cache_min_compile_time_secs"] == 0


def test_programs_not_used_for_longest_leave_a_cache_that_is_too_large(tmp_path):
    for age, name in enumerate(("new", "read", "old")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - 100 * age,) * 2)
    os.utime(tmp_path / "read", (1e9, 1e8))  # compiled long ago, and used since
    trim_jax_cache(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    trim_jax_cache(tmp_path, 299)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "read"}


def test_where_compiled_programs_cannot_be_kept_they_are_not(monkeypatch, tmp_path):
    (tmp_path / "cache").touch()
    assert "jax_compilation_cache_dir" not in jax_options(monkeypatch)


def test_presets_show_published_numbers_and_what_they_need(iwae):
    _, out, _ = iwae("presets")
    assert len(out.splitlines()) == len(PRESETS)
    _, out, _ = iwae("presets", "table[12]/*50")
    assert re.search(r"table1/mnist/1l/iwae-k50 +NLL +84\.78 +active +25 ", out)
    _, out, _ = iwae("presets", "table2/*")
    assert "--init-from a run of table1/mnist/1l/vae-k1" in out


def test_a_reader_that_has_seen_enough_is_no_error():
    script = "import sys; from iwae.cli import main; sys.exit(main(['presets']))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# From words to a configuration


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--dataset mnist --objective iwae --k 50 --layers 2 --epochs 10 --replicates 3",
            {"k": 50, "layers": 2, "epochs": 10, "replicates": 3},
        ),
        (
            "--latent-sizes 100 50 --hidden-sizes 200,200 100,100",
            {"latent_sizes": (100, 50), "hidden_sizes": ((200, 200), (100, 100))},
        ),
        ("--no-shuffle --no-output-bias", {"shuffle": False, "output_bias": False}),
        ("--validation authors", {"validation": "authors"}),
        ("--validation 100 --patience 3", {"validation": 100, "patience": 3}),
        ("--preset digits/iwae-k20 --k 5", {"dataset": "digits", "k": 5, "validation": 200}),
        ("--preset=table1/omniglot/2l/vae-k5", {"dataset": "omniglot", "objective": "vae", "k": 5}),
        (
            "--learning-rate 1e-4 --optimizer authors",
            {"learning_rate": 1e-4, "optimizer": "authors"},
        ),
    ],
)
def test_options_become_a_configuration(iwae, monkeypatch, tmp_path, words, expected):
    calls = chosen(monkeypatch)
    assert iwae("train", *words.split(), "--out", tmp_path / "run")[0] == 0
    ((name, config, run, data_dir),) = calls
    assert (name, run, data_dir) == ("start", tmp_path / "run", None)
    assert {field: getattr(config, field) for field in expected} == expected


STAGES = "iwae k=5 epochs=3, iwae k=50 backward=8 epochs=2"


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (("--stages", STAGES), 5),
        ((f"--stages={STAGES}",), 5),
        (("--preset", "digits/iwae-k20", "--stages", STAGES), 5),
        (("--epochs", "10", "--stages", STAGES), 10),
        (("--stages", STAGES, "--epochs=1"), 1),
    ],
)
def test_stages_have_their_own_epochs_unless_told(iwae, monkeypatch, tmp_path, words, epochs):
    calls = chosen(monkeypatch)
    assert iwae("train", *words, "--out", tmp_path / "run")[0] == 0
    ((_, config, *_),) = calls
    assert config.epochs == epochs
    assert config.stages == stages_from_text(STAGES)


def test_epochs_stretch_the_stages_of_a_file(iwae, monkeypatch, tmp_path):
    calls = chosen(monkeypatch)
    write_config(TrainConfig(stages=stages_from_text(STAGES)), tmp_path / "own.toml")
    words = ("train", tmp_path / "own.toml", "--out", tmp_path / "run")
    for more in ((), ("--epochs", "10"), ("--stages", "epochs=4"), ("--backward", "3")):
        assert iwae(*words, *more)[0] == 0
    assert [config.epochs for _, config, *_ in calls] == [5, 10, 4, 5]
    assert [config.backward for _, config, *_ in calls] == [None, None, None, 3]
    assert calls[1][1].stage_epochs() == (6, 4)


def test_options_change_what_an_experiment_file_says(iwae, monkeypatch, tmp_path):
    calls = chosen(monkeypatch)
    small.write_config(tmp_path / "experiment.toml")
    words = ("train", tmp_path / "experiment.toml", "--out", tmp_path / "run", "--data-dir", "d")
    assert iwae(*words)[0] == iwae(*words, "--k", "5")[0] == 0
    assert calls[0][1] == small.config()
    assert calls[1][1] == small.config(k=5)
    assert str(calls[0][3]) == "d"


def test_resume_goes_to_the_run(iwae, monkeypatch):
    calls = chosen(monkeypatch)
    assert iwae("train", "--resume", "run")[0] == 0
    assert iwae("train", "--resume", "run", "--stage", "3", "--data-dir", "d")[0] == 0
    assert [(name, str(run), stage) for name, run, _, stage in calls] == [
        ("resume", "run", None),
        ("resume", "run", 3),
    ]


# What is wrong

WRONG = [
    ("nonsense", "unknown command 'nonsense'; known: train, evaluate"),
    ("trian", "unknown command 'trian'; did you mean 'train'?"),
    ("train", "name a folder for the run: --out RUN"),
    ("train --out {new} --stage 1", "--stage needs --resume"),
    ("train nowhere.toml --out {new}", "no experiment file nowhere.toml"),
    ("train {folder} --out {new}", "cannot be read"),
    ("train {binary} --out {new}", "cannot be read"),
    (
        "train {run}/config.toml --preset digits/iwae-k20",
        "an experiment file or --preset, not both",
    ),
    (
        "train --preset digit/iwae --out {new}",
        "unknown preset 'digit/iwae'; nearest: digits/iwae-k20",
    ),
    ("train --preset", "Missing value for argument '--preset'"),
    ("train --preset table2/vae-to-iwae --out {new}", "--init-from RUN"),
    ("train --kk 5 --out {new}", "--k INT"),
    ("train --k five --out {new}", "Error parsing --k"),
    ("train --stages k=2 --out {new}", "--stages: stage 1 needs epochs"),
    ("train --stages kk=2 --epochs 3 --out {new}", "stage 1: unknown key 'kk'"),
    ("train --backward 0 --out {new}", "backward: Input should be greater than or equal to 1"),
    ("train --objective tvo --k 4 --backward 2 --out {new}", "backward does not work with tvo"),
    ("train --k 0 --out {new}", "k: Input should be greater than or equal to 1 (given: 0)"),
    ("train --k -1 --out {new}", "k: Input should be greater than or equal to 1 (given: -1)"),
    ("train --epochs 1.5 --out {new}", "Error parsing --epochs"),
    ("train --learning-rate nan --out {new}", "learning_rate: Input should be a finite number"),
    ("train --seed -1 --out {new}", "seed: "),
    ("train --latent-sizes 2 --out {new}", "so hidden_sizes must have as many lists"),
    (
        "train --latent-sizes 2 --hidden-sizes 8,x --out {new}",
        "'8,x' must be lists of whole numbers",
    ),
    ("train --layers 2 --latent-sizes 2 --hidden-sizes 5 --out {new}", "layers is 2 but"),
    ("train --optimizer sgd --out {new}", "'authors'"),
    ("train --dataset nonsense --out {new}", "unknown data set 'nonsense'"),
    ("train --dataset mnits --out {new}", "did you mean 'mnist'"),
    ("train --dataset nowhere.npy --out {new}", "nowhere.npy cannot be read"),
    ("train --dataset {binary}.npy --out {new}", "truncated, corrupt"),
    ("train --dataset digits --objective iwea --out {new}", "did you mean iwae?"),
    ("train --dataset digits --objective elbo-analytic --layers 2 --out {new}", "one stochastic"),
    ("train --dataset digits --batch-size 2000 --out {new}", "choose a smaller batch"),
    ("train --dataset digits --validation 2000 --out {new}", "validation must hold out"),
    ("train --dataset digits --validation authors --out {new}", "not 'authors'"),
    ("train --dataset digits --patience 3 --out {new}", "patience needs held-out examples"),
    ("train --dataset digits --threshold 0.1 --out {new}", "threshold needs held-out examples"),
    ("train --dataset digits --validate-every 2 --out {new}", "validate_every needs held-out"),
    (
        "train --dataset digits --validation 100 --epochs 3 --validate-every 4 --out {new}",
        "validate_every is 4, but the run ends after 3 epochs",
    ),
    ("train --dataset digits --epochs 10000000000000000000 --out {new}", "at most 30246248"),
    ("train --dataset digits --binarization none --out {new}", "binarise them"),
    ("train --dataset camel --binarization dynamic --out {new}", "contradicts"),
    ("train --dataset digits --keep-optimizer --out {new}", "keep_optimizer needs init_from"),
    ("train --dataset digits --init-from {folder} --out {new}", "no model in"),
    ("train --dataset digits --init-from {run} --out {new}", "init_from: the size of an example"),
    ("train {run}/config.toml --out {run}", "already holds a run; continue it with --resume"),
    ("train {run}/config.toml --out {folder}", "is not empty"),
    ("train {run}/config.toml --out {binary}", "is a file"),
    ("train --resume {folder}", "holds no run: config.toml is missing"),
    ("train --resume {binary}", "holds no run"),
    ("train --resume nowhere", "holds no run"),
    ("train --resume {run} --k 5", "takes the configuration from the run"),
    ("train --resume {run} --out {new}", "leave out --out"),
    ("train --resume {run} --preset digits/iwae-k20", "leave out --preset"),
    ("train {run}/config.toml --resume {run}", "from the run: leave out"),
    ("train --resume {run} --k 1", "from the run: leave out --k"),
    ("train --dataset=mnist --resume {run}", "leave out --dataset=mnist"),
    ("train --resume {run} --no-keep-optimizer", "leave out --no-keep-optimizer"),
    ("train --resume {run} --quiet --verbose", "--quiet and --verbose contradict each other"),
    ("train --resume {run} --stage 8", "no stage 8"),
    ("train --resume {run} --stage x", "Error parsing --stage"),
    ("train one.toml two.toml", "no experiment file one.toml"),
    ("evaluate", "required"),
    ("evaluate nowhere", "nowhere holds no run"),
    ("evaluate {folder}", "holds no run"),
    ("evaluate {binary}", "holds no run"),
    ("evaluate {run} --k", "name at least one k"),
    ("evaluate {run} --k 0", "k is 0"),
    ("evaluate {run} --k -5", "k is -5"),
    ("evaluate {run} --k x", "--k"),
    ("evaluate {run} --k 3000000000", "k is 3000000000; particles are counted in 32 bits"),
    ("evaluate {run} --split tests", "invalid choice 'tests' for argument '--split'"),
    ("evaluate {run} --weights last", "'final', 'best'"),
    ("evaluate {run} --seed -1", "seed is -1"),
    ("evaluate {run} --examples 0", "examples is 0; the test split has 50"),
    ("evaluate {run} --batch-size 0", "batch_size is 0"),
    ("evaluate {unvalidated} --weights best", "has no best weights"),
    ("evaluate {unvalidated} --split validation", "is empty"),
    ("figures", "required"),
    ("figures {folder}", "holds no run"),
    ("figures {unvalidated} --weights best", "has no best weights"),
    ("presets zzz*", "unknown preset 'zzz*'"),
    ("data", "required"),
    ("data remove mnist", "'list', 'fetch', 'verify'"),
    ("data list mnist", "takes no name"),
    ("data fetch", "name the data set: iwae data fetch NAME"),
    ("data fetch nonsense", "unknown data set 'nonsense'"),
    ("data verify", "name the data set"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[words for words, _ in WRONG])
def test_mistakes_are_named_without_a_traceback(iwae, tmp_path, words, message):
    binary = tmp_path / "folder" / "binary"
    binary.parent.mkdir()
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    binary.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00\xff")
    places = {
        "new": tmp_path / "new",
        "folder": binary.parent,
        "binary": binary,
        "run": finished(),
        "unvalidated": small.unvalidated(),
    }
    status, out, err = iwae(*words.format(**places).split())
    assert status == 2
    assert message in " ".join(re.sub("[│─╭╮╰╯]", " ", err).split())
    assert "Traceback" not in err
    assert out == ""
    if err.startswith("iwae: "):
        assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_the_system_refuses_is_one_line(iwae, tmp_path):
    (tmp_path / "file").touch()
    config = tmp_path / "experiment.toml"
    small.write_config(config)
    status, out, err = iwae("train", config, "--out", tmp_path / "file" / "run")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"iwae: .*Not a directory.*", err.splitlines()[-1])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"),
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory"),
        ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 2048 bytes."),
        SystemError("error return without exception set"),
        ImportError("lib.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
    ],
)
def test_too_little_memory_is_one_line(iwae, tmp_path, monkeypatch, error):
    monkeypatch.setattr(start_and_resume, "start_run", lambda *_, **__: raised(error))
    status, out, err = iwae("train", "--out", tmp_path / "run")
    assert (status, out) == (1, "")
    assert err == "iwae: out of memory: choose a smaller k, batch size or model\n"


def test_faults_of_the_program_are_not_hidden(iwae, tmp_path, monkeypatch):
    for kind in (jax.errors.JaxRuntimeError, RuntimeError, SystemError):
        error = kind("INTERNAL: something")
        monkeypatch.setattr(
            start_and_resume, "start_run", lambda *_, error=error, **__: raised(error)
        )
        with pytest.raises(kind, match="something"):
            iwae("train", "--out", tmp_path / "run")


def raised(error):
    yield from ()
    raise error


def test_a_run_that_breaks_has_status_one_and_says_where(iwae, tmp_path, monkeypatch):
    state, best = small.newest(finished())[:2]
    error = NonFiniteError("training stopped at step 7: the bound is not finite", state, best)

    def broken(*_, **__):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        yield from raised(error)

    monkeypatch.setattr(start_and_resume, "start_run", broken)
    status, out, err = iwae("train", "--out", tmp_path / "run")
    assert (status, out) == (1, "")
    assert err == (
        "iwae: training stopped at step 7: the bound is not finite; the last good state is in "
        f"{tmp_path}/run/checkpoints\n"
    )


def test_a_result_that_is_not_a_number_has_status_one(iwae, tmp_path):
    model = load_model(finished() / "models" / "final-0")
    broken = eqx.tree_at(lambda m: m.encoder[0].log_scale.bias, model, jnp.full(2, 1e3))
    status, out, err = iwae("evaluate", small.run_from_models(tmp_path / "run", [broken]), "--k", 5)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"iwae: the log-likelihood of example 0 is not a number.*\n", err)


# Train, evaluate, figures

ASKED = {
    *("log_likelihood", "stderr", "n", "k", "split", "dataset", "test_sha256"),
    "active_units",
}


@pytest.fixture
def experiment(tmp_path):
    small.write_config(tmp_path / "experiment.toml")
    return tmp_path / "experiment.toml"


def test_training_says_how_it_goes_and_where_the_models_are(iwae, experiment, tmp_path):
    status, out, err = iwae("train", experiment, "--out", tmp_path / "run", "--verbose")
    run = tmp_path / "run"
    assert status == 0
    measure = f"iwae evaluate {run} --weights best"
    where, rising = out.splitlines()
    assert where == f"trained models are in {run}/models; measure them with: {measure}"
    assert rising.startswith("the validation bound was still rising, by 0.")
    *told, _, _, _, _ = err.splitlines()
    lines = err.splitlines()[len(told) :]
    assert told[0].startswith("pictures.npz: 400 rows of 4 x 4 values, taken as bernoulli")
    assert any("300 to train, 50 to validate, 50 to test" in line for line in told)
    assert told[-2].startswith("training: 4 epochs of 30 steps with 10 rows")
    assert told[-1].startswith("time: about ")
    for number, line in enumerate(lines, 1):
        pattern = rf"epoch {number}, \d+ steps/s, bound -\d+\.\d\d, validation -\d+\.\d\d(, .*)?"
        assert re.fullmatch(pattern, line)
    status, out, err = iwae("train", "--resume", run, "--quiet")
    assert (status, out, err) == (0, "", "")


def test_quiet_is_quiet_and_lines_are_few_by_default(iwae, experiment, tmp_path):
    assert iwae("train", experiment, "--out", tmp_path / "quiet", "--quiet") == (0, "", "")
    _, _, err = iwae("train", experiment, "--out", tmp_path / "plain", "--epochs", 2)
    line = err.splitlines()[-1]
    assert re.fullmatch(r"epoch 2, \d+ steps/s, bound -\S+, validation -\S+", line)
    assert err.count("epoch ") == 1


def test_json_is_exactly_one_object(iwae):
    status, out, _ = iwae("evaluate", finished(), "--k", 5, 1, "--json")
    assert status == 0
    record = json.loads(out, parse_constant=pytest.fail)
    assert out.count("\n") == 1
    assert record.keys() >= ASKED
    assert (record["n"], record["k"], record["split"]) == (50, 5, "test")
    assert record["active_units"] == [2]
    assert record == json.loads((finished() / "evaluations" / "test-final-k5.json").read_text())


@pytest.mark.slow
def test_json_of_replicates_lists_what_is_asked_of_each(iwae):
    run = finished(replicates=2, **PATIENT)
    status, out, _ = iwae("evaluate", run, "--k", 5, "--json", "--weights", "best")
    record = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    assert record.keys() >= ASKED | {"between_replicates_sd"}
    assert len(record["replicates"]) == 2
    for one in record["replicates"]:
        assert one.keys() >= ASKED
    status, out, _ = iwae("evaluate", run, "--k", 5, "--weights", "best")
    first, *_, last, hint = out.splitlines()
    assert first == "pictures.npz test, 50 examples, best weights; nats per example"
    mean, spread = record["log_likelihood"], record["between_replicates_sd"]
    stderr = record["stderr"]
    assert last == (
        f"  mean L_5 = {mean:.3f} +- {stderr:.3f}, standard deviation between replicates "
        f"{spread:.3f}"
    )
    assert hint.endswith("iwae evaluate RUN --k 50 --binarizations 8 --weights best")


def test_the_result_in_words_has_the_standard_error(iwae):
    status, out, err = iwae("evaluate", finished(), "--k", 5, 1)
    assert (status, err) == (0, "")
    number = r"-\d+\.\d{3} \+- \d+\.\d{3}  \(effective sample size \d+\.\d"
    assert re.fullmatch(
        rf"pictures\.npz test, 50 examples, final weights; nats per example\n"
        rf"  L_1 = {number}\)\n  L_5 = {number}; Monte Carlo error \d\.\d{{3}}, k-hat unknown\)\n"
        rf"  active units 2 \(authors' definition: \d\)\n"
        rf"  pixel draw error not measured: iwae evaluate RUN --k 50 --binarizations 8\n",
        out,
    )


def test_one_example_has_no_standard_error(iwae):
    status, out, _ = iwae("evaluate", finished(), "--k", 5, "--examples", 1)
    assert status == 0
    assert "nan" not in out
    assert "None" not in out
    status, out, _ = iwae("evaluate", finished(), "--k", 5, "--examples", 1, "--json")
    assert json.loads(out, parse_constant=pytest.fail)["stderr"] is None


@pytest.mark.slow
def test_figures_prints_the_files_that_it_drew(iwae):
    status, out, _ = iwae("figures", finished())
    assert status == 0
    assert len(out.splitlines()) >= 10
    assert set(out.splitlines()) == {str(path) for path in (finished() / "figures").iterdir()}


def test_data_that_are_bundled_are_verified(iwae):
    status, out, _ = iwae("data", "verify", "digits")
    assert status == 0
    assert out.startswith("ok  digits: ")


def test_data_that_are_bundled_need_not_be_fetched(iwae):
    words = "digits comes with iwae: there is nothing to fetch\n"
    assert iwae("data", "fetch", "digits") == (0, words, "")


def test_data_that_are_damaged_are_said_to_be(iwae, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03")
    status, out, err = iwae("data", "verify", "mnist", "--data-dir", tmp_path)
    assert (status, err) == (1, "")
    assert re.search(rf"BAD {tmp_path}/train-images-idx3-ubyte: truncated", out)


# On a terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar(monkeypatch):
    reports = [
        Report(
            *(30 * e, e, True, 30, np.array([-9.5]), {}, np.array([-9.0])),
            *(np.array([True]), 30, 0.1, 0, e / 4),
        )
        for e in (1, 2)
    ]
    monkeypatch.setattr(sys, "stderr", Terminal())
    show_training(iter(reports))
    assert "epoch 2, 300 steps/s, bound -9.50, validation -9.00" in sys.stderr.getvalue()
    assert "50%" in sys.stderr.getvalue()
    slabs = [{"ess": np.zeros(20)}, {"ess": np.zeros(30)}]
    assert list(measurement_progress(quiet=False)(iter(slabs), 50, "replicate 0, k=5")) == slabs
    assert "replicate 0, k=5" in sys.stderr.getvalue()


def test_without_a_terminal_there_are_no_control_characters(iwae, experiment, tmp_path):
    _, out, err = iwae("train", experiment, "--out", tmp_path / "run", "--epochs", 1)
    assert (out + err).replace("\n", "").isprintable()


# Other methods


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--temperatures 50",
            "--temperatures does not apply to --method is; it applies to ais, bdmc",
        ),
        ("--method ais --k 5", "--k does not apply to --method ais; it applies to is, bdmc"),
        ("--method bdmc --split train", "--split does not apply to --method bdmc"),
        ("--method bdmc --k 5 6", "--method bdmc takes one --k"),
        ("--method rate-distortion --start prior", "--start does not apply to"),
        (
            "--method ais --schedule cubic",
            "unknown schedule 'cubic': give sigmoid, linear, adaptive, or a file",
        ),
        ("--method ais --schedule WORDS", "is not a list of numbers"),
        ("--method ais --schedule NUMBERS", "temperatures is 3; a tenth of them"),
    ],
)
def test_options_that_do_not_go_with_a_method_are_refused(iwae, tmp_path, words, message):
    (tmp_path / "WORDS").write_text("0 half 1")
    (tmp_path / "NUMBERS").write_text("0, 0.5\n1")
    words = [tmp_path / word if word.isupper() else word for word in words.split()]
    status, out, err = iwae("evaluate", finished(), *words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


@pytest.fixture(scope="module")
def annealed(tmp_path_factory):
    """A run of this module's own, for records that others need not see."""
    return small.unmeasured(finished(), tmp_path_factory.mktemp("annealed") / "run")


@pytest.mark.slow
def test_annealing_says_how_sure_it_is(iwae, annealed):
    path = "--temperatures", 20, "--chains", 4, "--leapfrog", 2
    status, out, err = iwae("evaluate", annealed, "--method", "bdmc", "--examples", 10, *path)
    assert (status, err) == (0, "")
    gap = r"between -\S+ \+- \S+ and -\S+ \+- \S+, gap -?\S+ \+- \S+"
    rows = ("annealing", "annealing, reverse among forward chains", "5000 importance samples")
    assert re.search("".join(rf"  {row}: +{gap}\n" for row in rows), out)
    words = "evaluate", annealed, "--method", "ais", "--examples", 20, *path
    status, out, err = iwae(*words, "--json")
    record = json.loads(out, parse_constant=pytest.fail)
    assert (status, err) == (0, "")
    assert record.keys() >= ASKED
    assert (record["n"], record["verdict"]["bdmc_gap"]) == (20, pytest.approx(0, abs=1))
    status, out, _ = iwae(*words)
    assert out.startswith("pictures.npz test, 20 examples (a random subset")
    shown = record.get("whole") or record  # the run may have been measured on all examples
    assert f"AIS_20 = {shown['log_likelihood']:.3f} +- {shown['stderr']:.3f}" in out
    assert f"{record['verdict']['word']} (tolerance 0.5): {record['verdict']['reason']}" in out


@pytest.mark.slow
def test_a_curve_is_announced(iwae, annealed):
    words = "--temperatures", 8, "--chains", 2, "--leapfrog", 2, "--examples", 4
    status, out, _ = iwae("evaluate", annealed, "--method", "rate-distortion", *words)
    assert status == 0
    assert "at beta = 1: -" in out


@pytest.mark.slow
def test_information_splits_the_gap_where_it_can(iwae, annealed):
    words = "evaluate", annealed, "--method", "information"
    iwae("evaluate", annealed, "--k", 5)
    path = "--temperatures", 20, "--chains", 4, "--leapfrog", 2
    iwae("evaluate", annealed, "--method", "ais", "--examples", 20, *path)
    record = json.loads(iwae(*words, "--json")[1])
    assert record["log_likelihood"] == pytest.approx(-record["rate"] - record["distortion"])
    noise = record["mutual_information_lower_stderr"] + record["mutual_information_upper_stderr"]
    assert record["mutual_information_lower"] < record["mutual_information_upper"] + 3 * noise
    gap = record["gap"]
    assert (gap["n"], gap["bound"], gap["log_p"]) == (20, "L_5", "AIS_20")
    assert gap["total"] == pytest.approx(gap["recovered"] + gap["remaining"])
    status, out, _ = iwae(*words)
    assert status == 0
    assert f"AIS_20 - ELBO = {gap['total']:.3f} +- " in out


def test_runs_are_compared_in_a_table(iwae, annealed, tmp_path):
    iwae("evaluate", annealed, "--k", 5)
    status, out, _ = iwae("compare", annealed, annealed, "--estimator", "L_5")
    assert status == 0
    assert re.fullmatch(
        r"L_5, test, 50 examples in common, final weights; nats per example\n"
        r"  \S+  -\S+ \+- \S+\n"
        r"  \S+  -\S+ \+- \S+  \+0\.000 \+- 0\.000 to the first, which may be chance\n",
        out,
    )
    table = tmp_path / "table.csv"
    status, out, _ = iwae("compare", annealed, annealed, "--json", "--csv", table)
    assert table.read_text().count(",L_5,5,") == 2  # the same run twice
    assert json.loads(out)["n"] == 50  # twenty annealed are too few to be preferred
    assert iwae("compare", annealed)[0] == 2


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_evaluation_that_is_stopped_says_that_it_goes_on(
    iwae, annealed, monkeypatch, ctrl_c, number, expected
):
    def stopped(*_, **__):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("iwae.results.likelihood.evaluate_run", stopped)
    status, out, err = iwae("evaluate", annealed)
    assert (status, out) == (expected, "")
    assert err == f"stopped by {number.name}; repeat the command to resume\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is ctrl_c


# Objectives and gradients


def test_objectives_are_listed_with_what_goes_with_them(iwae):
    status, out, err = iwae("objectives")
    assert (status, err) == (0, "")
    for name, entry in {**OBJECTIVES, **GRADIENTS}.items():
        assert f"\n{name:15} {entry[0]}" in f"\n{out}"
    status, out, _ = iwae("objectives", "ciwae")
    assert status == 0
    assert "gradients reparam, stl, dreg, gdreg, vimco, vimco-arithmetic; options --k --beta" in out
    assert "\nmiwae" not in out
    status, _, err = iwae("objectives", "zzz")
    assert (status, err) == (
        2,
        "iwae: no objective matches 'zzz'; list all with `iwae objectives`\n",
    )


def test_what_does_not_go_together_is_refused_before_anything_is_written(iwae, tmp_path):
    words = "--dataset", small.pictures(), "--out", tmp_path / "run"
    for options, reason in {
        ("--objective", "rws", "--gradient", "dreg"): "use it with iwae, miwae",
        ("--objective", "miwae"): "miwae needs m, e.g. m = 8",
        ("--objective", "iwae", "--beta", "0.5"): "beta does not apply to iwae",
        ("--objective", "ciwae", "--beta", "much"): "beta",
        ("--objective", "aiwae", "--encoder-objective", "elbo-analytic", "--layers", 2): "closed",
        ("--kl-warmup", 9, "--epochs", 3): "kl_warmup is 9, but epochs is 3: reduce it",
    }.items():
        status, out, err = iwae("train", *words, *options)
        assert (status, out) == (2, "")
        assert reason in err
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_objective_is_declared_in_words(iwae, tmp_path):
    run = tmp_path / "run"
    words = "--objective", "ciwae", "--k", 3, "--beta", "learned", "--gradient", "dreg"
    sizes = "--latent-sizes", 2, "--hidden-sizes", 5, "--epochs", 2, "--batch-size", 10
    quiet = "--quiet", "--out", run
    status, out, err = iwae("train", "--dataset", small.pictures(), *words, *sizes, *quiet)
    assert (status, out, err) == (0, "", "")
    config = tomllib.loads((run / "config.toml").read_text())
    assert (config["beta"], config["gradient"]) == ("learned", "dreg")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_iwae"] > rows[-1]["train_bound"]


@pytest.mark.slow
def test_gradients_are_measured(iwae, tmp_path):
    run = small.unmeasured(finished(), tmp_path / "run")
    words = "gradients", run, "--k", 4, 1, "--gradients", "reparam", "dreg"
    status, out, _ = iwae(*words, "--draws", 100, "--examples", 5, "--json", "--quiet")
    record = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    (stem,) = {path.stem for path in (run / "evaluations").iterdir()}
    assert {path.suffix for path in (run / "evaluations").iterdir()} == {".json", ".npz", ".png"}
    assert json.loads((run / "evaluations" / f"{stem}.json").read_text()) == record
    rows = record["rows"]
    assert [(row["k"], row["gradient"]) for row in rows] == [
        (k, name) for k in (1, 4) for name in ("reparam", "dreg")
    ]
    assert all(row["seconds_per_draw"] > 0 for row in rows)
    first, other = rows[0]["groups"], rows[-1]["groups"]
    assert first.keys() == {"encoder 1", "decoder"}
    assert first["decoder"]["bias"] is None
    assert abs(other["decoder"]["bias"]["z"]) < record["biased_above"]
    assert other["decoder"]["snr"] == pytest.approx(rows[2]["groups"]["decoder"]["snr"], rel=1e-3)
    assert {(one["group"], one["gradient"]) for one in record["slopes"]} >= {("decoder", "dreg")}
    status, out, _ = iwae(*words, "--draws", 100, "--examples", 5, "--objective", "elbo", "--quiet")
    assert (status, out) == (2, "")  # the elbo has no dreg
    status, out, _ = iwae(*words[:2], "--k", 1, *words[5:7], "--draws", 20, "--examples", 5)
    assert re.search(r"  k = 1, reparam: [\d.]+ ms, [\d.]+ MiB\n    encoder 1  signal/noise ", out)
    assert iwae(*words, "--draws", 15)[2] == (
        "iwae: draws is 15; give a multiple of 10, at least 20\n"
    )


@pytest.mark.slow
def test_gradients_of_another_objective_take_its_options(iwae, tmp_path):
    run = small.unmeasured(finished(), tmp_path / "run")
    words = "gradients", run, "--k", 2, "--draws", 20, "--examples", 3, "--quiet"
    status, out, _ = iwae(*words, "--objective", "miwae", "--m", 2, "--json")
    assert status == 0
    names = [row["gradient"] for row in json.loads(out)["rows"]]
    assert names == ["reparam", "stl", "dreg", "gdreg"]  # vimco must be named
    for options, reason in {
        ("--objective", "miwae"): "miwae needs m, e.g. m = 8",
        ("--gradients", "dreg-alpha"): "iwae needs alpha, e.g.",
        ("--objective", "elbo", "--gradients", "dreg"): "use it with iwae, miwae",
        ("--objective", "rws", "--gradients", "score", "--k", 1): "needs k of at least 2",
        ("--k",): "name at least one k",
    }.items():
        status, out, err = iwae(*words, *options)
        assert (status, out) == (2, "")
        assert reason in err


@pytest.mark.slow
def test_gradients_that_do_not_go_with_a_k_are_left_out(iwae, tmp_path):
    run = small.unmeasured(finished(), tmp_path / "run")
    words = "gradients", run, "--k", 1, 2, "--draws", 20, "--examples", 3, "--quiet", "--json"
    status, out, _ = iwae(*words, "--objective", "rws")
    assert status == 0
    assert [row["k"] for row in json.loads(out)["rows"]] == [2, 2]  # one weight teaches nothing
    status, out, _ = iwae(*words, "--objective", "tvo")
    pairs = {(row["k"], row["gradient"]) for row in json.loads(out)["rows"]}
    assert (status, (1, "score") in pairs, (2, "score") in pairs) == (0, False, True)
    (path,) = (run / "evaluations").glob("*tvo*.npz")
    with np.load(path) as arrays:
        assert arrays["k"].tolist() == [1, 2]
        known = np.isfinite(arrays["score, decoder"])
        assert known.tolist() == [False, True]
        assert np.isfinite(arrays["reparam, decoder"]).all()


# Many runs


@pytest.mark.slow
def test_a_cell_is_reproduced_on_a_shortened_schedule(iwae, tmp_path):
    out = ("--epochs-scale", "0.005", "--out", str(tmp_path / "out"))
    status, told, _ = iwae("reproduce", "run", "camel/vae-k1", *out, "--dry-run")
    assert (status, (tmp_path / "out").exists()) == (0, False)
    assert re.search(r"shortened-0.005/camel/vae-k1/seed-0 +waiting", told)
    status, told, errors = iwae("reproduce", "run", "camel/vae-k1", *out)
    assert (status, told) == (0, "shortened-0.005/camel/vae-k1/seed-0: done\n")
    assert "(1 of 1)" in errors
    status, told, errors = iwae("reproduce", "run", "camel/vae-k1", *out, "--quiet")
    assert (status, told, errors) == (0, "shortened-0.005/camel/vae-k1/seed-0: done\n", "")
    _, told, _ = iwae("reproduce", "status", *out)
    assert re.fullmatch(r"shortened-0.005/camel/vae-k1/seed-0 +done +epoch 1 of 1\n", told)
    _, told, _ = iwae("reproduce", "table", "camel", *out)
    assert "no reproduction" in told
    assert re.search(r"camel/vae-k1 +\| \d\.\d{3} ± 0\.\d{3} +\|", told)
    _, told, _ = iwae("reproduce", "list", "camel/vae-k1", *out)
    assert re.search(r"camel/vae-k1 +published +- +ours +\d\.\d\d ", told)


def test_a_folder_without_runs_says_so(iwae, tmp_path):
    status, told, _ = iwae("reproduce", "status", "--out", str(tmp_path))
    assert (status, told) == (0, f"no run has started in {tmp_path}\n")


@pytest.mark.parametrize("action", ["list", "table"])
def test_a_cell_that_cannot_be_read_is_told_after_the_others(iwae, tmp_path, action):
    run = tmp_path / "camel" / "vae-k1" / "seed-0"
    run.mkdir(parents=True)
    (run / "config.toml").write_text("k = [1")
    status, told, errors = iwae("reproduce", action, "camel", "--out", str(tmp_path))
    assert status == 1
    assert re.search(r"camel/vae-k1 .*cannot be read", told)
    assert re.search(r"camel/iwae-k20 ", told)
    assert errors.startswith(f"iwae: camel/vae-k1: experiment file {run}/config.toml cannot be")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_trains_all_combinations(iwae, tmp_path):
    (tmp_path / "s.toml").write_text(
        f'dataset = "{small.pictures()}"\nlatent_sizes = [2]\nhidden_sizes = [[5]]\n'
        "batch_size = 10\nepochs = 1\nvalidation = 50\nk = [1, 2]\nseed = [0, 1]\n"
    )
    words = ("sweep", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--k", "3", "2")
    status, told, _ = iwae(*words, "--budget", "0s")
    assert (status, told) == (
        0,
        "k=1,seed=0-1: stopped: the time is up\nk=2,seed=0-1: stopped: the time is up\n",
    )
    status, told, _ = iwae(*words)
    assert (status, told) == (0, "k=1,seed=0-1: done\nk=2,seed=0-1: done\n")
    status, told, _ = iwae("compare", *(str(tmp_path / "out" / f"k={k},seed=0-1") for k in (1, 2)))
    assert status == 0
    assert "L_3" in told


@pytest.mark.slow
@pytest.mark.skipif(len(cores_for_jax()) < 2, reason="two workers need two cores")
def test_workers_share_a_sweep_out(iwae, tmp_path, monkeypatch):
    commands, popen = set(), subprocess.Popen

    def begin(line, *, env=None, **options):
        if "sweep" in line:
            commands.add(env["IWAE_COMMAND"])
        return popen(line, env=env, **options)

    monkeypatch.setattr(subprocess, "Popen", begin)
    (tmp_path / "s.toml").write_text(
        f'dataset = "{small.pictures()}"\nlatent_sizes = [2]\nhidden_sizes = [[5]]\n'
        "batch_size = 10\nepochs = 1\nvalidation = 50\nk = [1, 2, 3]\n"
    )
    words = ("sweep", str(tmp_path / "s.toml"), "--k", "3", "--out")
    status, told, _ = iwae(*words, str(tmp_path / "out"), "--workers", "2")
    assert (status, told) == (0, "k=1: done\nk=2: done\nk=3: done\n")
    devices = [
        json.loads(path.read_text())["devices"]
        for path in sorted((tmp_path / "out").glob("*/evaluations/*.json"))
    ]
    assert devices == [len(cores_for_jax()) // 2] * 3  # none was left for this process
    assert len(commands) == 1


@pytest.mark.slow
def test_a_task_that_fails_is_told_and_makes_the_status_1(iwae, tmp_path, monkeypatch):
    (tmp_path / "s.toml").write_text('dataset = ["digits", "nowhere.npy"]\nepochs = 1\nk = 2\n')
    words = ("sweep", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--k", "2")
    status, told, _ = iwae(*words, "--examples", "20")
    assert status == 1
    assert "dataset=digits: done\n" in told
    assert re.search(r"dataset=nowhere: failed: .*nowhere\.npy", told)
    (note,) = (tmp_path / "out" / ".queue").glob("*nowhere*failure*")
    command, _, _ = note.read_text().partition("\n")
    note.write_text(f"{command}\nout of paper")
    monkeypatch.setenv("IWAE_COMMAND", command)  # as in another process of the same command
    status, told, _ = iwae(*words, "--examples", "20")
    assert "dataset=nowhere: failed: out of paper\n" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "run"], "name the cells"),
        (["reproduce", "run", "tabel1"], "nearest: "),
        (["reproduce", "run", "camel", "--seeds", "0"], "at least 1"),
        (["reproduce", "run", "camel", "--epochs-scale", "2"], r"\(0, 1\]"),
        (["reproduce", "run", "camel", "--budget", "soon"], "'soon' is not a time"),
        (["reproduce", "run", "camel", "--address", "auto"], "--engine ray"),
        (["reproduce", "run", "camel", "--workers", "0"], "choose 1 to"),
        (["reproduce", "run", "camel", "--workers", "2", "--engine", "ray"], "--engine here"),
        (["sweep", "none.toml", "--out", "x"], "no experiment file"),
        (["reproduce", "run", "camel", "--out", "file"], "file is a file"),
        (["reproduce", "run", "camel", "--out", "file/x"], "cannot be created.*another --out"),
    ],
)
def test_wrong_words_to_the_queue(iwae, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, told, errors = iwae(*words)
    assert (status, told) == (2, "")
    assert re.search(message, errors)
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("45s", 45)],
)
def test_budgets(words, seconds):
    assert parse_queue_budget(words) == seconds


def test_compilation_is_no_part_of_the_time_left(monkeypatch):
    """Compilation takes 100 s of them; each other dispatch takes 4 s."""
    clock = iter([100.0, 104.0, 208.0, 212.0, 216.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    speed, left = progress.Speed(), []
    for number in range(5):
        report = small.report(share=(number + 1) / 10, epoch_done=number % 3 == 2)
        speed.add(report)
        left.append(speed.left(report))
    assert left == [None, pytest.approx(4 * 8), None, pytest.approx(4 * 6), pytest.approx(4 * 5)]
