"""The documentation works: its Python, command lines, links and lists of names."""

import dataclasses
import importlib
import itertools
import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import iwae
import small
from iwae import cli
from iwae.cli import parsing
from iwae.config.experiment import TrainConfig
from iwae.config.presets import PRESETS
from test_design import ORDER

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = {"console", "bash", "sh", "shell"}

NOT_RUN = re.compile(r"# Not run by the tests: (?P<reason>\w.{5,}\.)\n")
"""The first line of a block that cannot be run here. A reader sees it too."""

SHOWN = {"text", "math"}
"""Languages of blocks that are not code: program output and formulas."""

EXPERIMENT = """
dataset = "digits"
latent_sizes = [2]
hidden_sizes = [[5]]
epochs = 1
"""
"""Replaces every experiment file that a command line names."""

PLACEHOLDERS = {"I": "0", "N": "1", "...": None}
"""Values for the words that a reader replaces; None removes the word."""


def relative(path):
    return str(path.relative_to(ROOT))


def blocks(page, languages):
    """(line of its first line, text) of each fenced block in one of these languages."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        if found[1] in languages:
            yield text.count("\n", 0, found.start(2)) + 1, found[2]


def prose(page):
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def is_run(text):
    """Whether a block is one that the tests run."""
    return not NOT_RUN.match(text)


def with_blocks(*languages):
    """The pages that have blocks to run in these languages, as parameters of a test."""
    return [
        pytest.param(page, id=relative(page), marks=pytest.mark.slow)
        for page in PAGES
        if relative(page) != STORY and any(is_run(text) for _, text in blocks(page, languages))
    ]


STORY = "docs/own-data.md"
"""The page whose Python and commands run unchanged, one after another."""


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_block_is_run_or_says_why_not(page):
    """Python and command lines are run below; other blocks have a known language."""
    for found in FENCE.finditer(page.read_text()):
        language, text = found[1], found[2]
        assert language in {"python", "console", "toml", *SHOWN}, found[0]
        assert "not run" not in text.lower() or not is_run(text), found[0]
        if language == "console" and is_run(text):
            unknown = [line for line in shell_lines(text) if iwae_words(line) is None]
            assert not unknown, f"no test runs these lines: {unknown}"


def test_block_is_skipped_only_with_a_reason():
    assert not is_run("# Not run by the tests: needs a cluster.\n$ iwae train\n")
    for text in ("# Not run by the tests.\n", "# Not run by the tests: .\n", "$ iwae train\n"):
        assert is_run(text)


# --- Python -----------------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """An empty folder, and JAX's standard promotion: the strict one of the tests breaks Optax."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("page", with_blocks("python"))
@pytest.mark.usefixtures("reader")
@pytest.mark.filterwarnings("ignore:the validation bound was still rising")  # examples are short
@pytest.mark.filterwarnings("ignore:k-hat is too large")
def test_python_runs(page):
    """Only with data that need no download; any other block must say that it is not run."""
    namespace = {"__name__": "documentation"}
    for line, text in blocks(page, {"python"}):
        # Blank lines in front make a traceback point at the line of the page.
        compiled = compile("\n" * (line - 1) + text, page, "exec")
        if is_run(text):
            exec(compiled, namespace)  # noqa: S102


# --- command lines ----------------------------------------------------------------------------


def shell_lines(text):
    """The commands of a shell block, with continuation lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def iwae_words(line):
    """The words after `iwae` or `python -m iwae`; None for any other command."""
    words = shlex.split(line.partition(" > ")[0], comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if words[:3] == ["python", "-m", "iwae"]:
        return words[3:]
    return words[1:] if words[:1] == ["iwae"] else None


def command_lines(page):
    """Every `iwae` or `python -m iwae` line of a page's shell blocks and inline code, as words.

    The mere name of a command in the prose, such as `iwae evaluate`, is not a command line.
    """
    shell = [line for _, text in blocks(page, SHELLS) for line in shell_lines(text)]
    inline = re.findall(r"`((?:iwae|python -m iwae) [^`]+)`", prose(page))
    inline = [line for line in inline if line.removeprefix("iwae ") not in cli.COMMANDS]
    found = [iwae_words(line) for line in [*shell, *inline]]
    return [words for words in found if words is not None]


def filled_in(words):
    """The words with a real value for each placeholder."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    words = [word for word in words if word is not None]
    for i, word in enumerate(words[:-1]):
        if word == "--preset" and words[i + 1] == "NAME":
            words[i + 1] = next(iter(PRESETS))
    return words


class Parsed(Exception):  # noqa: N818 - nothing went wrong
    """A command line was parsed."""


def parse(words, monkeypatch):
    """Parse a command line as `iwae` does, without running it."""
    real = parsing.parse

    def stop(*arguments, **options):
        real(*arguments, **options)
        raise Parsed

    for file in (word for word in words if word.endswith(".toml")):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(EXPERIMENT)
    with monkeypatch.context() as patch:
        patch.setattr(parsing, "parse", stop)
        try:
            status = cli.main(words)
        except (Parsed, SystemExit) as stopped:
            status = getattr(stopped, "code", 0)
    return status


@pytest.mark.parametrize("page", PAGES, ids=relative)
@pytest.mark.usefixtures("reader")
def test_command_lines_parse(page, monkeypatch, capsys):
    for words in command_lines(page):
        status = parse(filled_in(words), monkeypatch)
        assert status == 0, f"iwae {shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.usefixtures("reader")
def test_invalid_command_lines_do_not_parse(monkeypatch):
    for line in ("trian", "train --datset digits", "evaluate RUN --k many", "train --preset no"):
        assert parse(line.split(), monkeypatch) == cli.USAGE_ERROR


# --- command lines at a small size ------------------------------------------------------------

TINY = {"--epochs": "8", "--hidden-sizes": "5", "--latent-sizes": "2", "--k": "2"}
"""A training that takes seconds: eight epochs, since the schedule has eight stages."""

FEW = {"--temperatures": "20", "--chains": "2", "--leapfrog": "2", "--examples": "10"}
"""An annealing that takes seconds."""


def values(words, name):
    """The words that follow an option, up to the next option."""
    after = words[words.index(name) + 1 :]
    return list(itertools.takewhile(lambda word: not word.startswith("--"), after))


def with_options(words, options, *, added=True):
    """The words with these values of options; options that are not given are added."""
    words = list(words)
    for name, value in options.items():
        if name in words:
            start = words.index(name) + 1
            words[start : start + len(values(words, name))] = value.split()
        elif added:
            words += [name, *value.split()]
    return words


def sizes(words):
    """Small sizes for a training, with its number of layers."""
    given = {name: TINY[name] for name in TINY if name != "--k" or name in words}
    for name in {"--latent-sizes", "--hidden-sizes"} & set(words):
        given[name] = " ".join([TINY[name]] * len(values(words, name)))
    if "conv" in words:
        given["--channels"] = "2 3"
    if "--layers" in words:
        given |= {"--latent-sizes": "2 2", "--hidden-sizes": "5 5"}
        del words[words.index("--layers") : words.index("--layers") + 2]
    return given


def cut(words):
    """The same command at a small size: small models, few examples and no downloads."""
    words = ["digits" if word in {"mnist", "omniglot"} else word for word in filled_in(words)]
    command = words[0]
    if command == "train" and "--resume" not in words and "--help" not in words:
        if "--out" not in words:
            words += ["--out", "unnamed"]
        if "--preset" in words:
            words = with_options(words, {"--preset": "digits/iwae-k20"})
        elif "--dataset" not in words and words[1].startswith("-"):
            words += ["--dataset", "digits"]
        words = with_options(words, {"--validation": "100"}, added=False)
        words = with_options(words, sizes(words))
    elif command == "evaluate":
        annealed = {"ais", "bdmc", "sandwich", "rate-distortion"} & set(words)
        few = FEW if annealed else {"--examples": "50"}
        words = with_options(words, few, added=bool(annealed))
        words = ["100" if word == "5000" else word for word in words]
        if "--k" not in words and not annealed:
            words += ["--k", "100"]
    elif command == "calibrate":
        words = with_options(words, {"--examples": "50", "--k": "20"})
    elif command == "reproduce" and "run" in words and "camel" not in words:
        words.append("--dry-run")
    elif command == "export":
        words = with_options(words, {"--replicate": "0"}, added=False)
    elif command == "sweep":
        words = with_options(words, {"--k": "50"})
    return words


def stage(words, made):
    """Create the runs and files that a command line needs; delete the folder that it creates."""
    if words[0] == "train" and "--out" in words:
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    for name in set(words) & {"RUN", "OTHER", "A", "B"} - made:
        if not Path(name).exists() and "--out" not in words[: words.index(name)][-1:]:
            small.unmeasured(small.finished(), Path(name))
            made.add(name)
    rng = np.random.default_rng(0)
    files = {
        "my.npz": lambda path: np.savez(path, small.grey().reshape(-1, 16)),
        "words.npy": lambda path: np.save(path, rng.poisson(3, (100, 4))),
        "colour.npy": lambda path: np.save(path, rng.integers(0, 256, (100, 4, 4, 3), np.uint8)),
        "table.csv": lambda path: path.write_text(
            "\n".join(
                f"{x:.2f},{'' if n % 5 else n},{x**2:.2f}"
                for n, x in enumerate(rng.normal(size=300))
            )
        ),
        "patients.csv": lambda path: path.write_text(
            "\n".join(
                ["patient,age,ward,notes", *(f"p{n},{n % 71},{'AB'[n % 2]},-" for n in range(300))]
            )
        ),
        "survey.csv": lambda path: path.write_text(
            "\n".join(f"{x:.2f},{n},{n % 3},{n % 2}" for n, x in enumerate(rng.normal(size=100)))
        ),
    }
    for name in set(words) & set(files):
        files[name](Path(name))
    for name in (word for word in words if word.endswith(".toml")):
        if not Path(name).exists():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(EXPERIMENT)


def write_experiment(text):
    """Write an experiment file that a page shows, at a small size; its first line is its name."""
    name, _, rest = text.partition("\n")
    tables = re.sub(
        r"^(epochs|latent_sizes|hidden_sizes|dataset|validation) = .*\n", "", rest, flags=re.M
    )
    Path(name.removeprefix("# ")).write_text(tables + EXPERIMENT)


@pytest.mark.parametrize("page", with_blocks("console"))
@pytest.mark.usefixtures("reader")
def test_commands_run(page, monkeypatch, capsys):
    """All commands of a page, in order, in one folder."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    made = set()
    for found in FENCE.finditer(page.read_text()):
        language, text = found[1], found[2]
        if language == "toml":
            write_experiment(text)
        for line in shell_lines(text) if language == "console" and is_run(text) else ():
            words = cut(iwae_words(line))
            stage(words, made)
            try:
                status = cli.main(words)
            except SystemExit as leaving:
                status = leaving.code
            output = capsys.readouterr()
            assert status == 0, f"{line}\niwae {shlex.join(words)}\n{output.err}"


@pytest.mark.slow
@pytest.mark.usefixtures("reader")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_story_runs_unchanged(monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    namespace = {"__name__": "documentation"}
    for found in FENCE.finditer((ROOT / STORY).read_text()):
        language, text = found[1], found[2]
        if language == "python":
            exec(text, namespace)  # noqa: S102
        for line in shell_lines(text) if language == "console" else ():
            status = cli.main(iwae_words(line))
            assert status == 0, f"{line}\n{capsys.readouterr().err}"


# --- names of the command line ----------------------------------------------------------------


def known_options():
    """Every option of every command, as typed."""
    kinds = [command.options for command in cli.COMMANDS.values()]
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    names = {name.replace("_", "-") for name in names | set(TrainConfig.model_fields)}
    return names | {f"no-{name}" for name in names} | {"help", "version"}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_options_named_in_the_prose_exist(page):
    named = set(re.findall(r"`--([a-z-]+)[^`]*`", prose(page)))
    assert named <= known_options()


def test_command_page_shows_every_command():
    shown = {words[0] for words in command_lines(ROOT / "docs" / "commands.md") if words}
    assert shown >= set(cli.COMMANDS)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        code = "\n".join(text for _, text in blocks(page, SHELLS))
        named = re.findall(r"^(?:\$ )?make ([a-z]+)", code, re.MULTILINE)
        named += re.findall(r"`make ([a-z]+)`", prose(page))
        assert set(named) <= targets, relative(page)


# --- links and names --------------------------------------------------------------------------


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_resolve(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    targets += re.findall(r'(?:src|href)="([^"]+)"', prose(page))
    for target in targets:
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_names_of_the_package_exist(page):
    """`iwae.x.y` in code is a module or a member of one."""
    for name in set(re.findall(r"`(iwae(?:\.\w+)+)", page.read_text())):
        parts = name.split(".")
        found = iwae
        for i, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:i]))
            found = getattr(found, part)


def test_contributing_lists_the_modules_in_order():
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    package = Path(iwae.__file__).parent
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert listed == [module for module in ORDER if module in there]
