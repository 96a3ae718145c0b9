"""Live memory through one training step, stacked by component: one panel a step, with its peak and its phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from labkit.errors import LabError
from labkit.page.memory_figures import HATCHES, PALETTE
from labkit.theory.fitting import GIB
from labkit.theory.memory import COMPONENTS, PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOAD_SHARE = 0.1  # of a panel's width: the loaded model, before the step begins
BAR_SHARE = 0.02  # of a panel's width: the parts at the peak, which may last for one moment only
SHORT = {"optimizer": "opt."}  # its part of a step is narrow


class Line(Protocol):
    """What is drawn: bytes by component at each moment, and where the phases begin (`labkit.training.timeline`)."""

    components: Mapping[str, np.ndarray]
    starts: Mapping[str, int]
    moments: np.ndarray

    @property
    def total(self) -> np.ndarray: ...


def component_timelines(lines: Mapping[str, Line], *, columns: int = 2) -> Figure:
    """Allocated bytes through a step by component, in GiB, on one scale; a triangle and a bar mark the peak.

    Args:
        lines: label -> timeline; sampled ones are drawn faster.
        columns: panels side by side.

    Raises:
        LabError: there is nothing to draw.
    """
    if not lines:
        raise LabError("component_timelines({})", "there is nothing to draw", "trace a step first")
    from matplotlib.figure import Figure

    columns = min(columns, len(lines))
    rows = -(-len(lines) // columns)
    fig = Figure(figsize=(4.6 * columns, 0.9 + 2.7 * rows), layout="constrained")
    panels = fig.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes, (label, line) in zip(panels, lines.items(), strict=False):
        _panel(axes, label, line)
    panels[0].set_ylim(0, 1.15 * max(line.total.max() for line in lines.values()) / GIB)  # shared by all
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("allocated (GiB)")
    fig.legend(handles=_handles(lines), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return fig


def describe_timelines(lines: Mapping[str, Line]) -> str:
    """The panels in words, for a figure's alt text: each peak, its phase, and its two largest parts."""
    parts = []
    for label, line in lines.items():
        peak = int(line.total.argmax())
        held = sorted(((int(sizes[peak]), name) for name, sizes in line.components.items()), reverse=True)
        largest = " and ".join(f"{name.replace('_', ' ')} {size / GIB:.2f}" for size, name in held[:2])
        parts.append(f"{label} {line.total[peak] / GIB:.2f} GiB in {phase_at(line, peak)}, of it {largest}")
    return "Allocated memory through one training step. Peaks: " + "; ".join(parts) + "."


def phase_at(line: Line, moment: int) -> str:
    """The phase that a moment belongs to."""
    return [phase for phase in PHASES if line.starts[phase] <= moment][-1]


def _panel(axes: Axes, label: str, line: Line) -> None:
    x, total = _places(line), line.total / GIB
    peak = int(total.argmax())
    _stack(axes, line, x, peak)
    axes.plot(x[peak], total[peak] * 1.03, "v", color="#000000", markersize=6)
    axes.set_title(f"{label}: {total[peak]:.2f} GiB in {phase_at(line, peak)}", fontsize=10)
    for phase, moment in line.starts.items():
        axes.axvline(x[moment], color="#000000", linestyle=":", linewidth=1)
        name = SHORT.get(phase, phase)
        axes.text(x[moment], 0.99, f" {name}", fontsize=8, va="top", transform=axes.get_xaxis_transform())
    axes.set_xlim(x[0], x[-1])
    axes.set_xticks([])
    axes.set_xlabel("allocations and releases, in order", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _stack(axes: Axes, line: Line, x: np.ndarray, peak: int) -> None:
    floor, width = np.zeros(len(x)), BAR_SHARE * (x[-1] - x[0])
    for name, colour, hatch in zip(COMPONENTS, PALETTE, HATCHES, strict=True):
        sizes = line.components[name] / GIB
        if sizes.any():
            style = {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.0}
            axes.fill_between(x, floor, floor + sizes, step="post", **style)
            axes.bar(x[peak], sizes[peak], width, bottom=floor[peak], **style)
        floor = floor + sizes


def _places(line: Line) -> np.ndarray:
    """Where each moment stands: the loaded model gets a stretch of its own before the step."""
    x = line.moments.astype(float)
    x[0] = -LOAD_SHARE * x[-1]
    return x


def _handles(lines: Mapping[str, Line]) -> list:
    from matplotlib.patches import Patch

    drawn = {name for line in lines.values() for name, sizes in line.components.items() if sizes.any()}
    cues = zip(COMPONENTS, PALETTE, HATCHES, strict=True)
    return [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name.replace("_", " "))
        for name, colour, hatch in cues
        if name in drawn
    ]
