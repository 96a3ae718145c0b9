"""Figures of lesson 02: something by rank, loss curves, and a grid of final losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.page.figures import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS, DASHES = "osD^vP", ("-", "--", "-.", ":", "-", "--")  # the second cue beside colour


def by_rank(ranks: Sequence[int], curves: Mapping[str, Sequence[float]], *, ylabel: str, true_rank: int = 0) -> Figure:
    """One line a curve over the rank, on a logarithmic axis that names every rank.

    Args:
        ranks: rising, at least 1.
        curves: label -> a number for each rank.
        ylabel: what the numbers are.
        true_rank: where a dotted line stands; 0 for none.

    Raises:
        LabError: there is nothing to draw, or a curve does not fit the ranks.
    """
    _refuse_empty(curves)
    for label, curve in curves.items():
        if len(curve) != len(ranks):
            raise LabError(f"{label}: {len(curve)} values", f"there are {len(ranks)} ranks", "give one value each")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = fig.subplots()
    for (label, curve), colour, marker, dash in zip(curves.items(), OKABE_ITO, MARKERS, DASHES, strict=False):
        axes.plot(ranks, curve, dash, marker=marker, color=colour, markersize=5, label=label)
    if true_rank:
        axes.axvline(true_rank, color="black", linestyle=":", linewidth=1)
        axes.text(true_rank, 1.01, f"k = {true_rank}", ha="center", transform=axes.get_xaxis_transform())
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set(xlabel="rank r", ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return fig


def loss_curves(curves: Mapping[str, Sequence[float]], *, ylabel: str = "distance from the target") -> Figure:
    """A loss by step on a logarithmic axis, one line a curve.

    Raises:
        LabError: there is nothing to draw.
    """
    _refuse_empty(curves)
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = fig.subplots()
    for place, (label, curve) in enumerate(curves.items()):
        colour, dash = OKABE_ITO[place % len(OKABE_ITO)], DASHES[place % len(DASHES)]
        axes.plot(curve, dash, color=colour, label=label, linewidth=1.8)
    axes.set(yscale="log", xlabel="step", ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return fig


def loss_grid(losses: Sequence[Sequence[float]], *, rows: Mapping[str, Sequence], columns: Mapping[str, Sequence]):
    """A table of final losses as colours with the numbers in them; the best of each row has a frame.

    Args:
        losses: one list a row; a number that is not finite is drawn as "-".
        rows: the name of the vertical axis -> its values.
        columns: the name of the horizontal axis -> its values.
    """
    import numpy
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    table = numpy.array(losses, dtype=float)
    ((row_name, row_values),), ((column_name, column_values),) = rows.items(), columns.items()
    fig = Figure(figsize=(1.6 + 0.85 * table.shape[1], 1.2 + 0.5 * table.shape[0]), layout="constrained")
    axes = fig.subplots()
    axes.imshow(numpy.clip(table, 0, 1), cmap="cividis_r", vmin=0, vmax=1, aspect="auto")
    for (i, j), loss in numpy.ndenumerate(table):
        said = f"{loss:.3f}" if loss < 10 else "-"
        axes.text(j, i, said, ha="center", va="center", fontsize=8, color="white" if loss > 0.5 else "black")
    for i, row in enumerate(table):
        best = int(numpy.nanargmin(row))
        axes.add_patch(
            Rectangle((best - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=OKABE_ITO[3], linewidth=2.5)
        )
    axes.set_xticks(range(len(column_values)), [f"{value:g}" for value in column_values])
    axes.set_yticks(range(len(row_values)), [f"{value:g}" for value in row_values])
    axes.set(xlabel=column_name, ylabel=row_name)
    return fig


def _refuse_empty(curves: Mapping[str, Sequence[float]]) -> None:
    if not curves or any(len(curve) == 0 for curve in curves.values()):
        raise LabError("an empty curve", "there is nothing to draw", "measure something first")
