"""Pictures of 4-bit codes: levels over a histogram, and which levels a tensor really uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.page.figures import OKABE_ITO

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 80
MOST_WEIGHTS = 2**20  # of a larger tensor the first rows are shown: a histogram needs no more
SLOTS = 16


@dataclass(frozen=True, eq=False)
class View:
    """What one setting shows.

    Attributes:
        levels: distinct levels, ascending, (n,); n <= 16.
        shares: share of the weights at each of them, (n,), sums to 1.
        heights: share of the normalized weights in each of `BINS` even bins of [-1, 1], (BINS,), sums to 1.
        relative_error: norm of the error over the norm of the weights.
        bits: stored bits per weight, constants included.
        entropy_bits: entropy of ``shares``, in bits.
    """

    levels: torch.Tensor
    shares: torch.Tensor
    heights: torch.Tensor
    relative_error: float
    bits: float
    entropy_bits: float


def view(weight: torch.Tensor, *, code: str, block_size: int, double_quant: bool = False) -> View:
    """Quantize ``weight`` and gather what a picture of it needs.

    Raises:
        LabError: see `labkit.theory.nf4.quantize`.
    """
    import torch

    from labkit.theory import nf4
    from labkit.theory.codes import entropy_bits

    weight = weight.detach().cpu()
    quantized = nf4.quantize(weight, block_size=block_size, code=code)
    absmax = nf4.restore(nf4.double_quantize(quantized.absmax)) if double_quant else None
    levels, place = quantized.table.unique(return_inverse=True)  # sorted; FP4 has its zero twice
    shares = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, place, nf4.usage(quantized))
    scales = quantized.absmax.repeat_interleave(block_size)[: weight.numel()]
    normalized = (weight.flatten().float() / scales.clamp(min=1e-38)).clamp(-1, 1)
    return View(
        levels=levels,
        shares=shares,
        heights=torch.histc(normalized, BINS, -1, 1).double() / weight.numel(),
        relative_error=nf4.relative_error(weight, nf4.dequantize(quantized, absmax)),
        bits=nf4.bits_per_weight(block_size, double_quant=double_quant, n_weights=weight.numel()),
        entropy_bits=entropy_bits(shares),
    )


def levels_figure(panels: Mapping[str, View]) -> Figure:
    """One panel a view: the histogram of the normalized weights, the code's levels as lines on it.

    Raises:
        LabError: there is nothing to draw.
    """
    if not panels:
        raise LabError("levels_figure({})", "there is nothing to draw", "give at least one label and view")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(4.4 * len(panels), 2.6), layout="constrained")
    for axes, (label, seen) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _histogram(axes, seen)
        axes.set_title(f"{label}: relative error {seen.relative_error:.4f}", fontsize=10)
    return fig


def qq_figure(samples: Mapping[str, torch.Tensor]) -> Figure:
    """Quantiles of standardized samples against those of N(0, 1), one panel a sample; on the dashed line they agree.

    Raises:
        LabError: there is nothing to draw.
    """
    if not samples:
        raise LabError("qq_figure({})", "there is nothing to draw", "give at least one label and sample")
    import torch
    from matplotlib.figure import Figure

    places = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    normal = torch.special.ndtri(places)
    fig = Figure(figsize=(2.9 * len(samples), 2.8), layout="constrained")
    for axes, (label, sample) in zip(fig.subplots(1, len(samples), squeeze=False)[0], samples.items(), strict=True):
        values = sample.detach().flatten().double().sort().values
        values = (values - values.mean()) / values.std()
        axes.plot(normal, values[(places * len(values)).long()], ".", markersize=3, color=OKABE_ITO[0])
        axes.plot([-3.2, 3.2], [-3.2, 3.2], "--", color="black", linewidth=1)
        axes.set(title=label, xlabel="quantile of N(0, 1)")
        axes.title.set_fontsize(9)
        axes.spines[["top", "right"]].set_visible(False)
    fig.axes[0].set_ylabel("quantile of the sample")
    return fig


def error_figure(errors: Mapping[str, Sequence[float]], block_sizes: Sequence[int]) -> Figure:
    """Mean squared error against block size, one line and marker a code.

    Args:
        errors: code -> error at each of ``block_sizes``.

    Raises:
        LabError: there is nothing to draw.
    """
    if not errors:
        raise LabError("error_figure({})", "there is nothing to draw", "give at least one code and its errors")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7, 3.4), layout="constrained")
    axes = fig.subplots()
    styles = zip(errors.items(), OKABE_ITO, "osD^vPX*", strict=False)
    for (label, values), colour, marker in styles:
        axes.plot(block_sizes, values, marker=marker, color=colour, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="block size", ylabel="mean squared error on N(0, 1)", ylim=(0, None))
    axes.set_xticks(block_sizes, [str(size) for size in block_sizes])
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return fig


class CodePicture:
    """The figure of `labkit.page.widgets.tensor_widget`: levels over a histogram, and the share of each level.

    Args:
        tensors: name -> weight, any shape.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        from matplotlib.figure import Figure

        self.tensors = {name: _head(weight) for name, weight in tensors.items()}
        self.fig = Figure(figsize=(9.2, 3.1), layout="constrained")
        left, right = self.fig.subplots(1, 2, width_ratios=(1.5, 1))
        first = next(iter(self.tensors.values()))
        self.steps, self.lines = _histogram(left, view(first, code="nf4", block_size=64))
        self.left = left
        self.bars = right.bar(range(1, SLOTS + 1), [1 / SLOTS] * SLOTS, color=OKABE_ITO[5], edgecolor="black", lw=0.5)
        right.axhline(1 / SLOTS, color="black", linestyle="--", linewidth=1)
        right.set(xlabel="level, smallest first", ylabel="share of the weights", xticks=(1, 4, 8, 12, 16))
        right.text(SLOTS, 1 / SLOTS, "1/16 ", ha="right", va="bottom", fontsize=8)
        self.right = right

    def redraw(self, tensor: str, code: str, block_size: int, double_quant: bool) -> str:
        """Move every artist to this setting and say what comes out."""
        weight = self.tensors[tensor]
        seen = view(weight, code=code, block_size=block_size, double_quant=double_quant)
        self.steps.set_data(seen.heights.tolist())
        self.lines.set_segments([[(x, 0), (x, 1)] for x in seen.levels.tolist()])
        self.left.set_ylim(0, 1.05 * float(seen.heights.max()))
        shares = seen.shares.tolist()
        for bar, share in zip(self.bars, shares + [0.0] * (SLOTS - len(shares)), strict=True):
            bar.set_height(share)
        self.right.set_ylim(0, 1.1 * max(*shares, 1.5 / SLOTS))
        self.left.set_title(f"{tensor}, {code}, block {block_size}", fontsize=9)
        self.right.set_title(f"entropy {seen.entropy_bits:.3f} bits", fontsize=9)
        return self._line(seen, weight)

    @staticmethod
    def _line(seen: View, weight: torch.Tensor) -> str:
        return text(
            f"relative error {seen.relative_error:.4f}, {seen.bits:.3f} bits per weight stored, "
            f"{seen.entropy_bits:.3f} of 4 bits used, {weight.numel():,} weights",
            f"相对误差 {seen.relative_error:.4f}，每个权重存 {seen.bits:.3f} 比特，"
            f"4 比特中用上 {seen.entropy_bits:.3f}，共 {weight.numel():,} 个权重",
        )


def _head(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().flatten()[:MOST_WEIGHTS].cpu()


def _histogram(axes: Axes, seen: View) -> tuple[Any, Any]:
    """The histogram as steps and the levels as lines that reach from bottom to top, whatever the limits."""
    edges = [2 * place / BINS - 1 for place in range(BINS + 1)]
    steps = axes.stairs(seen.heights.tolist(), edges, fill=True, color=OKABE_ITO[5], alpha=0.7)
    lines = axes.vlines(
        seen.levels.tolist(), 0, 1, color=OKABE_ITO[3], linewidth=1, transform=axes.get_xaxis_transform()
    )
    axes.set(xlim=(-1.02, 1.02), xlabel="weight / absmax of its block", ylabel="share per bin")
    axes.spines[["top", "right"]].set_visible(False)
    return steps, lines
