"""Figures as SVG that is the same at every run, and that fits into a page, light or dark."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK = "#010203"  # drawn in place of black; becomes the colour of the text around the figure
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "grid.color", "hatch.color", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), INK),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "none"),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "advbench",
    "text.parse_math": False,  # a name may hold dollars
}
FONTS = "system-ui, 'DejaVu Sans', Verdana, sans-serif"
POINT = 96 / 72  # pixels of a page
_ALONE = "<style>svg{color:#1b1f24}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


@contextmanager
def house_style() -> Iterator[None]:
    """Settings under which figures are made and drawn, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def svg(figure: Figure, *, alone: bool = True) -> str:
    """A figure as SVG, the same text for the same figure and version of matplotlib.

    Text stays text, what is black takes the colour of the text around it, and ids are the figure's own.

    Args:
        figure: with what it shows as its label, which screen readers say.
        alone: as a file of its own, which follows the reader's light or dark screen; else as an element of a page,
            without any style attribute, which a page's security policy would refuse.
    """
    raw = io.StringIO()
    # A glyph that matplotlib's font lacks is none of the reader's, whose own fonts show the text.
    with warnings.catch_warnings(), house_style():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(raw, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = raw.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'style="([^"]*)"', _attributes, text)
    text = re.sub(rf"{INK}", "currentColor", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = _own_ids(re.sub(r"\n\s*", "\n", text))
    text = re.sub(r"<[^>]*>", _rounded, text)
    text = re.sub(r"<svg[^>]*>", lambda found: _opening(found.group(), str(figure.get_label())), text, count=1)
    if alone:
        head, opening, rest = text.partition(">")
        return f"{head}{opening}\n<title>{escape(str(figure.get_label()))}</title>\n{_ALONE}{rest}"
    return text


def _rounded(tag: re.Match[str]) -> str:
    """A tag with its coordinates in hundredths of a point; what stands between tags is the reader's."""
    return re.sub(r"(\d+\.\d{2})\d+", r"\1", tag.group())


def _attributes(found: re.Match[str]) -> str:
    """A style attribute's declarations as attributes of SVG; `font`, which SVG has not, as its parts."""
    attributes = []
    for declaration in filter(None, map(str.strip, found.group(1).split(";"))):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            attributes.append(f'font-size="{size.group(1) if size else 10}"')
        else:
            attributes.append(f'{name}="{value}"')
    return " ".join(attributes)


def _own_ids(text: str) -> str:
    """Ids that no other figure of a page has."""
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    for name in dict.fromkeys(re.findall(r'\bid="([^"]*)"', text)):
        text = re.sub(rf'(id="|url\(#|href="#){re.escape(name)}(?=["\)])', rf"\g<1>{mark}-{name}", text)
    return text


def _opening(tag: str, label: str) -> str:
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', tag)
    width, height = map(float, box.groups() if box else ("1", "1"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width * POINT:.0f}" height="{height * POINT:.0f}" '
        f'font-family="{escape(FONTS)}" stroke-linejoin="round" stroke-linecap="butt">'
    )
