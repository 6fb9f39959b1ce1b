"""The documentation site: built without warnings, complete, and displayed by a browser."""

import functools
import http.server
import importlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import iwae

ROOT = Path(__file__).parents[2]
WIDE, NARROW = 1400, 380

pytest.importorskip("mkdocs", reason="needs the packages of iwae[docs]")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    arguments = ["build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert not built.stderr
    return folder


def pages(site):
    return sorted(
        path.relative_to(site) for path in site.rglob("*.html") if path.name != "404.html"
    )


@pytest.mark.slow
def test_every_chapter_and_notebook_is_a_page(site):
    docs = ROOT / "docs"
    sources = [*docs.rglob("*.md"), *docs.rglob("*.ipynb")]
    assert set(pages(site)) == {path.relative_to(docs).with_suffix(".html") for path in sources}
    assert not (site / "tools").exists()


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site):
    for path in pages(site):
        text = (site / path).read_text()
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), (path, tag)


@pytest.mark.slow
def test_formulas_need_no_javascript(site):
    text = (site / "methods.html").read_text()
    assert text.count("<math ") >= 4
    assert "```math" not in text
    assert "&amp;#x" not in text


@pytest.mark.slow
def test_notebooks_show_their_figures(site):
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{path.stem}.html").read_text()
        figures = path.read_text().count('"image/png"')
        assert figures >= 1
        assert len(re.findall(rf'<img alt="[^"]+" src="{path.stem}-\d+\.png"', page)) == figures


# --- the API reference ------------------------------------------------------------------------


def documented_names():
    """Each identifier of the API reference, in page order."""
    for path in sorted((ROOT / "docs" / "api").glob("*.md")):
        for name in re.findall(r"^::: (\S+)$", path.read_text(), re.MULTILINE):
            yield path, name


def test_every_public_name_is_in_the_reference_once():
    found = [name.rpartition(".")[2] for _, name in documented_names()]
    assert sorted(found) == sorted(iwae.__all__)


@pytest.mark.slow
def test_reference_documents_the_public_objects(site):
    for path, identifier in documented_names():
        module, _, name = identifier.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(iwae, name)
        text = (site / "api" / f"{path.stem}.html").read_text()
        assert f'id="{identifier}"' in text, identifier


def test_overview_lists_every_public_name():
    overview = (ROOT / "docs" / "api" / "index.md").read_text()
    assert set(iwae.__all__) <= set(re.findall(r"`(\w+)`", overview))


# --- in a browser -----------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without logging."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


BROKEN = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"


def faults(tab, address, path):
    """The faults of a page: errors, requests to other hosts, missing images, overflow."""
    wrong = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("requestfailed", lambda request: wrong.append(request.url[:100]))
    tab.on("request", lambda request: seen.append(request.url[:100]))
    seen = []
    tab.goto(f"{address}{path}", wait_until="load")
    wrong += [url for url in seen if not url.startswith((address, "data:"))]
    wrong += [f"missing: {source}" for source in tab.evaluate(BROKEN)]
    if (over := tab.evaluate(OVERFLOW)) > 0:
        wrong.append(f"{over} pixels too wide")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize(("width", "colours"), [(WIDE, "light"), (NARROW, "dark")])
def test_every_page_is_displayed_without_faults(browser, site, address, width, colours):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
    found = {}
    for path in pages(site):
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        if wrong := faults(tab, address, path):
            found[str(path)] = wrong
        tab.close()
    context.close()
    assert not found


@pytest.mark.slow
def test_faults_of_a_page_are_detected(browser, site, address):
    """A missing image, one from another host, and a word that is too wide."""
    page = site / "broken.html"
    page.write_text('<img src="no.png"><img src="http://x.invalid/a.png">' + "w" * 400)
    context = browser.new_context(viewport={"width": NARROW, "height": 900})
    found = " ".join(faults(context.new_page(), address, page.name))
    context.close()
    page.unlink()
    for fault in ("no.png", "x.invalid", "too wide"):
        assert fault in found


@pytest.mark.slow
@pytest.mark.parametrize("served", [True, False])
def test_search_finds_a_page(browser, site, address, served):
    context = browser.new_context(viewport={"width": WIDE, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    tab.goto(f"{address if served else site.as_uri() + '/'}index.html")
    tab.locator(".md-search__input").first.click()
    tab.locator(".md-search__input").first.press_sequentially("annealed importance")
    tab.locator(".md-search-result__link").first.wait_for(timeout=60_000)
    assert "html" in tab.locator(".md-search-result__link").first.get_attribute("href")
    context.close()
