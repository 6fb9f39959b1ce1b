"""Figures as markup of a page: SVG and PNG."""

import base64
import io
import re

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from iwae.reports.figures import style

COLOURS = {
    style.INK: "currentColor",
    style.FAINT: "var(--faint)",
    style.PALE: "var(--pale)",
    "#ffffff": "var(--paper)",
    **{colour.lower(): f"var(--run-{i})" for i, colour in enumerate(style.PALETTE)},
}
"""Colour of a chart -> its name on the page, which has a light and a dark theme."""


def svg_markup(figure: Figure, name: str, alt: str) -> Markup:
    """A chart as inline SVG.

    Args:
        name: prefix of its identifiers, unique on the page; letters and digits.
        alt: alternative text.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "iwae", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[^"]*pt"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text).replace("url(#", f"url(#{name}-")
    text = text.replace('xlink:href="#', f'href="#{name}-').replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub("#[0-9a-f]{6}", lambda found: COLOURS.get(found[0], found[0]), text)
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    return label + Markup(text.removeprefix("<svg"))  # noqa: S704 - made by Matplotlib


def png_markup(figure: Figure, alt: str) -> Markup:
    """A picture of pixels as an inline image, with an alternative text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    width, height = (round(style.DPI * side) for side in figure.get_size_inches())
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" width="{}" height="{}" src="data:image/png;base64,{}">').format(
        alt, width, height, data
    )
