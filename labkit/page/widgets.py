"""Explorers that need the kernel: controls, one kept figure, one line that states the result.

Drawing is what costs time, not computing: a new figure took 210 ms, the same artists moved and saved again 78 ms (two
CPU cores, 2026-11). So a figure is made once and its artists are moved; pyplot, which is not safe in the threads that
carry slider messages, is never called. Only widgets and arguments are used that ipywidgets 7.7 and 8 both have.
"""

from __future__ import annotations

import html
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.page.figures import OKABE_ITO, show

if TYPE_CHECKING:
    import torch
    from ipywidgets import Widget
    from matplotlib.figure import Figure

VIEW = "application/vnd.jupyter.widget-view+json"
CROP = 48  # rows and columns of a matrix that are drawn as a picture
FINE_RANKS = 16  # a rank slider moves in steps of one up to here, then by about a quarter

Redraw = Callable[..., str]


class Explorer:
    """A figure that controls move. As the last value of a cell it shows a static figure first, then the controls.

    Args:
        fig: made with ``matplotlib.figure.Figure``; it is kept, so it may not belong to pyplot.
        redraw: a plain function with the names of ``controls`` as keyword arguments; it moves artists of ``fig`` (with
            ``set_*``) and returns one line that states the result. Tests call it over every value of the controls.
        controls: name -> ipywidgets control; see `slider` and `menu`.
        alt: what the figure shows, without numbers; the line of ``redraw`` is added to it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> fig = Figure()
        >>> (line,) = fig.subplots().plot([0, 1], [0, 1])
        >>> def redraw(slope):
        ...     line.set_ydata([0, slope])
        ...     return f"slope {slope}"
        >>> Explorer(fig, redraw, {"slope": slider("slope", range(5), 1)}, alt="A line")
        slope 1
    """

    def __init__(self, fig: Figure, redraw: Redraw, controls: Mapping[str, Widget], *, alt: str) -> None:
        import ipywidgets

        if not controls:
            raise LabError("controls={}", "an explorer needs something to move", "add a slider")
        self.fig, self.redraw, self.controls, self.alt = fig, redraw, dict(controls), alt
        self._lock = threading.Lock()  # ipykernel 7 answers sliders in a thread of its own
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.status = ipywidgets.HTML()
        self.line = redraw(**self.values)
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # a layout that is solved once does not jump, and costs nothing afterwards
        self._box = ipywidgets.VBox([*self.controls.values(), self.status, self.image])
        for control in self.controls.values():
            control.observe(self._moved, names="value")

    @property
    def values(self) -> dict[str, Any]:
        """Name -> the value that its control has now."""
        return {name: control.value for name, control in self.controls.items()}

    def __repr__(self) -> str:
        return self.line

    def _moved(self, _: object) -> None:
        with self._lock:
            self.line = self.redraw(**self.values)
            self._paint()

    def _paint(self) -> None:
        png = io.BytesIO()
        self.fig.savefig(png, format="png", dpi=100)  # no tight box: it costs a second layout, and the size would jump
        self.image.value = png.getvalue()
        self.status.value = f'<span role="status">{html.escape(self.line)}</span>'

    def _ipython_display_(self) -> None:
        from IPython.display import display

        show(self.fig, alt=f"{self.alt}. {self.line}")
        with self._lock:
            self._paint()
        view = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        display({VIEW: view, "text/plain": f"[slider] {self.line}"}, raw=True)


def slider(label: str, options: Sequence[Any], value: Any) -> Widget:
    """A slider over ``options``, with its value beside it; it reports when it is let go, not on the way.

    Raises:
        LabError: ``value`` is not among the options.
    """
    import ipywidgets

    options = _options(label, options, value)
    wide = {"style": {"description_width": "initial"}, "layout": {"width": "420px", "max_width": "100%"}}
    return ipywidgets.SelectionSlider(options=options, value=value, description=label, continuous_update=False, **wide)


def menu(label: str, options: Sequence[Any], value: Any) -> Widget:
    """A menu of ``options``.

    Raises:
        LabError: ``value`` is not among the options.
    """
    import ipywidgets

    wide = {"style": {"description_width": "initial"}, "layout": {"width": "420px", "max_width": "100%"}}
    return ipywidgets.Dropdown(options=_options(label, options, value), value=value, description=label, **wide)


def _options(label: str, options: Sequence[Any], value: Any) -> list[Any]:
    if value not in (options := list(options)):
        raise LabError(f"{label}={value!r}", f"{label} is one of {options}", f"try {options[:1]}")
    return options


def rank_steps(limit: int) -> list[int]:
    """The ranks of a rank slider: every one up to `FINE_RANKS`, then about a quarter more each time, up to ``limit``.

    Example:
        >>> rank_steps(64)[-6:]
        [20, 25, 31, 39, 49, 64]
    """
    ranks = list(range(1, min(limit, FINE_RANKS) + 1))
    while ranks[-1] < limit:
        longer = round(1.25 * ranks[-1])
        ranks.append(longer if 1.1 * longer < limit else limit)
    return ranks


def rank_widget(weight: torch.Tensor, *, name: str = "weight", rank: int = 8) -> Explorer:
    """What the best approximation of rank r keeps of a matrix; the slider is r.

    Left the singular values, in the middle the energy kept and the relative error by rank, right a corner of the
    matrix beside the same corner of its approximation.

    Args:
        weight: (out_features, in_features): a layer's weight, or the update of one.
        name: what the matrix is, for the title (English and symbols).
        rank: where the slider starts; cut to the smaller side of the matrix.

    Raises:
        LabError: not a matrix of finite numbers, or all zeros.
    """
    from labkit.theory.lora import decompose

    parts = decompose(weight)
    ranks = rank_steps(len(parts.values))
    picture = _RankPicture(parts, name)
    start = max(r for r in ranks if r <= max(1, rank))
    alt = f"Singular values of {name}, energy kept by rank, and a corner of the matrix beside its approximation"
    return Explorer(picture.fig, picture.redraw, {"rank": slider(text("rank r", "秩 r"), ranks, start)}, alt=alt)


def tensor_widget(
    tensors: Mapping[str, torch.Tensor], *, code: str = "nf4", block_size: int = 64, double_quant: bool = False
) -> Explorer:
    """A 4-bit code on real weights; menus choose the tensor, the code and double quantization, a slider the block size.

    Left the histogram of the weights over their block's absmax with the code's levels on it, right how many weights
    each level gets (dashed: equal shares). Of a tensor with more than 2**20 weights the first ones are used.

    Args:
        tensors: name (English and symbols) -> weight.
        code, block_size, double_quant: where the controls start.

    Raises:
        LabError: no tensors, one that cannot be quantized, or a start that is no option.
    """
    from labkit.models.methods import BLOCK_SIZES
    from labkit.page.code_figures import CodePicture
    from labkit.theory.codes import CODES

    if not tensors:
        raise LabError("tensor_widget({})", "there is nothing to look at", "give a dict of names and weights")
    picture, names = CodePicture(tensors), list(tensors)
    controls = {
        "tensor": menu(text("tensor", "张量"), names, names[0]),
        "code": menu(text("code", "编码"), CODES, code),
        "block_size": slider(text("block size", "块大小"), BLOCK_SIZES, block_size),
        "double_quant": menu(text("double quantization", "双重量化"), [False, True], double_quant),
    }
    alt = "Histogram of the normalized weights with the levels of the code on it, and the share of each level"
    return Explorer(picture.fig, picture.redraw, controls, alt=alt)


class _RankPicture:
    """The figure of `rank_widget` and the artists that its slider moves."""

    def __init__(self, parts: Any, name: str) -> None:
        from matplotlib.figure import Figure

        self.parts = parts
        self.fig = Figure(figsize=(9.2, 3.3), layout="constrained")
        spectrum, curve, exact, kept = self.fig.subplots(1, 4, width_ratios=(1.2, 1.2, 1, 1))
        self._draw_values(spectrum)
        self._draw_curves(curve)
        self._draw_corners(exact, kept)
        self.fig.suptitle(f"{name}: {parts.left.shape[0]} x {parts.right.shape[1]}", fontsize=10)

    def _draw_values(self, axes: Any) -> None:
        values = self.parts.values.tolist()
        places = range(1, len(values) + 1)
        axes.plot(places, values, color="#999999", linewidth=1)
        (self.chosen,) = axes.plot([], [], ".-", color=OKABE_ITO[0], linewidth=3)
        smallest = max(min(values), 1e-6 * values[0])
        axes.set(yscale="log", ylim=(smallest / 1.5, 1.5 * values[0]), xlabel="i", title="singular value $\\sigma_i$")
        axes.title.set_fontsize(9)

    def _draw_curves(self, axes: Any) -> None:
        energy, error = self.parts.energy.tolist(), self.parts.relative_error.tolist()
        places = range(len(energy))
        axes.plot(places, energy, color=OKABE_ITO[0], label="energy kept")
        axes.plot(places, error, "--", color=OKABE_ITO[3], label="relative error")
        (self.dots,) = axes.plot([], [], "o", color="black", markersize=5)
        axes.set(ylim=(-0.03, 1.03), xlabel="rank r")
        axes.legend(frameon=False, fontsize=7, loc="center right")

    def _draw_corners(self, exact: Any, kept: Any) -> None:
        corner = self._corner(len(self.parts.values))
        limit = 3 * corner.std() or 1.0  # a few large entries shall not wash out the rest
        style = {"cmap": "cividis", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
        exact.imshow(corner, **style)
        exact.set_title("a corner of it", fontsize=9)
        self.image = kept.imshow(corner, **style)
        self.title = kept.set_title("", fontsize=9)
        for axes in (exact, kept):
            axes.set(xticks=[], yticks=[])

    def _corner(self, rank: int) -> Any:
        left, right = self.parts.left[:CROP, :rank], self.parts.right[:rank, :CROP]
        return (left * self.parts.values[:rank] @ right).float().cpu().numpy()

    def redraw(self, rank: int) -> str:
        """Move every artist to ``rank`` and say what that rank keeps."""
        energy, error = float(self.parts.energy[rank]), float(self.parts.relative_error[rank])
        self.chosen.set_data(range(1, rank + 1), self.parts.values[:rank].tolist())
        self.dots.set_data([rank, rank], [energy, error])
        self.image.set_data(self._corner(rank))
        self.title.set_text(f"r = {rank}")
        rows, columns = self.parts.left.shape[0], self.parts.right.shape[1]
        share = rank * (rows + columns) / (rows * columns)
        return text(
            f"rank {rank}: {energy:.1%} of the energy kept, relative error {error:.3f}, "
            f"{share:.1%} of the matrix's numbers",
            f"秩 {rank}：保留能量 {energy:.1%}，相对误差 {error:.3f}，所用的数是整个矩阵的 {share:.1%}",
        )
