"""Figures of lesson 06: how weights moved, and what a step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.page.figures import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP"  # the second cue beside colour


def moves(
    points: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]], *, ylabel: str = "change of magnitude"
) -> Figure:
    """Change of direction against change of magnitude, one panel a method, one marker a moment, with a fitted line.

    Args:
        points: method -> step -> (direction, magnitude) of every matrix.
        ylabel: what the second number is.

    Raises:
        LabError: no method, or one with fewer than two points.
    """
    if not points or min(sum(map(len, steps.values())) for steps in points.values()) < 2:
        raise LabError("moves({...})", "a panel needs at least two points", "watch a run first")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9.2, 3.2), layout="constrained")
    for axes, (method, steps) in zip(fig.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for place, (step, found) in enumerate(steps.items()):
            colour, marker = OKABE_ITO[place % len(OKABE_ITO)], MARKERS[place % len(MARKERS)]
            axes.scatter(*zip(*found, strict=True), s=16, marker=marker, color=colour, label=f"step {step}")
        _fit(axes, [point for found in steps.values() for point in found])
        axes.set(title=method, xlabel="change of direction, 1 - cos")
        axes.title.set_fontsize(10)
        axes.locator_params(axis="x", nbins=4)
        axes.ticklabel_format(axis="both", style="plain", useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
    fig.axes[0].set_ylabel(ylabel)
    fig.axes[-1].legend(frameon=False, fontsize=7)
    return fig


def _fit(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    import numpy

    x, y = numpy.array(points).T
    if x.max() > x.min():
        slope, offset = numpy.polyfit(x, y, 1)
        ends = numpy.array([x.min(), x.max()])
        axes.plot(ends, offset + slope * ends, color="black", linewidth=1)


def cost_ratios(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """How many times as long a step takes as the plain method's, by tokens in the step, with 95 % intervals.

    Args:
        rows: dicts with ``method``, ``tokens``, ``ratio``, ``low`` and ``high``.

    Raises:
        LabError: no rows.
    """
    if not rows:
        raise LabError("cost_ratios([])", "there is nothing to draw", "run benchmarks/dora_cost.py")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = fig.subplots()
    names, tokens = list(dict.fromkeys(row["method"] for row in rows)), sorted({row["tokens"] for row in rows})
    for place, name in enumerate(names):
        mine = sorted((row for row in rows if row["method"] == name), key=lambda row: row["tokens"])  # a line goes on
        where = [tokens.index(row["tokens"]) + 0.08 * (place - (len(names) - 1) / 2) for row in mine]
        ratios = [row["ratio"] for row in mine]
        spans = [[row["ratio"] - row["low"] for row in mine], [row["high"] - row["ratio"] for row in mine]]
        style = {"color": OKABE_ITO[place % len(OKABE_ITO)], "marker": MARKERS[place % len(MARKERS)]}
        axes.errorbar(where, ratios, yerr=spans, capsize=3, linewidth=1.2, label=name, **style)
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(tokens)), [str(count) for count in tokens])
    axes.set(xlabel="tokens in one step", ylabel="time / time without DoRA")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return fig
