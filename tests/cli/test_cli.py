"""The command line: arguments, output and error messages."""

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
    """Hide this machine's data and caches, and fix the settings of JAX and of the terminal."""
    monkeypatch.delenv("IWAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def iwae(capfd):
    """A function that runs a command: its exit status, standard output and standard error."""

    def call(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        return status, *capfd.readouterr()

    return call


def record_training_calls(monkeypatch):
    """Record what `iwae train` would do, instead of doing it; returns the list of calls."""
    calls = []

    def recorder(name):
        def record_call(*arguments, track, show=None):  # noqa: ARG001
            calls.append((name, *arguments, *track))
            return iter(())

        return record_call

    monkeypatch.setattr(start_and_resume, "start_run", recorder("start"))
    monkeypatch.setattr(start_and_resume, "resume_run", recorder("resume"))
    monkeypatch.setattr(planning, "plan_next_steps", lambda run: f"after {run}")
    return calls


# Help and lists

LIGHT_COMMANDS = """
import sys
from iwae.cli import COMMANDS, main

lists = [["--version"], ["data", "list"], ["presets"], ["data", "verify"]]
helps = [["--help"], ["help"], [], *([name, "--help"] for name in COMMANDS)]
mistyped = ["train", "--preset", "digits/iwae-k20", "--dataset", "digit", "--out", "nowhere"]
for arguments in [*helps, *lists, ["nonsense"], mistyped]:
    try:
        main(arguments)
    except SystemExit as error:
        assert error.code == 0, arguments
    heavy = {"jax", "scipy", "sklearn", "matplotlib", "numpyro", "equinox", "huggingface_hub"}
    heavy &= sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""


def test_help_lists_and_typos_are_answered_without_importing_jax():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT_COMMANDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: iwae COMMAND") == 3


def test_help_lists_every_command_and_option(iwae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # one box below the other
    status, out, _ = iwae("--help")
    assert status == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE)
        status, out_command, _ = iwae(name, "--help")
        assert status == 0
        assert out_command.startswith(f"usage: iwae {name}")
        # A default is a value, or a description if the program computes it.
        assert not re.search(r"None[},|]|default: (None|''|)\)|default[^()]*\) \(def", out_command)
    _, out, _ = iwae("train", "--help")
    shown = re.findall(r"^│ --([a-z-]+)", out, re.MULTILINE)
    fields = [field.replace("_", "-") for field in TrainConfig.model_fields]
    assert shown[-len(fields) :] == fields
    plain = " ".join(re.sub(r"[│\n]", " ", out).split())
    for text in (
        "(default: 3280; 400 for your own files, with early stopping)",
        "(default: 1; 16 for your own files, and with --objective iwae)",
        "(default: never; 100 for your own files without --epochs)",
    ):
        assert text in plain
    groups = re.findall(r"─ (\w+) options ─", out)
    assert groups == ["data", "model", "objective", "optimisation", "run"]
    for group, first in zip(
        groups, ("dataset", "layers", "objective", "epochs", "seed"), strict=True
    ):
        assert re.search(rf"─ {group} options ─.*\n│ --{first} ", out)


def test_action_help_lists_its_options(iwae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = iwae("reproduce", "list", "--help")
    assert set(re.findall(r"^│ --([a-z-]+)", out, re.MULTILINE)) == {
        *("out", "recipe", "seeds", "epochs-scale"),
    }
    _, out, _ = iwae("reproduce", "run", "--help")
    assert "--budget" in out
    assert "--format" not in out


def test_none_unsets_an_option_from_a_file():
    parsed = parsing.parse(
        Train, "train", ["--patience", "None"], default=Train(TrainConfig(patience=3))
    )
    assert parsed.config == TrainConfig()


def test_module_and_entry_point_start_the_program():
    for command in (
        ["-m", "iwae"],
        ["-c", "import sys; from iwae.cli import main; sys.exit(main())"],
    ):
        done = subprocess.run(
            [sys.executable, *command, "--version"], capture_output=True, text=True, check=True
        )
        assert re.fullmatch(r"iwae \d+\.\d+\.\d+\n", done.stdout)


INTERRUPTED_IMPORT = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "tyro":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from iwae.__main__ import main

sys.exit(main())
"""


def test_ctrl_c_during_imports_gives_no_traceback():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False
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
        if then == "breaks":  # as a partially imported module does
            raise AttributeError("partially initialized module")
        time.sleep(30 * (then == "waits"))
        return 0

    monkeypatch.setitem(COMMANDS, "presets", COMMANDS["presets"]._replace(run=work))
    # In the background of a shell SIGINT is ignored, and Python leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["presets"]) == status
        time.sleep(0.1)  # it is not repeated later
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == err


@pytest.mark.parametrize(("handler", "sent"), [(signal.SIG_DFL, []), (lambda *_: None, [5])])
def test_lost_interrupt_is_resent_only_to_a_python_handler(monkeypatch, handler, sent):
    calls = []
    monkeypatch.setattr(signal, "getsignal", lambda _: handler)
    monkeypatch.setattr(signal, "pthread_kill", lambda thread, _: calls.append(thread))
    interrupts._send(signal.SIGTERM, 5)
    assert calls == sent


def jax_options(monkeypatch):
    """The options that a command sets in JAX, instead of setting them."""
    options = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    set_up_jax()
    return options


def test_every_compiled_program_is_cached(monkeypatch, tmp_path):
    options = jax_options(monkeypatch)
    assert options["jax_compilation_cache_dir"] == str(tmp_path / "cache" / "iwae" / "compiled")
    assert options["jax_persistent_cache_min_compile_time_secs"] == 0


def test_oversized_cache_evicts_the_least_recently_used_programs(tmp_path):
    for age, name in enumerate(("new", "read", "old")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - 100 * age,) * 2)
    os.utime(tmp_path / "read", (1e9, 1e8))  # compiled long ago, and used since
    trim_jax_cache(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    trim_jax_cache(tmp_path, 299)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "read"}


def test_unusable_cache_folder_disables_the_compilation_cache(monkeypatch, tmp_path):
    (tmp_path / "cache").touch()
    assert "jax_compilation_cache_dir" not in jax_options(monkeypatch)


def test_presets_show_published_numbers_and_prerequisites(iwae):
    _, out, _ = iwae("presets")
    assert len(out.splitlines()) == len(PRESETS)
    _, out, _ = iwae("presets", "table[12]/*50")
    assert re.search(r"table1/mnist/1l/iwae-k50 +NLL +84\.78 +active +25 ", out)
    _, out, _ = iwae("presets", "table2/*")
    assert "--init-from a run of table1/mnist/1l/vae-k1" in out


def test_closed_output_pipe_is_not_an_error():
    script = "import sys; from iwae.cli import main; sys.exit(main(['presets']))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# From arguments to a configuration


@pytest.mark.parametrize(
    ("arguments", "expected"),
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
def test_options_set_the_configuration(iwae, monkeypatch, tmp_path, arguments, expected):
    calls = record_training_calls(monkeypatch)
    assert iwae("train", *arguments.split(), "--out", tmp_path / "run")[0] == 0
    ((name, config, run, data_dir),) = calls
    assert (name, run, data_dir) == ("start", tmp_path / "run", None)
    assert {field: getattr(config, field) for field in expected} == expected


STAGES = "iwae k=5 epochs=3, iwae k=50 backward=8 epochs=2"


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        (("--stages", STAGES), 5),
        ((f"--stages={STAGES}",), 5),
        (("--preset", "digits/iwae-k20", "--stages", STAGES), 5),
        (("--epochs", "10", "--stages", STAGES), 10),
        (("--stages", STAGES, "--epochs=1"), 1),
    ],
)
def test_stages_determine_the_epochs_unless_given(iwae, monkeypatch, tmp_path, arguments, epochs):
    calls = record_training_calls(monkeypatch)
    assert iwae("train", *arguments, "--out", tmp_path / "run")[0] == 0
    ((_, config, *_),) = calls
    assert config.epochs == epochs
    assert config.stages == stages_from_text(STAGES)


def test_epochs_stretch_the_stages_of_a_file(iwae, monkeypatch, tmp_path):
    calls = record_training_calls(monkeypatch)
    write_config(TrainConfig(stages=stages_from_text(STAGES)), tmp_path / "own.toml")
    arguments = ("train", tmp_path / "own.toml", "--out", tmp_path / "run")
    for more in ((), ("--epochs", "10"), ("--stages", "epochs=4"), ("--backward", "3")):
        assert iwae(*arguments, *more)[0] == 0
    assert [config.epochs for _, config, *_ in calls] == [5, 10, 4, 5]
    assert [config.backward for _, config, *_ in calls] == [None, None, None, 3]
    assert calls[1][1].stage_epochs() == (6, 4)


def test_options_override_the_experiment_file(iwae, monkeypatch, tmp_path):
    calls = record_training_calls(monkeypatch)
    small.write_config(tmp_path / "experiment.toml")
    arguments = (
        "train",
        tmp_path / "experiment.toml",
        "--out",
        tmp_path / "run",
        "--data-dir",
        "d",
    )
    assert iwae(*arguments)[0] == iwae(*arguments, "--k", "5")[0] == 0
    assert calls[0][1] == small.config()
    assert calls[1][1] == small.config(k=5)
    assert str(calls[0][3]) == "d"


def test_resume_option_resumes_the_run(iwae, monkeypatch):
    calls = record_training_calls(monkeypatch)
    assert iwae("train", "--resume", "run")[0] == 0
    assert iwae("train", "--resume", "run", "--stage", "3", "--data-dir", "d")[0] == 0
    assert [(name, str(run), stage) for name, run, _, stage in calls] == [
        ("resume", "run", None),
        ("resume", "run", 3),
    ]


# Errors

ERRORS = [
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


@pytest.mark.parametrize(
    ("arguments", "message"), ERRORS, ids=[arguments for arguments, _ in ERRORS]
)
def test_mistakes_are_reported_without_a_traceback(iwae, tmp_path, arguments, message):
    binary = tmp_path / "folder" / "binary"
    binary.parent.mkdir()
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    binary.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00\xff")
    paths = {
        "new": tmp_path / "new",
        "folder": binary.parent,
        "binary": binary,
        "run": finished(),
        "unvalidated": small.unvalidated(),
    }
    status, out, err = iwae(*arguments.format(**paths).split())
    assert status == 2
    assert message in " ".join(re.sub("[│─╭╮╰╯]", " ", err).split())
    assert "Traceback" not in err
    assert out == ""
    if err.startswith("iwae: "):
        assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_system_error_is_one_line(iwae, tmp_path):
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
def test_out_of_memory_is_one_line(iwae, tmp_path, monkeypatch, error):
    monkeypatch.setattr(start_and_resume, "start_run", lambda *_, **__: failing_training(error))
    status, out, err = iwae("train", "--out", tmp_path / "run")
    assert (status, out) == (1, "")
    assert err == "iwae: out of memory: choose a smaller k, batch size or model\n"


def test_internal_errors_are_not_hidden(iwae, tmp_path, monkeypatch):
    for error_type in (jax.errors.JaxRuntimeError, RuntimeError, SystemError):
        error = error_type("INTERNAL: something")
        monkeypatch.setattr(
            start_and_resume, "start_run", lambda *_, error=error, **__: failing_training(error)
        )
        with pytest.raises(error_type, match="something"):
            iwae("train", "--out", tmp_path / "run")


def failing_training(error):
    yield from ()
    raise error


def test_diverged_run_has_status_1_and_names_the_checkpoints(iwae, tmp_path, monkeypatch):
    state, best = small.newest(finished())[:2]
    error = NonFiniteError("training stopped at step 7: the bound is not finite", state, best)

    def broken(*_, **__):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        yield from failing_training(error)

    monkeypatch.setattr(start_and_resume, "start_run", broken)
    status, out, err = iwae("train", "--out", tmp_path / "run")
    assert (status, out) == (1, "")
    assert err == (
        "iwae: training stopped at step 7: the bound is not finite; the last good state is in "
        f"{tmp_path}/run/checkpoints\n"
    )


def test_nan_likelihood_has_status_1(iwae, tmp_path):
    model = load_model(finished() / "models" / "final-0")
    broken = eqx.tree_at(lambda m: m.encoder[0].log_scale.bias, model, jnp.full(2, 1e3))
    status, out, err = iwae("evaluate", small.run_from_models(tmp_path / "run", [broken]), "--k", 5)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"iwae: the log-likelihood of example 0 is not a number.*\n", err)


# Train, evaluate, figures

RECORD_KEYS = {
    *("log_likelihood", "stderr", "n", "k", "split", "dataset", "test_sha256"),
    "active_units",
}


@pytest.fixture
def experiment(tmp_path):
    small.write_config(tmp_path / "experiment.toml")
    return tmp_path / "experiment.toml"


def test_training_reports_progress_and_the_model_folder(iwae, experiment, tmp_path):
    status, out, err = iwae("train", experiment, "--out", tmp_path / "run", "--verbose")
    run = tmp_path / "run"
    assert status == 0
    measure = f"iwae evaluate {run} --weights best"
    where, rising = out.splitlines()
    assert where == f"trained models are in {run}/models; measure them with: {measure}"
    assert rising.startswith("the validation bound was still rising, by 0.")
    *header, _, _, _, _ = err.splitlines()
    lines = err.splitlines()[len(header) :]
    assert header[0].startswith("pictures.npz: 400 rows of 4 x 4 values, taken as bernoulli")
    assert any("300 to train, 50 to validate, 50 to test" in line for line in header)
    assert header[-2].startswith("training: 4 epochs of 30 steps with 10 rows")
    assert header[-1].startswith("time: about ")
    for number, line in enumerate(lines, 1):
        pattern = rf"epoch {number}, \d+ steps/s, bound -\d+\.\d\d, validation -\d+\.\d\d(, .*)?"
        assert re.fullmatch(pattern, line)
    status, out, err = iwae("train", "--resume", run, "--quiet")
    assert (status, out, err) == (0, "", "")


def test_quiet_prints_nothing_and_the_default_few_lines(iwae, experiment, tmp_path):
    assert iwae("train", experiment, "--out", tmp_path / "quiet", "--quiet") == (0, "", "")
    _, _, err = iwae("train", experiment, "--out", tmp_path / "plain", "--epochs", 2)
    line = err.splitlines()[-1]
    assert re.fullmatch(r"epoch 2, \d+ steps/s, bound -\S+, validation -\S+", line)
    assert err.count("epoch ") == 1


def test_json_output_is_exactly_one_object(iwae):
    status, out, _ = iwae("evaluate", finished(), "--k", 5, 1, "--json")
    assert status == 0
    record = json.loads(out, parse_constant=pytest.fail)
    assert out.count("\n") == 1
    assert record.keys() >= RECORD_KEYS
    assert (record["n"], record["k"], record["split"]) == (50, 5, "test")
    assert record["active_units"] == [2]
    assert record == json.loads((finished() / "evaluations" / "test-final-k5.json").read_text())


@pytest.mark.slow
def test_json_output_lists_the_results_of_each_replicate(iwae):
    run = finished(replicates=2, **PATIENT)
    status, out, _ = iwae("evaluate", run, "--k", 5, "--json", "--weights", "best")
    record = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    assert record.keys() >= RECORD_KEYS | {"between_replicates_sd"}
    assert len(record["replicates"]) == 2
    for one in record["replicates"]:
        assert one.keys() >= RECORD_KEYS
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


def test_text_output_includes_the_standard_error(iwae):
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
def test_figures_prints_the_files_it_drew(iwae):
    status, out, _ = iwae("figures", finished())
    assert status == 0
    assert len(out.splitlines()) >= 10
    assert set(out.splitlines()) == {str(path) for path in (finished() / "figures").iterdir()}


def test_bundled_data_are_verified(iwae):
    status, out, _ = iwae("data", "verify", "digits")
    assert status == 0
    assert out.startswith("ok  digits: ")


def test_bundled_data_need_no_fetching(iwae):
    message = "digits comes with iwae: there is nothing to fetch\n"
    assert iwae("data", "fetch", "digits") == (0, message, "")


def test_damaged_data_are_reported(iwae, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03")
    status, out, err = iwae("data", "verify", "mnist", "--data-dir", tmp_path)
    assert (status, err) == (1, "")
    assert re.search(rf"BAD {tmp_path}/train-images-idx3-ubyte: truncated", out)


# On a terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_shows_a_progress_bar(monkeypatch):
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


def test_output_without_a_terminal_has_no_control_characters(iwae, experiment, tmp_path):
    _, out, err = iwae("train", experiment, "--out", tmp_path / "run", "--epochs", 1)
    assert (out + err).replace("\n", "").isprintable()


# Other evaluation methods


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_options_incompatible_with_a_method_are_refused(iwae, tmp_path, arguments, message):
    (tmp_path / "WORDS").write_text("0 half 1")
    (tmp_path / "NUMBERS").write_text("0, 0.5\n1")
    arguments = [
        tmp_path / argument if argument.isupper() else argument for argument in arguments.split()
    ]
    status, out, err = iwae("evaluate", finished(), *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


@pytest.fixture(scope="module")
def annealed(tmp_path_factory):
    """A copy of a run for this module alone, which keeps its records from other tests."""
    return small.unmeasured(finished(), tmp_path_factory.mktemp("annealed") / "run")


@pytest.mark.slow
def test_annealing_reports_its_uncertainty(iwae, annealed):
    path = "--temperatures", 20, "--chains", 4, "--leapfrog", 2
    status, out, err = iwae("evaluate", annealed, "--method", "bdmc", "--examples", 10, *path)
    assert (status, err) == (0, "")
    gap = r"between -\S+ \+- \S+ and -\S+ \+- \S+, gap -?\S+ \+- \S+"
    rows = ("annealing", "annealing, reverse among forward chains", "5000 importance samples")
    assert re.search("".join(rf"  {row}: +{gap}\n" for row in rows), out)
    arguments = "evaluate", annealed, "--method", "ais", "--examples", 20, *path
    status, out, err = iwae(*arguments, "--json")
    record = json.loads(out, parse_constant=pytest.fail)
    assert (status, err) == (0, "")
    assert record.keys() >= RECORD_KEYS
    assert (record["n"], record["verdict"]["bdmc_gap"]) == (20, pytest.approx(0, abs=1))
    status, out, _ = iwae(*arguments)
    assert out.startswith("pictures.npz test, 20 examples (a random subset")
    shown = record.get("whole") or record  # the run may have been evaluated on all examples
    assert f"AIS_20 = {shown['log_likelihood']:.3f} +- {shown['stderr']:.3f}" in out
    assert f"{record['verdict']['word']} (tolerance 0.5): {record['verdict']['reason']}" in out


@pytest.mark.slow
def test_rate_distortion_curve_is_summarised(iwae, annealed):
    arguments = "--temperatures", 8, "--chains", 2, "--leapfrog", 2, "--examples", 4
    status, out, _ = iwae("evaluate", annealed, "--method", "rate-distortion", *arguments)
    assert status == 0
    assert "at beta = 1: -" in out


@pytest.mark.slow
def test_information_decomposes_the_gap_where_log_p_is_known(iwae, annealed):
    arguments = "evaluate", annealed, "--method", "information"
    iwae("evaluate", annealed, "--k", 5)
    path = "--temperatures", 20, "--chains", 4, "--leapfrog", 2
    iwae("evaluate", annealed, "--method", "ais", "--examples", 20, *path)
    record = json.loads(iwae(*arguments, "--json")[1])
    assert record["log_likelihood"] == pytest.approx(-record["rate"] - record["distortion"])
    noise = record["mutual_information_lower_stderr"] + record["mutual_information_upper_stderr"]
    assert record["mutual_information_lower"] < record["mutual_information_upper"] + 3 * noise
    gap = record["gap"]
    assert (gap["n"], gap["bound"], gap["log_p"]) == (20, "L_5", "AIS_20")
    assert gap["total"] == pytest.approx(gap["recovered"] + gap["remaining"])
    status, out, _ = iwae(*arguments)
    assert status == 0
    assert f"AIS_20 - ELBO = {gap['total']:.3f} +- " in out


def test_compare_prints_a_table_of_runs(iwae, annealed, tmp_path):
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
    assert json.loads(out)["n"] == 50  # 20 annealed examples are too few to be preferred
    assert iwae("compare", annealed)[0] == 2


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_evaluation_says_how_to_resume(
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


def test_objectives_are_listed_with_their_gradients_and_options(iwae):
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


def test_incompatible_options_are_refused_before_anything_is_written(iwae, tmp_path):
    arguments = "--dataset", small.pictures(), "--out", tmp_path / "run"
    for options, reason in {
        ("--objective", "rws", "--gradient", "dreg"): "use it with iwae, miwae",
        ("--objective", "miwae"): "miwae needs m, e.g. m = 8",
        ("--objective", "iwae", "--beta", "0.5"): "beta does not apply to iwae",
        ("--objective", "ciwae", "--beta", "much"): "beta",
        ("--objective", "aiwae", "--encoder-objective", "elbo-analytic", "--layers", 2): "closed",
        ("--kl-warmup", 9, "--epochs", 3): "kl_warmup is 9, but epochs is 3: reduce it",
    }.items():
        status, out, err = iwae("train", *arguments, *options)
        assert (status, out) == (2, "")
        assert reason in err
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_objective_is_declared_by_options(iwae, tmp_path):
    run = tmp_path / "run"
    arguments = "--objective", "ciwae", "--k", 3, "--beta", "learned", "--gradient", "dreg"
    sizes = "--latent-sizes", 2, "--hidden-sizes", 5, "--epochs", 2, "--batch-size", 10
    quiet = "--quiet", "--out", run
    status, out, err = iwae("train", "--dataset", small.pictures(), *arguments, *sizes, *quiet)
    assert (status, out, err) == (0, "", "")
    config = tomllib.loads((run / "config.toml").read_text())
    assert (config["beta"], config["gradient"]) == ("learned", "dreg")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_iwae"] > rows[-1]["train_bound"]


@pytest.mark.slow
def test_gradients_command_compares_estimators(iwae, tmp_path):
    run = small.unmeasured(finished(), tmp_path / "run")
    arguments = "gradients", run, "--k", 4, 1, "--gradients", "reparam", "dreg"
    status, out, _ = iwae(*arguments, "--draws", 100, "--examples", 5, "--json", "--quiet")
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
    status, out, _ = iwae(
        *arguments, "--draws", 100, "--examples", 5, "--objective", "elbo", "--quiet"
    )
    assert (status, out) == (2, "")  # the elbo has no dreg
    status, out, _ = iwae(*arguments[:2], "--k", 1, *arguments[5:7], "--draws", 20, "--examples", 5)
    assert re.search(r"  k = 1, reparam: [\d.]+ ms, [\d.]+ MiB\n    encoder 1  signal/noise ", out)
    assert iwae(*arguments, "--draws", 15)[2] == (
        "iwae: draws is 15; give a multiple of 10, at least 20\n"
    )


@pytest.mark.slow
def test_gradients_of_another_objective_accept_its_options(iwae, tmp_path):
    run = small.unmeasured(finished(), tmp_path / "run")
    arguments = "gradients", run, "--k", 2, "--draws", 20, "--examples", 3, "--quiet"
    status, out, _ = iwae(*arguments, "--objective", "miwae", "--m", 2, "--json")
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
        status, out, err = iwae(*arguments, *options)
        assert (status, out) == (2, "")
        assert reason in err


@pytest.mark.slow
def test_gradients_incompatible_with_a_k_are_skipped(iwae, tmp_path):
    run = small.unmeasured(finished(), tmp_path / "run")
    arguments = "gradients", run, "--k", 1, 2, "--draws", 20, "--examples", 3, "--quiet", "--json"
    status, out, _ = iwae(*arguments, "--objective", "rws")
    assert status == 0
    # A single weight gives no gradient.
    assert [row["k"] for row in json.loads(out)["rows"]] == [2, 2]
    status, out, _ = iwae(*arguments, "--objective", "tvo")
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
def test_cell_is_reproduced_on_a_shortened_schedule(iwae, tmp_path):
    options = ("--epochs-scale", "0.005", "--out", str(tmp_path / "out"))
    status, out, _ = iwae("reproduce", "run", "camel/vae-k1", *options, "--dry-run")
    assert (status, (tmp_path / "out").exists()) == (0, False)
    assert re.search(r"shortened-0.005/camel/vae-k1/seed-0 +waiting", out)
    status, out, err = iwae("reproduce", "run", "camel/vae-k1", *options)
    assert (status, out) == (0, "shortened-0.005/camel/vae-k1/seed-0: done\n")
    assert "(1 of 1)" in err
    status, out, err = iwae("reproduce", "run", "camel/vae-k1", *options, "--quiet")
    assert (status, out, err) == (0, "shortened-0.005/camel/vae-k1/seed-0: done\n", "")
    _, out, _ = iwae("reproduce", "status", *options)
    assert re.fullmatch(r"shortened-0.005/camel/vae-k1/seed-0 +done +epoch 1 of 1\n", out)
    _, out, _ = iwae("reproduce", "table", "camel", *options)
    assert "no reproduction" in out
    assert re.search(r"camel/vae-k1 +\| \d\.\d{3} ± 0\.\d{3} +\|", out)
    _, out, _ = iwae("reproduce", "list", "camel/vae-k1", *options)
    assert re.search(r"camel/vae-k1 +published +- +ours +\d\.\d\d ", out)


def test_status_of_a_folder_without_runs_says_so(iwae, tmp_path):
    status, out, _ = iwae("reproduce", "status", "--out", str(tmp_path))
    assert (status, out) == (0, f"no run has started in {tmp_path}\n")


@pytest.mark.parametrize("action", ["list", "table"])
def test_unreadable_cell_is_reported_after_the_others(iwae, tmp_path, action):
    run = tmp_path / "camel" / "vae-k1" / "seed-0"
    run.mkdir(parents=True)
    (run / "config.toml").write_text("k = [1")
    status, out, err = iwae("reproduce", action, "camel", "--out", str(tmp_path))
    assert status == 1
    assert re.search(r"camel/vae-k1 .*cannot be read", out)
    assert re.search(r"camel/iwae-k20 ", out)
    assert err.startswith(f"iwae: camel/vae-k1: experiment file {run}/config.toml cannot be")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_sweep_trains_all_combinations(iwae, tmp_path):
    (tmp_path / "s.toml").write_text(
        f'dataset = "{small.pictures()}"\nlatent_sizes = [2]\nhidden_sizes = [[5]]\n'
        "batch_size = 10\nepochs = 1\nvalidation = 50\nk = [1, 2]\nseed = [0, 1]\n"
    )
    arguments = ("sweep", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--k", "3", "2")
    status, out, _ = iwae(*arguments, "--budget", "0s")
    assert (status, out) == (
        0,
        "k=1,seed=0-1: stopped: the time is up\nk=2,seed=0-1: stopped: the time is up\n",
    )
    status, out, _ = iwae(*arguments)
    assert (status, out) == (0, "k=1,seed=0-1: done\nk=2,seed=0-1: done\n")
    status, out, _ = iwae("compare", *(str(tmp_path / "out" / f"k={k},seed=0-1") for k in (1, 2)))
    assert status == 0
    assert "L_3" in out


@pytest.mark.slow
@pytest.mark.skipif(len(cores_for_jax()) < 2, reason="two workers need two cores")
def test_workers_share_a_sweep(iwae, tmp_path, monkeypatch):
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
    arguments = ("sweep", str(tmp_path / "s.toml"), "--k", "3", "--out")
    status, out, _ = iwae(*arguments, str(tmp_path / "out"), "--workers", "2")
    assert (status, out) == (0, "k=1: done\nk=2: done\nk=3: done\n")
    devices = [
        json.loads(path.read_text())["devices"]
        for path in sorted((tmp_path / "out").glob("*/evaluations/*.json"))
    ]
    assert devices == [len(cores_for_jax()) // 2] * 3  # none is reserved for this process
    assert len(commands) == 1


@pytest.mark.slow
def test_failed_task_is_reported_with_status_1(iwae, tmp_path, monkeypatch):
    (tmp_path / "s.toml").write_text('dataset = ["digits", "nowhere.npy"]\nepochs = 1\nk = 2\n')
    arguments = ("sweep", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--k", "2")
    status, out, _ = iwae(*arguments, "--examples", "20")
    assert status == 1
    assert "dataset=digits: done\n" in out
    assert re.search(r"dataset=nowhere: failed: .*nowhere\.npy", out)
    (recorder,) = (tmp_path / "out" / ".queue").glob("*nowhere*failure*")
    command, _, _ = recorder.read_text().partition("\n")
    recorder.write_text(f"{command}\nout of paper")
    monkeypatch.setenv("IWAE_COMMAND", command)  # as in another process of the same command
    status, out, _ = iwae(*arguments, "--examples", "20")
    assert "dataset=nowhere: failed: out of paper\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_invalid_queue_options_are_refused(iwae, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, out, err = iwae(*arguments)
    assert (status, out) == (2, "")
    assert re.search(message, err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("45s", 45)],
)
def test_budget_is_parsed_into_seconds(text, seconds):
    assert parse_queue_budget(text) == seconds


def test_time_left_excludes_compilation(monkeypatch):
    """A dispatch takes 4 s; the one that compiles takes 100 s more."""
    clock = iter([100.0, 104.0, 208.0, 212.0, 216.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    speed, left = progress.Speed(), []
    for number in range(5):
        report = small.report(share=(number + 1) / 10, epoch_done=number % 3 == 2)
        speed.add(report)
        left.append(speed.left(report))
    assert left == [None, pytest.approx(4 * 8), None, pytest.approx(4 * 6), pytest.approx(4 * 5)]
