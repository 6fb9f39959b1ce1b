"""The report page: its content, and how a browser displays it."""

import json
import logging
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import small
from iwae.errors import UserError
from iwae.reports.gallery import gallery_figures
from iwae.reports.page import write
from iwae.reports.page.page_runs import page_run_names, read_page_run
from iwae.reports.page.run_charts import run_training_chart
from iwae.reports.page.write import write_page
from iwae.results.likelihood import evaluate_run
from iwae.results.reading import BOUNDING, read_records
from iwae.runs.trained import trained_model_sha256
from small import finished

ROOT = Path(__file__).parents[2]
ANNEALING = {"chains": 16, "leapfrog": 10, "schedule": "sigmoid", "start": "posterior"}


def copy(folder):
    """A small trained run without records."""
    return small.unmeasured(finished(), folder)


def write_record(run, bounds, *, places=range(50), annealed=False, examples="all", **changes):
    """Write a record of mean bounds by k or temperatures; example i is offset by i / 10."""
    number = "temperatures" if annealed else "k"
    places, rows = np.asarray(places), []
    values = np.asarray([[mean + places / 10 for mean in bounds.values()]])
    for i, budget in enumerate(bounds):
        each = values[:, i].mean(axis=0)
        error = float(each.std(ddof=1) / np.sqrt(len(each)))
        row = {number: budget, "log_likelihood": float(each.mean()), "stderr": error}
        rows.append({**row, "ess_mean": 1.5, "pareto_k_unreliable": None})
    record = {
        "method": "annealed importance sampling" if annealed else "importance sampling",
        "split": "test",
        "weights": "final",
        "pruned": False,
        "subset": None if len(places) == 50 else {"examples": len(places), "seed": 0},
        "n": len(places),
        "test_sha256": "a" * 64,
        "examples_sha256": examples,
        "model_sha256": trained_model_sha256(run, "final", 0),
        "epoch": 4,
        "active_units": [2],
        "dataset": "pictures",
        "by_temperatures" if annealed else "by_k": rows,
        **({"annealing": ANNEALING, "verdict": CONVERGED} if annealed else {}),
        **changes,
    }
    name = f"test-final-{number}{max(bounds)}-n{len(places)}"
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / f"{name}.json").write_text(json.dumps(record))
    arrays = {number: np.asarray(list(bounds)), "index": places, "log_likelihood": values}
    np.savez(run / "evaluations" / f"{name}.npz", **arrays)
    return record


CONVERGED = {"word": "converged", "reason": "T and T/10 agree"}


@pytest.fixture
def without_figures(monkeypatch):
    """Pages without the figures of each run, which are slow to draw."""
    monkeypatch.setattr(write, "gallery_figures", lambda *_, **__: iter(()))


class Reader(HTMLParser):
    """Parses a page into its text, table rows and attributes."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tables, self.attributes, self.tags = [], [], [], Counter()
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *pair) for pair in attrs]
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data

    def text(self):
        return " ".join(" ".join(self.words).split())

    def comparison(self):
        """Header -> cell, for each run by name."""
        head, *rows = [[" ".join(cell.split()) for cell in row] for row in self.tables[0]]
        return {
            row[0].removesuffix(" not measured"): dict(zip(head, row, strict=True)) for row in rows
        }


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def parsed_page(tmp_path, *runs, **options):
    return read(write_page(runs, tmp_path / "out" / "report.html", **options))


# --- content ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_figures")
def test_table_has_every_recorded_bound(tmp_path):
    runs = [copy(tmp_path / name) for name in ("one", "two")]
    first = write_record(runs[0], {1: -19.0, 50: -17.0})
    second = write_record(runs[0], {5: -16.0, 50: -15.5}, annealed=True, places=range(0, 50, 5))
    third = write_record(runs[1], {1: -29.0}, between_replicates_sd=None)
    table = parsed_page(tmp_path, *runs).comparison()
    assert list(table) == ["one", "two"]
    for name, record, prefix in (("one", first, "L"), ("one", second, "AIS"), ("two", third, "L")):
        for row in record.get("by_k", record.get("by_temperatures")):
            number = row.get("k", row.get("temperatures"))
            cell = table[name][f"{prefix}{number}"]
            expected = f"{row['log_likelihood']:.2f} ± {row['stderr']:.2f} n = {record['n']}"
            if record["subset"] is not None:  # examples differ alike in all bounds
                mean = {5: -16.0, 50: -15.5}[number] + 2.45
                error = np.std(np.arange(50) / 10, ddof=1) / np.sqrt(50)
                expected = f"{mean:.2f} ± {error:.2f} n = 50, from 10 and L50 of all"
            assert cell.startswith(expected.replace("-", "\N{MINUS SIGN}"))
    assert table["two"]["AIS50"] == table["two"]["L50"] == "–"
    assert table["one"]["objective"] == "iwae, k = 2"
    assert table["one"]["layers"] == "1 of 2"
    assert table["one"]["epochs"] == "4"
    assert table["one"]["annealing"] == "converged"
    assert table["one"]["data"] == "pictures.npz"


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_committed_results_are_shown_unchanged(tmp_path):
    folders = (path.parents[1] for path in ROOT.glob("results/**/evaluations/records.jsonl"))
    runs = sorted(run for run in folders if "labels" not in run.parts)[-6:]
    page = parsed_page(tmp_path, *runs)
    found = 0
    for run in runs:
        for path, record in read_records(run, BOUNDING):
            if record.pruned:
                continue
            digits = 2 if record.true_log_likelihood is None else 4
            for row in (*record.by_k, *record.by_temperatures):
                words = f"{row.log_likelihood:.{digits}f} ± {row.stderr:.{digits}f}"
                found += words.replace("-", "\N{MINUS SIGN}") in page.text()
                assert record.subset or words.replace("-", "\N{MINUS SIGN}") in page.text(), path
    assert found >= 3
    published = [row["published NLL"] for row in page.comparison().values()]
    expected = re.compile(r"\d+\.\d\d \d+(\+\d+)* active, 3,280 epochs")
    assert any(expected.fullmatch(words) for words in published)


@pytest.mark.usefixtures("without_figures")
def test_measured_records_are_shown(tmp_path):
    """Measured records have the same shape as those that these tests write."""
    run = copy(tmp_path / "run")
    record = evaluate_run(run, ks=(1, 8))
    row = parsed_page(tmp_path, run).comparison()["run"]
    for entry in record["by_k"]:
        value = f"{entry['log_likelihood']:.2f}".replace("-", "\N{MINUS SIGN}")
        words = f"{value} ± {entry['stderr']:.2f} n = 50"
        if entry["k"] > 1:
            words += f" Monte Carlo error {entry['monte_carlo_error']:.3f}, k-hat unknown"
        assert row[f"L{entry['k']}"] == words
    assert row["active units"] == "+".join(map(str, record["active_units"]))


@pytest.mark.usefixtures("without_figures")
def test_unmeasured_run_is_listed_with_the_remedy(tmp_path):
    runs = [copy(tmp_path / name) for name in ("measured", "bare run")]
    write_record(runs[0], {1: -19.0})
    page = parsed_page(tmp_path, *runs)
    assert page.comparison()["bare run"]["L1"] == "–"
    assert "bare run: iwae evaluate 'bare run'" in page.text()
    assert "iwae evaluate measured" not in page.text()


def test_run_without_models_has_records_but_no_figures(tmp_path, caplog):
    run = copy(tmp_path / "run")
    write_record(run, {1: -19.0})
    shutil.rmtree(run / "models")
    with caplog.at_level(logging.WARNING):
        page = parsed_page(tmp_path, run)
    assert "Pictures are missing" in page.text()
    assert "iwae figures run" in page.text()
    assert "no model in" in caplog.text
    assert page.comparison()["run"]["L1"].startswith("\N{MINUS SIGN}16.55 ± 0.21")


@pytest.mark.slow
def test_figures_that_cannot_be_drawn_are_reported_missing(tmp_path, monkeypatch):
    def some(*arguments, **options):
        yield from islice(gallery_figures(*arguments, **options), 2)
        raise UserError(f"no data in {tmp_path}")

    monkeypatch.setattr(write, "gallery_figures", some)
    page = parsed_page(tmp_path, copy(tmp_path / "run"))
    assert "Pictures are missing" in page.text()
    assert str(tmp_path) not in page.text()
    assert "Training curves" in page.text()


@pytest.mark.usefixtures("without_figures")
def test_columns_without_values_are_omitted(tmp_path):
    (row,) = parsed_page(tmp_path, copy(tmp_path / "run")).comparison().values()
    assert list(row) == ["run", "data", "objective", "layers", "epochs", "seeds"]


@pytest.mark.usefixtures("without_figures")
def test_records_of_other_models_are_left_out(tmp_path):
    run = copy(tmp_path / "run")
    write_record(run, {1: -19.0})
    write_record(run, {50: -18.0}, model_sha256="other")
    page = parsed_page(tmp_path, run)
    assert "L50" not in page.comparison()["run"]
    assert "Records of other models are omitted" in page.text()
    assert "Records of other models" not in parsed_page(tmp_path, copy(tmp_path / "other")).text()


@pytest.mark.usefixtures("without_figures")
def test_record_of_more_examples_takes_precedence(tmp_path):
    run = copy(tmp_path / "run")
    write_record(run, {1: -19.0})
    write_record(run, {1: -10.0}, places=range(9), examples="few")
    cell = parsed_page(tmp_path, run).comparison()["run"]["L1"]
    assert cell.startswith("\N{MINUS SIGN}16.55")


@pytest.mark.usefixtures("without_figures")
def test_warnings_are_shown(tmp_path):
    run = copy(tmp_path / "run")
    unreliable = {"k": 1, "log_likelihood": -19.0, "stderr": 0.1, "ess_mean": 1.0}
    unreliable |= {"pareto_k_unreliable": 0.42}
    ordering = {"violations": ["L_50 is below L_1 by 1.0 +- 0.1"]}
    write_record(run, {1: -19.0}, by_k=[unreliable], ordering=ordering)
    verdict = {"word": "not converged", "reason": "T and T/10 differ by 9 +- 1 nats"}
    write_record(run, {5: -18.0, 50: -9.0}, annealed=True, verdict=verdict)
    page = parsed_page(tmp_path, run).text()
    assert "not in order run: L_50 is below L_1 by 1.0 ± 0.1" in page
    assert "run: not converged. T and T/10 differ by 9 ± 1 nats" in page
    assert "run: 42% of the examples; L_1 may be too low" in page
    other = copy(tmp_path / "other")
    write_record(other, {1: -19.0}, by_k=[unreliable | {"pareto_k_unreliable": 0.01}])
    assert "unreliable (" not in parsed_page(tmp_path, other).text()


@pytest.mark.usefixtures("without_figures")
def test_non_finite_bound_is_shown_as_not_finite(tmp_path):
    run = copy(tmp_path / "run")
    row = {"k": 1, "log_likelihood": None, "stderr": None, "pareto_k_unreliable": None}
    write_record(run, {1: -19.0}, by_k=[row])
    assert parsed_page(tmp_path, run).comparison()["run"]["L1"].startswith("not finite")


# --- comparisons use the same examples ----------------------------------------------------------


@pytest.mark.usefixtures("without_figures")
def test_different_test_sets_are_flagged_and_not_compared(tmp_path):
    runs = [copy(tmp_path / name) for name in ("one", "two")]
    write_record(runs[0], {1: -19.0})
    write_record(runs[1], {1: -18.0}, test_sha256="b" * 64)
    page = parsed_page(tmp_path, *runs).text()
    assert "The runs were measured on different test sets" in page
    assert "aaaaaaaaaaaa…" in page
    assert "bbbbbbbbbbbb…" in page
    assert "Paired differences" not in page


@pytest.mark.usefixtures("without_figures")
def test_differences_are_paired_on_shared_examples(tmp_path):
    runs = [copy(tmp_path / name) for name in ("one", "two")]
    write_record(runs[0], {1: -19.0, 50: -17.0})
    write_record(runs[1], {1: -18.5, 9: -18.0}, places=range(10), examples="ten")
    noise = np.random.default_rng(0).normal(size=(1, 2, 10))
    file = runs[1] / "evaluations" / "test-final-k9-n10.npz"
    with np.load(file) as arrays:
        changed = dict(arrays)
    changed["log_likelihood"] = changed["log_likelihood"] + noise
    np.savez(file, **changed)
    page = parsed_page(tmp_path, *runs)
    words = page.text()
    assert "different test sets" not in words
    assert "L_1: of 10 and 50 examples" in words
    difference = 0.5 + noise[0, 0]
    error = difference.std(ddof=1) / np.sqrt(10)
    assert "Difference to one" in words
    expected = f"{difference.mean():+.3f} ± {error:.3f}".replace("-", "\N{MINUS SIGN}")
    head, (first, its_mean), (name, cell) = page.tables[1]
    assert [*head, first, name] == ["run", "L1 n = 10, a subset", "one", "two"]
    assert its_mean.split() == ["\N{MINUS SIGN}18.550", "±", "0.096"]  # of the ten alone
    assert cell.startswith(expected)
    assert ("may be chance" in cell) == (abs(difference.mean()) < 3 * error)
    mean = f"mean {-18.55 + difference.mean():.3f} ±".replace("-", "\N{MINUS SIGN}")
    assert mean in cell


@pytest.mark.usefixtures("without_figures")
def test_run_without_a_bound_does_not_hide_other_differences(tmp_path):
    runs = [copy(tmp_path / name) for name in ("one", "two", "three")]
    for run, bounds in zip(runs, ({1: -19.0, 50: -17.0}, {1: -18.0}, {50: -16.0}), strict=True):
        write_record(run, bounds)
    head, _, two, three = parsed_page(tmp_path, *runs).tables[1]
    assert head == ["run", "L1 n = 50", "L50 n = 50"]
    assert [two[1][:6], two[2], three[1], three[2][:6]] == ["+1.000", "–", "–", "+1.000"]


@pytest.mark.usefixtures("without_figures")
def test_same_examples_need_no_caution(tmp_path):
    runs = [copy(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        write_record(run, {1: -19.0})
    text = parsed_page(tmp_path, *runs).text()
    for words in ("different test sets", "different examples", "different ways", "same examples"):
        assert words not in text
    assert "Paired differences" in text


@pytest.mark.usefixtures("without_figures")
def test_subsets_and_differing_annealing_are_flagged(tmp_path):
    runs = [copy(tmp_path / name) for name in ("one", "two")]
    write_record(runs[0], {1: -19.0})
    for run, chains in zip(runs, (16, 8), strict=True):
        how = ANNEALING | {"chains": chains}
        write_record(
            run, {5: -18.0, 50: -17.0}, annealed=True, places=range(9), examples="b", annealing=how
        )
    page = parsed_page(tmp_path, *runs).text()
    assert "Not all bounds are of the same examples" in page
    assert "AIS_50: from the posterior, 16 chains" in page
    assert "Every bound on the same examples" in page
    # AIS_50 of the nine examples that were annealed, and extrapolated to all by L_1.
    assert "a subset of 9" in page
    assert "\N{MINUS SIGN}16.60 ± 0.09" in page
    assert "50, of which 9 annealed" in page
    assert "\N{MINUS SIGN}14.55 ± 0.21" in page


# --- names and privacy --------------------------------------------------------------------------


@pytest.mark.usefixtures("without_figures")
def test_names_are_escaped(tmp_path):
    name = '<b>&"x'
    run = copy(tmp_path / name)
    write_record(run, {1: -19.0})
    page = parsed_page(tmp_path, run, copy(tmp_path / "<script>alert(1)<"))
    assert name in page.comparison()
    assert page.tags["b"] == 0
    assert page.tags["script"] == 1
    assert ("th", "data-value", name) in page.attributes


def test_run_names_are_unique(tmp_path):
    names = ["a/run", "b/run", "c", "x/seed-0", "y/seed-0"]
    assert page_run_names([tmp_path / name for name in names]) == names
    assert page_run_names([tmp_path / "run" / ".." / "run"]) == ["run"]


@pytest.mark.slow
def test_page_loads_nothing_and_reveals_no_folder(full_page):
    text = full_page.read_text(encoding="utf-8")
    page = Reader(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    for tag, name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
            assert value.startswith(("data:", "#")), (tag, name, value[:60])
    assert str(small.FOLDER) not in text
    assert str(full_page.parent) not in text
    assert "default-src 'none'" in text


# --- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    """A page of three small runs with every kind of content."""
    folder = tmp_path_factory.mktemp("page")
    runs = [copy(folder / name) for name in ('one <b>&"x', "two", "three")]
    for run, level in zip(runs[:2], (-20.0, -10.0), strict=True):
        write_record(run, {1: level - 2, 50: level})
        write_record(
            run, {5: level, 50: level + 1}, annealed=True, places=range(0, 50, 5), examples="few"
        )
    shutil.rmtree(runs[2] / "models")
    return write_page(runs, folder / "report.html")


@pytest.mark.slow
def test_every_figure_has_a_caption_and_alternative_text(full_page):
    page = read(full_page)
    headings = {
        *("Samples", "Reconstructions", "Posteriors", "Training curves"),
        *("Filters of the decoder", "Samples through training"),
    }
    assert all(heading in page.text() for heading in headings)
    assert page.tags["figure"] == page.tags["figcaption"] >= 2 * len(headings)
    described = [
        value
        for tag, name, value in page.attributes
        if (tag, name) in {("img", "alt"), ("svg", "aria-label")}
    ]
    assert len(described) == page.tags["figure"]
    assert len(set(described)) == len(described)  # each names its runs
    assert min(map(len, described)) > 30


@pytest.mark.slow
def test_identifiers_are_unique(full_page):
    """Charts that were drawn separately share one document."""
    attributes = read(full_page).attributes
    names = Counter(value for _, name, value in attributes if name == "id")
    assert names
    assert max(names.values()) == 1
    text = full_page.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(names)


@pytest.mark.slow
def test_charts_follow_the_colours_of_the_page(full_page):
    charts = re.findall(r"<svg role.*?</svg>", full_page.read_text("utf-8"), re.DOTALL)
    assert len(charts) >= 3
    for chart in charts:
        assert not {"#222222", "#ffffff", "#000000"} & set(re.findall("#[0-9a-f]{6}", chart))
        assert "currentColor" in chart


# --- invalid requests ---------------------------------------------------------------------------


def test_invalid_requests_are_refused_in_one_line_with_the_remedy(tmp_path):
    run, out = copy(tmp_path / "run"), tmp_path / "report.html"
    for runs, path, message in (
        ([], out, "name the folder of at least one"),
        ([tmp_path], out, "holds no run: config.toml is missing"),
        ([tmp_path / "nowhere"], out, "holds no run"),
        ([run, tmp_path / "run" / "models" / ".."], out, "named twice"),
        ([run], tmp_path, "is a folder; name a file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            write_page(runs, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="final or best or both, not 'first'"):
        write_page([run], out, weights="first")
    assert not out.exists()


@pytest.mark.usefixtures("without_figures")
def test_page_is_written_atomically(tmp_path, monkeypatch):
    run, out = copy(tmp_path / "run"), tmp_path / "out" / "report.html"
    out.parent.mkdir()
    out.write_text("before")

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            write_page([run], out)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert out.read_text() == "before"
    write_page([run], out)
    assert "before" not in out.read_text()[:20]


def test_inconsistent_training_rows_are_left_out(tmp_path, caplog):
    run = read_page_run(copy(tmp_path / "run"), "run", "final")
    odd = [{"epoch": 1, "train_bound": [-2.0]}, {"epoch": 2, "train_bound": [-1.0, -3.0]}]
    assert run_training_chart({0: run._replace(metrics=odd)}) is None
    assert "number of values of 'train_bound' changes" in caplog.text
    assert run_training_chart({0: run, 1: run._replace(metrics=odd)}) is not None


@pytest.mark.slow
def test_page_of_one_run_leaves_the_run_unchanged(tmp_path):
    run = copy(tmp_path / "run")
    before = sorted(run.rglob("*"))
    page = parsed_page(tmp_path, run)
    assert sorted(run.rglob("*")) == before
    assert "Samples. Means of p(x|z)" in page.text()
    assert page.tags["figure"] >= 8
    assert "compared" not in page.text()


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_best_weights_have_their_own_records(tmp_path):
    run = copy(tmp_path / "run")
    write_record(run, {1: -19.0})
    digest = trained_model_sha256(run, "best", 0)
    write_record(run, {50: -9.0}, weights="best", model_sha256=digest)
    assert "L50" not in parsed_page(tmp_path, run).comparison()["run"]
    page = parsed_page(tmp_path, run, weights="best")
    assert list(page.comparison()["run"])[6:] == ["L50", "active units"]
    assert "of the best weights" in page.text()
    assert "iwae report run --weights best --out report.html" in page.text()
    bare = parsed_page(tmp_path, copy(tmp_path / "bare"), weights="best")
    assert "iwae evaluate bare --weights best" in bare.text()


@pytest.mark.usefixtures("without_figures")
def test_best_and_final_weights_are_shown_side_by_side(tmp_path):
    run = copy(tmp_path / "run")
    digest = trained_model_sha256(run, "best", 0)
    write_record(run, {50: -9.0}, weights="best", model_sha256=digest)
    remedy = "run: measured with best weights: add --weights best, or iwae evaluate run"
    assert remedy in parsed_page(tmp_path, run).text()
    write_record(run, {1: -19.0, 50: -8.5, 60: -8.0})
    page = parsed_page(tmp_path, run, weights="both")
    assert list(page.comparison()) == ["run, final", "run, best"]
    assert "add --weights best" not in page.text()
    assert "iwae report run --weights both --out report.html" in page.text()
    _, (first, _), (second, cell) = page.tables[1]
    assert (first, second) == ("run, final", "run, best")
    assert cell.startswith("\N{MINUS SIGN}0.500 ± 0.000")
    write_record(run, {5: -8.4, 50: -8.2}, annealed=True, weights="best", model_sha256=digest)
    annealed = parsed_page(tmp_path, run, weights="both").tables[2]
    assert [row[0] for row in annealed] == ["run", "run, best"]
    assert any(cell.startswith("\N{MINUS SIGN}5.75 ± ") for cell in annealed[1])


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture
def open_page(browser, full_page):
    """Opens the page from its file; on teardown no error may have occurred."""
    contexts, errors = [], []

    def open_tab(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda message: errors.append(message.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("requestfailed", lambda request: errors.append(request.url[:100]))
        tab.on("request", lambda request: requests.append(request.url[:100]))
        tab.goto(full_page.as_uri(), wait_until="load")
        return tab

    requests = []
    yield open_tab
    for context in contexts:
        context.close()
    assert not errors
    assert not [url for url in requests if not url.startswith(("file:", "data:"))]


CORNERS = """
    [...document.images].map(image => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        return [...context.getImageData(canvas.width - 1, canvas.height - 1, 1, 1).data];
    })
"""


@pytest.mark.slow
def test_page_opens_from_the_file_system_with_all_images(open_page):
    tab = open_page()
    widths = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 8
    assert min(widths) > 0
    tab.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    corners = tab.evaluate(CORNERS)
    assert corners == [[255, 255, 255, 255]] * len(widths)  # the margin, at the very end of a file
    assert tab.locator("figure svg[role=img]").count() >= 3


def column(tab, title):
    """The name, value below a header, and sort state of each run, from top to bottom."""
    return tab.evaluate(
        """title => {
            const table = document.querySelector("#comparison");
            const heads = [...table.tHead.rows[0].cells];
            const place = heads.findIndex(head => head.textContent.trim() === title);
            return [...table.tBodies[0].rows].map(
                row => [row.cells[0].dataset.value, row.cells[place].dataset.value ?? null,
                        heads[place].getAttribute("aria-sort")]);
        }""",
        title,
    )


@pytest.mark.slow
def test_clicking_a_header_sorts_both_ways_with_missing_values_last(open_page):
    tab = open_page()
    assert [name for name, _, _ in column(tab, "L50")] == ['one <b>&"x', "two", "three"]
    button = tab.locator("#comparison thead button", has_text=re.compile(r"^L50$"))
    button.click()
    rows = column(tab, "L50")
    assert [name for name, _, _ in rows] == ["two", 'one <b>&"x', "three"]
    assert rows[0][2] == "descending"
    assert float(rows[0][1]) > float(rows[1][1])
    assert rows[2][1] is None
    button.press("Enter")  # by keyboard
    rows = column(tab, "L50")
    assert [name for name, _, _ in rows] == ['one <b>&"x', "two", "three"]
    assert rows[0][2] == "ascending"
    tab.locator("#comparison thead button", has_text="run").click()
    assert [name for name, _, _ in column(tab, "run")] == ['one <b>&"x', "three", "two"]
    assert column(tab, "L50")[0][2] is None


@pytest.mark.slow
def test_table_sorts_numerically(open_page):
    tab = open_page()
    tab.evaluate(
        """() => {
            const table = document.querySelector("#comparison");
            const heads = [...table.tHead.rows[0].cells];
            const place = heads.findIndex(head => head.textContent.trim() === "L50");
            [...table.tBodies[0].rows].forEach((row, i) => {
                row.cells[place].dataset.value = ["-9.5", "1e2", "-20"][i];
            });
        }"""
    )
    tab.locator("#comparison thead button", has_text=re.compile(r"^L50$")).click()
    assert [name for name, _, _ in column(tab, "L50")] == ["two", 'one <b>&"x', "three"]


@pytest.mark.slow
def test_narrow_screen_scrolls_tables_not_the_page(open_page):
    tab = open_page(viewport={"width": 375, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    wide = "[...document.querySelectorAll('.scroll')].some(one => one.scrollWidth > 375)"
    assert tab.evaluate(wide)
    boxes = tab.evaluate(
        "[...document.querySelectorAll('.grid > figure')].map(one => one.getBoundingClientRect().x)"
    )
    assert len(set(boxes)) == 1  # stacked


LUMINANCE = """
    colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(c => {
            c /= 255;
            return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }
"""


def luminances(tab, selector):
    """The luminance of the text and of its background (WCAG)."""
    return tab.evaluate(
        f"""selector => {{
            const luminance = {LUMINANCE};
            const one = document.querySelector(selector);
            let behind = one;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") {{
                behind = behind.parentElement;
            }}
            return [getComputedStyle(one).color, getComputedStyle(behind).backgroundColor]
                .map(luminance);
        }}""",
        selector,
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark_mode(open_page, scheme):
    tab = open_page(color_scheme=scheme)
    back = luminances(tab, "body")[1]
    assert back < 0.05 if scheme == "dark" else back > 0.9
    selectors = """
        body h1 .made figcaption small .legend .notice .caution>strong td .enlarge thead>tr>th
    """
    for selector in selectors.split():
        ink, paper = sorted(luminances(tab, selector))
        assert (paper + 0.05) / (ink + 0.05) >= 4.5, selector
    ink = tab.evaluate(
        f"({LUMINANCE})(getComputedStyle(document.querySelector('figure svg text')).fill)"
    )
    assert (ink > 0.5) == (scheme == "dark")


@pytest.mark.slow
def test_click_enlarges_a_figure(open_page):
    tab = open_page()
    picture = tab.locator("button.enlarge img").first
    small_width = picture.bounding_box()["width"]
    picture.click()
    large = tab.locator("dialog[open] img")
    assert large.bounding_box()["width"] > 1.5 * small_width
    tab.keyboard.press("Escape")
    assert tab.locator("dialog[open]").count() == 0
