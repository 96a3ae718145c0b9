"""Figures of lesson 07: noise and its edge, the map of scores, a share of the modules, the arms of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import TARGETS, Method, Step, module_parts
from labkit.models.shapes import ModelShape
from labkit.page.figures import OKABE_ITO
from labkit.page.widgets import Explorer, menu, slider

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from labkit.page.arms import Arm

SIDES = (64, 128, 256, 512, 1024)
SPIKES = (0, 0.5, 1, 1.5, 2, 4)  # in units of the noise's edge
SPIKE_RANK = 8
BINS = 60
SHARES = (5, 10, 20, 25, 33, 50, 75, 100)


# --- noise and its edge ----------------------------------------------------------------------------------------------


def edge_widget(*, rows: int = 512, columns: int = 512, spike: float = 0) -> Explorer:
    """Singular values of noise of variance 1, with eight planted directions; menus choose the shape and their size.

    Raises:
        LabError: a start that is no option.
    """
    picture = _EdgePicture()
    controls = {
        "rows": menu(text("rows", "行数"), SIDES, rows),
        "columns": menu(text("columns", "列数"), SIDES, columns),
        "spike": slider(text("8 planted directions, times the edge", "植入 8 个方向，边缘的倍数"), SPIKES, spike),
    }
    alt = "Singular values of a random matrix, the density that theory predicts, its edge and Spectrum's threshold"
    return Explorer(picture.fig, picture.redraw, controls, alt=alt)


@lru_cache(maxsize=64)
def noise_values(rows: int, columns: int, spike: float) -> np.ndarray:
    """Singular values of an n x m matrix of N(0, 1) numbers and eight orthogonal directions of ``spike`` edges each."""
    import numpy as np

    from labkit.theory.spectrum import noise_edge, singular_values

    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((rows, columns))
    left, right = (np.linalg.qr(rng.standard_normal((side, SPIKE_RANK)))[0] for side in (rows, columns))
    return singular_values(matrix + spike * noise_edge((rows, columns), 1.0) * left @ right.T)


class _EdgePicture:
    """The figure of `edge_widget` and the artists that its controls move."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.fig = Figure(figsize=(7.2, 3.4), layout="constrained")
        self.axes = self.fig.subplots()
        self.bars = self.axes.bar(range(BINS), [0] * BINS, color="#BBBBBB", align="edge", label="singular values")
        (self.curve,) = self.axes.plot([], [], color="black", linewidth=1.5, label="Marchenko-Pastur")
        edge = {"color": OKABE_ITO[0], "linewidth": 2, "label": "edge $\\sigma(\\sqrt{n}+\\sqrt{m})$"}
        threshold = {"color": OKABE_ITO[3], "linewidth": 2, "linestyle": "--", "label": "Spectrum's threshold"}
        self.edge, self.threshold = self.axes.axvline(1, **edge), self.axes.axvline(1, **threshold)
        self.axes.set(xlabel="singular value / edge of the noise", ylabel="density", xlim=(0, 2))
        self.axes.legend(frameon=False, fontsize=8, loc="upper right")
        self.axes.spines[["top", "right"]].set_visible(False)

    def redraw(self, rows: int, columns: int, spike: float) -> str:
        """Move every artist to this shape and say what lies above which line."""
        import numpy as np

        from labkit.theory.spectrum import judge, mp_density, noise_edge

        values, shape = noise_values(rows, columns, spike), (rows, columns)
        edge, found = noise_edge(shape, 1.0), judge(values, shape)
        top = max(1.3, 1.08 * values[0] / edge)
        heights, places = np.histogram(values / edge, bins=BINS, range=(0, top), density=True)
        for bar, height, place in zip(self.bars, heights, places, strict=False):
            bar.set(x=place, height=height, width=places[1])
        x = np.linspace(1e-3, 1, 400)
        scale = edge**2 / max(shape)  # from (value / edge)^2 to an eigenvalue of X X' / m
        density = mp_density(scale * x**2, min(shape) / max(shape)) * 2 * scale * x
        self.curve.set_data(x, density)
        self.edge.set_xdata([found.edge / edge] * 2)
        self.threshold.set_xdata([found.threshold / edge] * 2)
        self.axes.set(xlim=(0, top), ylim=(0, 1.35 * max(density.max(), np.sort(heights)[-2])))
        return text(
            f"{rows} x {columns}: {found.share_above:.0%} of the values above Spectrum's threshold, "
            f"{found.n_spikes} clear of the edge {found.edge:.1f}; published score {found.snr:.3g}",
            f"{rows} × {columns}：{found.share_above:.0%} 的奇异值超过 Spectrum 的阈值，"
            f"{found.n_spikes} 个明显超出边缘 {found.edge:.1f}；论文的分数 {found.snr:.3g}",
        )


# --- the map ---------------------------------------------------------------------------------------------------------


def snr_map(scores: Mapping[str, float], *, chosen: Sequence[str] = ()) -> Figure:
    """Layers down, module types across; dark is a high score *within its type*; a framed square is selected.

    Args:
        scores: module -> score.
        chosen: modules to frame.

    Raises:
        LabError: there are no scores.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if not scores:
        raise LabError("scores={}", "there is nothing to draw", "scan a model first")
    n_layers = 1 + max(layer for layer, _ in map(module_parts, scores))
    ranks = np.full((n_layers, len(TARGETS)), np.nan)
    for column, name in enumerate(TARGETS):
        own = sorted((module for module in scores if module_parts(module)[1] == name), key=scores.__getitem__)
        for place, module in enumerate(own):
            ranks[module_parts(module)[0], column] = place / max(1, len(own) - 1)
    fig = Figure(figsize=(5.4, 1.2 + 0.19 * max(n_layers, 8)), layout="constrained")
    axes = fig.subplots()
    image = axes.imshow(ranks, cmap="cividis_r", aspect="auto", vmin=0, vmax=1)
    for layer, name in map(module_parts, chosen):
        corner = TARGETS.index(name) - 0.5, layer - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=OKABE_ITO[3], linewidth=1.8))
    axes.set_xticks(range(len(TARGETS)), [name.removesuffix("_proj") for name in TARGETS])
    axes.set_yticks(range(0, n_layers, 1 if n_layers <= 12 else 5))
    axes.set(ylabel="layer")
    fig.colorbar(image, ax=axes, label="rank of the score within its type (0 to 1)")
    return fig


# --- how much to select ----------------------------------------------------------------------------------------------


def share_widget(shape: ModelShape, scores: Mapping[str, float], step: Step, *, rank: int, start: int = 25) -> Explorer:
    """What a share of the modules trains and needs: whole, or with LoRA; the slider is the share in percent.

    Args:
        shape: the model.
        scores: module -> score.
        step: one training step, for the memory.
        rank: of LoRA on the selected modules.
        start: where the slider starts.

    Raises:
        LabError: a share that selects nothing is left out; all of them: see `select`.
    """
    picture = _SharePicture(shape, scores, step, rank)
    control = {"share": slider(text("share, %", "比例，%"), picture.shares, start)}
    alt = f"Trained parameters and predicted peak of {shape.name} by the share of its modules that train"
    return Explorer(picture.fig, picture.redraw, control, alt=alt)


class _SharePicture:
    """The figure of `share_widget`."""

    def __init__(self, shape: ModelShape, scores: Mapping[str, float], step: Step, rank: int) -> None:
        from matplotlib.figure import Figure

        from labkit.theory.memory import predict

        self.rank, self.found = rank, {}
        for share in SHARES:
            if modules := _selected(scores, share):
                for name, kind in (("whole", "spectrum"), ("LoRA", "lora")):
                    method = Method(kind=kind, rank=rank, modules=modules, dropout=0.0)
                    self.found[share, name] = predict(shape, method, step), len(modules)
        self.everywhere = predict(shape, Method(kind="lora", rank=rank, dropout=0.0), step)
        self.full = predict(shape, Method(kind="full"), step)
        self.fig = Figure(figsize=(7.6, 3.1), layout="constrained")
        self._draw(*self.fig.subplots(1, 2))

    @property
    def shares(self) -> list[int]:
        """The shares that select anything."""
        return sorted({share for share, _ in self.found})

    def _draw(self, left: Any, right: Any) -> None:
        self.dots = []
        marks = {"whole": ("o-", OKABE_ITO[3]), "LoRA": ("s--", OKABE_ITO[0])}
        for axes, of in ((left, _millions), (right, _mib)):
            for name, (mark, colour) in marks.items():
                heights = [of(self.found[share, name][0]) for share in self.shares]
                label = "selected modules whole" if name == "whole" else f"LoRA r={self.rank} on them"
                axes.plot(self.shares, heights, mark, color=colour, label=label, markersize=4)
            axes.axhline(of(self.everywhere), color="black", linestyle=":", label=f"LoRA r={self.rank} everywhere")
            self.dots.append(axes.plot([], [], "D", color="black", markersize=7, fillstyle="none")[0])
            axes.set(xlabel="share of each type, %")
            axes.spines[["top", "right"]].set_visible(False)
        left.set(yscale="log", ylabel="trained parameters, millions")
        right.axhline(_mib(self.full), color="#999999", linestyle="-.", label="full fine-tuning")
        right.set(ylabel="predicted peak, MiB", ylim=(0, None))
        right.legend(frameon=False, fontsize=7)

    def redraw(self, share: int) -> str:
        """Mark the share and say what it trains."""
        whole, lora = (self.found[share, name] for name in ("whole", "LoRA"))
        for dots, of in zip(self.dots, (_millions, _mib), strict=True):
            dots.set_data([share, share], [of(whole[0]), of(lora[0])])
        n, a, b = whole[1], whole[0], lora[0]
        return text(
            f"{share} % are {n} modules: whole {a.trainable_params:,} parameters, peak {_mib(a):,.1f} MiB; "
            f"LoRA rank {self.rank}: {b.trainable_params:,}, {_mib(b):,.1f} MiB",
            f"{share}% 是 {n} 个模块：整块训练 {a.trainable_params:,} 个参数，峰值 {_mib(a):,.1f} MiB；"
            f"秩 {self.rank} 的 LoRA：{b.trainable_params:,} 个，{_mib(b):,.1f} MiB",
        )


def _selected(scores: Mapping[str, float], share: int) -> tuple[str, ...]:
    from labkit.theory.selection import select

    try:
        return select(scores, top_percent=share)
    except LabError:  # so small a share that a model of few layers has no module for it
        return ()


def _millions(prediction: Any) -> float:
    return prediction.trainable_params / 1e6


def _mib(prediction: Any) -> float:
    return prediction.peak_allocated_bytes / 2**20


# --- the comparison --------------------------------------------------------------------------------------------------


def arms_figure(arms: Sequence[Arm]) -> Figure:
    """Held-out loss of every trial, and the mean with its 95 % interval, one line an arm, the best on top."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.8, 1.1 + 0.38 * len(arms)), layout="constrained")
    axes = fig.subplots()
    for place, arm in enumerate(arms):
        colour, mark = (OKABE_ITO[0], "s") if arm.name.startswith("LoRA") else (OKABE_ITO[3], "o")
        axes.plot(arm.losses, [place + 0.16] * len(arm.losses), "|", color="#777777", markersize=9)
        half = 0 if arm.interval.n == 1 else arm.interval.half_width
        axes.errorbar(arm.interval.mean, place, xerr=half, fmt=mark, color=colour, capsize=3)
    axes.set_yticks(range(len(arms)), [f"{arm.name} ({arm.trainable_params:,})" for arm in arms])
    axes.invert_yaxis()
    axes.set(xlabel="held-out loss, nats a token (ticks: trials)")
    axes.spines[["top", "right"]].set_visible(False)
    return fig
