"""Explorers that move in the browser: controls and a picture in one HTML output, from tables that Python computed.

An output holds a static figure with its alt text and, on top of it, an iframe with everything inside: native controls,
inline SVG, a few KB of JavaScript, the tables. It needs no kernel, no network and no widget. Where a page takes the
iframe away (a notebook that JupyterLab does not trust) or does not run its script, the figure is what remains.

A student's choice is typed in a cell, never read from a slider: nothing flows back to Python.
"""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import language, text
from labkit.page.figures import figure_tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("range", "menu", "switch")
PLAIN_BYTES = 8_000  # larger tables travel compressed
WIDE_PX = 1000  # the width of window from which the iframe has its smaller height


@dataclass(frozen=True, kw_only=True)
class Control:
    """One native control: a slider over a list of values, a menu, or a check box.

    Args:
        name: key of the control in the page's state; a Python name.
        label: what stands beside it, with its unit.
        values: what it can be set to, in order; a switch has two, off and on.
        start: the value that it starts with.
        kind: ``range``, ``menu`` or ``switch``.
        texts: how the values read; the values themselves if empty.

    Raises:
        LabError: ``start`` is none of ``values``, an unknown kind, or texts that do not fit the values.
    """

    name: str
    label: str
    values: tuple
    start: Any
    kind: str = "menu"
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.start not in self.values:
            named = ", ".join(map(repr, self.values))
            raise LabError(f"{self.name}={self.start!r}", f"this control takes {named}", "start with one of them")
        if self.kind not in KINDS or (self.kind == "switch" and len(self.values) != 2):
            rule = "a control is a range, a menu, or a switch with two values"
            raise LabError(f"kind={self.kind!r}", rule, 'use kind="menu"')
        if self.texts and len(self.texts) != len(self.values):
            raise LabError(f"{len(self.texts)} texts", f"{self.name} has {len(self.values)} values", "give one each")

    def spec(self) -> dict[str, Any]:
        """The control as the page's JavaScript reads it."""
        return {
            "name": self.name,
            "label": self.label,
            "kind": self.kind,
            "texts": list(self.texts or map(str, self.values)),
            "start": self.values.index(self.start),
        }


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Everything of one explorer.

    Args:
        title: its name, for screen readers and as plain text.
        view: ``memory`` means ``browser/memory.js`` beside this module, which draws the picture.
        controls: in the order of the page.
        data: tables and texts for the view; anything that JSON can hold.
        figure: the picture at the starting values, for pages without scripts.
        alt: that picture in words, with its key number.
        heights_px: of the iframe in a wide and in a narrow window; it never changes while a control moves.
    """

    title: str
    view: str
    controls: Sequence[Control]
    data: dict[str, Any]
    figure: Figure
    alt: str
    heights_px: tuple[int, int] = (560, 800)

    def document(self) -> str:
        """The HTML document inside the iframe; it names no address outside itself."""
        spec = {"title": self.title, "controls": [control.spec() for control in self.controls]}
        parts = {
            "LANG": language(),
            "TITLE": html.escape(self.title),
            "STYLE": _resource("explorer.css"),
            "SPEC": _inline(spec),
            "DATA": _packed(self.data),
            "SCRIPT": _resource("explorer.js") + _resource(f"{self.view}.js"),
        }
        page = _resource("explorer.html")
        for name, part in parts.items():
            page = page.replace(f"%{name}%", part)
        return page

    def html(self) -> str:
        """The output: the figure, and over it the iframe."""
        source = self.document().replace("&", "&amp;").replace("'", "&#39;")
        wide, narrow = self.heights_px
        slope = (narrow - wide) / (WIDE_PX - 380)  # 380 px: a phone
        height = f"clamp({wide}px, calc({wide}px + {slope:.3f} * ({WIDE_PX}px - 100vw)), {narrow}px)"
        frame = (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" '
            f'style="grid-area:1/1;width:100%;height:100%;min-height:{height};border:0" '
            f"srcdoc='{source}'></iframe>"
        )
        still = figure_tag(self.figure, alt=self.alt, dpi=64, style="grid-area:1/1;margin:0", colours=32)
        return f'<div class="labkit-explorer" style="display:grid">{still}{frame}</div>'


def show(explorer: Explorer) -> None:
    """Display ``explorer`` as one HTML output, with its key result as plain text."""
    from IPython.display import display

    said = text(f"[sliders] {explorer.title}: {explorer.alt}", f"[滑块] {explorer.title}：{explorer.alt}")
    display({"text/html": explorer.html(), "text/plain": said}, raw=True)


def _resource(name: str) -> str:
    return files("labkit.page").joinpath("browser", name).read_text(encoding="utf-8")


def _inline(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _packed(data: dict[str, Any]) -> str:
    """JSON, or a JSON string with its zlib-compressed bytes in base64 if it is large."""
    plain = _inline(data)
    if len(plain) <= PLAIN_BYTES:
        return plain
    return json.dumps(base64.b64encode(zlib.compress(plain.encode(), 9)).decode())
