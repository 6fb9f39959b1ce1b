"""Hooks of MkDocs: notebooks as pages, and formulas without JavaScript."""

import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.superfences import SuperFencesException

sys.path.insert(0, str(Path(__file__).parent))
import notebooks


def formula(code: str, *_: Any, **__: Any) -> str:
    """A ```math block as MathML, which browsers display without JavaScript."""
    try:
        return f'<div class="formula">{convert(code.strip(), display="block")}</div>'
    except Exception as error:  # other exceptions would silently leave the formula as it is
        raise SuperFencesException(f"no formula: {code}") from error


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Render fences of formulas by `formula`."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "formula", "format": formula}]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page and its pictures for each notebook, which remains for download."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = Path(file.abs_src_path or "")
        folder = Path(file.src_uri).parent
        made = notebooks.page(notebooks.read(path), path.stem)
        note = f"*[Download this page as a notebook]({path.name}).*\n\n"
        heading, _, rest = made.text.partition("\n")
        text = f"{heading}\n\n{note}{rest}"
        page = File.generated(config, f"{folder}/{path.stem}.md", content=text)
        files.append(page)
        for name, content in made.pictures.items():
            files.append(File.generated(config, f"{folder}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to notebooks to their pages, except that to the page's own notebook."""

    def to_page(link: re.Match[str]) -> str:
        own = Path(link[1]).name == Path(page.file.src_uri).stem
        return link[0] if own else f"]({link[1]}.md)"

    return re.sub(r"\]\(((?!https?:)[^)\s]+)\.ipynb\)", to_page, markdown)
