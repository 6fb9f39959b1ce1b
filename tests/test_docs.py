"""The documentation is run: its Python, its command lines, its links and its lists of names."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

import iwae
from iwae import cli
from iwae.cli import parsing
from iwae.config import TrainConfig
from iwae.data import list_datasets
from iwae.presets import PRESETS
from test_design import ORDER

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = {"console", "bash", "sh", "shell"}

EXPERIMENT = 'dataset = "digits"\nepochs = 1\n'
"""Stands in for every experiment file that a command line names."""

PLACEHOLDERS = {"I": "0", "N": "1", "...": None}
"""What stands for the words that a reader replaces; None leaves the word out."""


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


def with_python():
    return [page for page in PAGES if any(blocks(page, {"python"}))]


# --- Python -----------------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """An empty folder, and JAX as a reader has it: the tests' strict types break Optax's Adam."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("page", with_python(), ids=relative)
@pytest.mark.usefixtures("reader", "quick_compilation")
@pytest.mark.filterwarnings("ignore:the validation bound was still rising")  # examples are short
def test_python_runs(page):
    code = list(blocks(page, {"python"}))
    here = {row.name for row in list_datasets() if row.present}
    for name in re.findall(r'load_dataset\("([\w-]+)"', "".join(text for _, text in code)):
        if name not in here:
            pytest.skip(f"needs the files of {name}")
    namespace = {"__name__": "documentation"}
    for line, text in code:
        # Blank lines in front make a traceback point at the line of the page.
        exec(compile("\n" * (line - 1) + text, page, "exec"), namespace)  # noqa: S102


# --- command lines ----------------------------------------------------------------------------


def command_lines(page):
    """Every `iwae` or `python -m iwae` line of a page's shell blocks and inline code, as words.

    The mere name of a command in the prose, such as `iwae evaluate`, is no command line.
    """
    shell = [
        line.removeprefix("$ ")
        for _, text in blocks(page, SHELLS)
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("$ ") or "$ " not in text
    ]
    inline = re.findall(r"`((?:iwae|python -m iwae) [^`]+)`", prose(page))
    inline = [line for line in inline if line.removeprefix("iwae ") not in cli.COMMANDS]
    for line in [*shell, *inline]:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words[:3] == ["python", "-m", "iwae"]:
            yield words[3:]
        elif words[:1] == ["iwae"]:
            yield words[1:]


def filled_in(words):
    """The words with something real for each placeholder."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    words = [word for word in words if word is not None]
    for i, word in enumerate(words[:-1]):
        if word == "--preset" and words[i + 1] == "NAME":
            words[i + 1] = next(iter(PRESETS))
    return words


class Parsed(Exception):  # noqa: N818 - nothing went wrong
    """A command line was understood."""


def parse(words, monkeypatch):
    """Parse a command line as `iwae` does, and stop there."""
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
def test_wrong_command_lines_do_not_parse(monkeypatch):
    for line in ("trian", "train --datset digits", "evaluate RUN --k many", "train --preset no"):
        assert parse(line.split(), monkeypatch) == cli.USAGE_ERROR


def known_options():
    """Every option of every command, as it is typed."""
    kinds = [command.options for command in cli.COMMANDS.values()]
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    names = {name.replace("_", "-") for name in names | set(TrainConfig.model_fields)}
    return names | {f"no-{name}" for name in names} | {"help", "version"}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_options_named_in_the_prose_exist(page):
    named = set(re.findall(r"`--([a-z-]+)[^`]*`", prose(page)))
    assert named <= known_options()


def test_the_readme_shows_every_command():
    shown = {words[0] for words in command_lines(ROOT / "README.md") if words}
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
def test_links_lead_somewhere(page):
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
    """`iwae.x.y` in code is a module or something in one."""
    for name in set(re.findall(r"`(iwae(?:\.\w+)+)", page.read_text())):
        parts = name.split(".")
        found = iwae
        for i, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:i]))
            found = getattr(found, part)


def test_contributing_lists_the_modules_in_their_order():
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    package = Path(iwae.__file__).parent
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert listed == [module for module in ORDER if module in there]
