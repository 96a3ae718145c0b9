"""What a training run shows: a line that moves while it runs, its loss curve, and rules kept before and after.

Everything here takes plain numbers, so that a finished run's record is drawn the same way as a run in this notebook.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.page.figures import OKABE_ITO
from labkit.page.records import shell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = Callable[[int, int], tuple[float, float]]  # (kept, asked) -> low and high end of a share
BEFORE, AFTER = OKABE_ITO[1], OKABE_ITO[0]
WIDTH, HEIGHT = 360, 60  # pixels of the small live curve


class LiveRun:
    """A progress bar with a small loss curve; give it to ``labkit.training.recipe.progress_callback`` as ``on_event``.

    It is one display that renews itself at most every ``every_s`` seconds (a renewal must not slow the training), and
    it stays in the notebook as it was at the last step. Outside a notebook it prints that last state once.
    """

    def __init__(self, *, steps: int, every_s: float = 0.5) -> None:
        self.steps, self.every_s = steps, every_s
        self.points: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self._shown = -math.inf
        self._display = None

    def __call__(self, kind: str, event: Mapping[str, Any]) -> None:
        """Take an event of a run; only ``"step"`` events, with ``step``, ``loss`` and ``tokens``, change anything."""
        if kind != "step":
            return
        self.points.append(dict(event))
        now, last = time.monotonic(), event["step"] >= self.steps
        if last or now - self._shown >= self.every_s:
            self._shown = now
            self._show(last=last)

    def status(self) -> str:
        """Step, loss, seconds and tokens per second, in the student's language."""
        point, seconds = self.points[-1], time.monotonic() - self._started
        rate = point["tokens"] / seconds if seconds else 0.0
        return text(
            f"step {point['step']}/{self.steps} · loss {point['loss']:.3f} · {seconds:.0f} s · {rate:,.0f} tokens/s",
            f"第 {point['step']}/{self.steps} 步 · 损失 {point['loss']:.3f} · {seconds:.0f} 秒 · 每秒 {rate:,.0f} 词元",
        )

    def as_html(self) -> str:
        """The progress bar, the status and the curve so far as one self-contained piece of HTML."""
        status = html.escape(self.status())
        bar = f'<progress value="{self.points[-1]["step"]}" max="{self.steps}" style="width:{WIDTH}px"></progress>'
        curve = _polyline([point["loss"] for point in self.points], self.steps)
        drawn = (
            f'<svg role="img" aria-label="{status}" width="{WIDTH}" height="{HEIGHT}">'
            f'<polyline points="{curve}" fill="none" stroke="{AFTER}" stroke-width="1.5"/></svg>'
        )
        return f"<div>{bar} {status}</div>{drawn}"

    def _show(self, *, last: bool) -> None:
        if shell() is None:
            if last:
                print(self.status())
            return
        from IPython.display import display

        bundle = {"text/html": self.as_html(), "text/plain": self.status()}
        if self._display is None:
            self._display = display(bundle, raw=True, display_id=True)
        else:
            self._display.update(bundle, raw=True)


def _polyline(losses: Sequence[float], steps: int) -> str:
    """SVG points: the first step left, step ``steps`` right; the largest loss so far on top, the smallest below."""
    finite = [(place, loss) for place, loss in enumerate(losses) if math.isfinite(loss)]
    high, low = (pick((loss for _, loss in finite), default=0.0) for pick in (max, min))
    right, span = max(1, steps - 1), (high - low) or 1.0
    return " ".join(f"{WIDTH * place / right:.1f},{HEIGHT * (high - loss) / span:.1f}" for place, loss in finite)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the ``window - 1`` before it (of fewer at the start)."""
    parts = (values[max(0, place + 1 - window) : place + 1] for place in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def loss_figure(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], *, heldout: Sequence[tuple[int, float]] = ()
) -> Figure:
    """Training loss by step, one line per named curve, with the learning rate below it.

    A loss of one batch is noisy: the thin line is the loss itself, the thick one its mean over an eighth of the run.

    Args:
        curves: name to points with ``step``, ``loss`` and ``learning_rate``.
        heldout: (step, held-out loss) pairs, drawn as diamonds.

    Raises:
        LabError: no curve, or one without points.
    """
    if not curves or not all(curves.values()):
        raise LabError(f"curves of {list(curves)}", "a curve needs at least one step", "train before you draw")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 3.9))
    loss, rate = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for (name, points), colour, dash in zip(curves.items(), OKABE_ITO, ("-", "--", "-.", ":") * 2, strict=False):
        steps = [point["step"] for point in points]
        losses = [point["loss"] for point in points]
        loss.plot(steps, losses, color=colour, alpha=0.35, linewidth=0.8)
        loss.plot(steps, running_mean(losses, max(1, len(losses) // 8)), dash, color=colour, linewidth=2, label=name)
        rate.plot(steps, [point["learning_rate"] for point in points], dash, color=colour)
    if heldout:
        loss.plot(*zip(*heldout, strict=True), "D", color=OKABE_ITO[3], label="held-out loss")
    loss.set_ylabel("loss, nats per token")
    loss.legend(frameon=False)
    rate.set(xlabel="optimizer step", ylabel="learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    fig.align_ylabels()
    return fig


def kept_figure(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], *, interval: Interval
) -> Figure:
    """Shares of rules kept before and after, one pair of bars a kind, each with its interval and its counts.

    Args:
        before: kind of rule to (times kept, times asked).
        after: the same kinds.
        interval: e.g. `labkit.theory.intervals.wilson_interval`.

    Raises:
        LabError: the two have different kinds, or none.
    """
    if not before or before.keys() != after.keys():
        rule = "before and after must have the same kinds of rules, at least one"
        raise LabError(f"{sorted(before)} and {sorted(after)}", rule, "measure both on the same rows")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 0.9 + 0.42 * len(before)))
    axes = fig.subplots()
    bars = (("before", before, BEFORE, "//", 0.2), ("after", after, AFTER, "", -0.2))
    for name, shares, colour, hatch, shift in bars:
        for place, (kept, asked) in enumerate(reversed(shares.values())):
            low, high = interval(kept, asked)
            label = name if place == 0 else None
            y, share = place + shift, kept / asked
            axes.barh(y, share, height=0.38, color=colour, hatch=hatch, edgecolor="white", label=label)
            axes.plot([low, high], [y, y], color="black", linewidth=1)
            axes.plot([share], [y], "o", color=colour, markeredgecolor="black", markersize=4)  # a bar of 0 is no bar
            axes.text(1.04, y, f"{kept}/{asked}", va="center", fontsize=8)
    axes.set_yticks(range(len(before)), list(reversed(before)))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(before) - 0.4), xlabel="share kept, with 95 % Wilson interval")
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return fig
