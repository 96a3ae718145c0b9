"""Figures of a sweep: means over seeds with their intervals, every seed a small dot beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.page.figures import OKABE_ITO
from labkit.page.results import LOSS, Cell, Results, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES, MARKS = ("-", "--", "-.", ":") * 4, "os^Dv*PX" * 2
VALUES = {
    LOSS: "held-out loss, nats per token",
    "gain": "fall of the held-out loss, nats per token",
    "constraint_rate_after": "share of answers that keep every rule",
    "seconds.train": "seconds of training",
    "trainable_params": "trainable parameters",
}


def zoom_top(cells: Sequence[Cell]) -> float | None:
    """Where to cut the y axis so that the better half can be told apart: runs that diverged would squeeze it."""
    means = sorted(cell.interval.mean for cell in cells if cell.interval)
    if len(means) < 3 or means[-1] <= 0:
        return None
    middle = means[len(means) // 2]
    return min(means[-1], middle + 2 * (middle - means[0]))


def sweep_figure(
    parts: Results | Sequence[Results], *, x: str, lines: str | None = None, value: str = LOSS, top: float | None = None
) -> Figure:
    """One panel a `Results`, one line a value of ``lines``, over ``x``: mean, 95 % t interval, and the seeds.

    Args:
        parts: one selection, or several, which get panels with one y axis; their names are the titles.
        x: a swept setting; numbers are drawn on a logarithmic axis.
        lines: another swept setting; None draws one line.
        value: see `Results.cells`.
        top: cut the y axis here (diverged runs would squeeze the rest); what lies above is marked at the edge.

    Raises:
        LabError: nothing to draw.
    """
    from matplotlib.figure import Figure

    panels = [parts] if isinstance(parts, Results) else list(parts)
    if not panels:
        raise LabError("no results", "there is nothing to draw", "run labkit sweep, or take the shipped results")
    fig = Figure(figsize=(max(5.6, 3.6 * len(panels)), 3.6), layout="constrained")
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, part in zip(axes, panels, strict=True):
        _panel(axis, part, x=x, lines=lines, value=value, top=top)
        axis.set_title(part.name if len(panels) > 1 else "", fontsize=10)
    axes[0].set_ylabel(VALUES.get(value, value))
    if lines:
        axes[-1].legend(frameon=False, fontsize=8)
    return fig


def _panel(axis: Axes, part: Results, *, x: str, lines: str | None, value: str, top: float | None) -> None:
    by = (lines, x) if lines else (x,)
    cells = [cell for cell in part.cells(*by, value=value) if cell.interval]
    places = _places(axis, [cell.at[x] for cell in cells], x)
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.at[lines] if lines else None, []).append(cell)
    for turn, (name, group) in enumerate(groups.items()):
        shift = 1 + 0.05 * (turn - (len(groups) - 1) / 2)  # intervals of neighbours stand side by side
        at = [places[cell.at[x]] * shift for cell in group]
        _line(axis, at, group, turn, label(lines, name) if lines else None, top)
    if top is not None:
        axis.set_ylim(top=top)


def _line(axis: Axes, at: list[float], group: list[Cell], turn: int, name: str | None, top: float | None) -> None:
    colour, means = OKABE_ITO[turn % len(OKABE_ITO)], [cell.interval.mean for cell in group]
    shown = [min(mean, top) if top else mean for mean in means]
    axis.plot(at, shown, DASHES[turn], marker=MARKS[turn], color=colour, label=name, clip_on=False, markersize=5)
    for place, cell in zip(at, group, strict=True):
        if cell.interval.n > 1:
            axis.vlines(place, cell.interval.low, cell.interval.high, color=colour, linewidth=1.2)
        seeds = [seed for seed in cell.by_seed.values() if top is None or seed <= top]
        axis.plot([place] * len(seeds), seeds, ".", color=colour, markersize=3, alpha=0.6)


def _places(axis: Axes, values: list[Any], x: str) -> dict[Any, float]:
    """Where each value of ``x`` stands: numbers above 0 on a logarithmic axis, anything else evenly spaced."""
    axis.set_xlabel(x.replace("_", " "))
    unique = list(dict.fromkeys(values))
    if all(isinstance(value, int | float) and value > 0 for value in unique):
        axis.set_xscale("log")
        axis.set_xticks(unique, [f"{value:g}" for value in unique])
        axis.minorticks_off()
        return {value: float(value) for value in unique}
    axis.set_xticks(range(1, len(unique) + 1), [label(x, value) for value in unique])
    return {value: float(place) for place, value in enumerate(unique, 1)}
