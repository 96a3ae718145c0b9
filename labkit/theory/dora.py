"""DoRA by hand: ``W' = m * V / |V|`` with ``V = W0 + scale * B A``, built in lesson 06 and equal to PEFT.

Liu et al. 2024 (2402.09353): the layer (section 4.1, equation 5), its gradients (4.2, equations 6 and 7), the norm held
constant in the backward pass (4.3, equation 11), and how much of a change of weights is magnitude and how much
direction (3.2, equations 3 and 4).

|V| is a vector: one norm for each *output*, that is, for each row of an (out, in) weight, as the authors' code and
PEFT have it (``torch.linalg.norm(weight, dim=1)``, ``peft.tuners.lora.dora.DoraLinearLayer.get_weight_norm``). The
paper writes "column", which is the same vector where a weight is stored as (in, out).

Symbols: ``in`` and ``out`` are in_features and out_features of the frozen linear, r the rank.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, linear

from labkit.errors import LabError
from labkit.models.methods import Method
from labkit.theory.lora import LoRALinear, add_lora

# --- the layer -------------------------------------------------------------------------------------------------------


def magnitudes(weight: torch.Tensor) -> torch.Tensor:
    """The length of every row of an (out, in) weight: (out,), one for each output.

    Raises:
        LabError: not a matrix.

    Example:
        >>> magnitudes(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]))
        tensor([5., 2.])
    """
    if weight.ndim != 2 or not weight.numel():
        given, rule = f"a tensor of shape {tuple(weight.shape)}", "a weight has a row for each output"
        raise LabError(given, rule, "pass a weight of shape (out, in)")
    return torch.linalg.norm(weight, dim=1)


class DoRALinear(LoRALinear):
    """A frozen linear whose rows get a trained direction, by a low-rank update, and a trained length.

    Beside ``lora_A`` (r, in) and ``lora_B`` (out, r) of `LoRALinear` it trains ``magnitude`` (out,), float32. It starts
    at the lengths of the rows of W0, so with B zero the layer starts as the frozen one, up to the rounding of m / |V|.
    Beware: like PEFT it rounds that start to the base's own type. On a bfloat16 base m / |V| begins as far as 0.4 %
    from 1, and the outputs with it.

    The forward pass adds up in PEFT's order, which decides about the last bit: y0 + (m/|V| - 1) W0 x + m/|V| * scale
    * B A x with y0 = W0 x + bias. The bias is not scaled. Dropout, where PEFT has it, drops the input of all but y0.

    Args:
        base, rank, alpha, dropout, use_rslora: see `LoRALinear`.
        detach_norm: hold |V| constant in the backward pass (section 4.3, PEFT). False gives the exact gradient, and
            makes autograd keep matrices of the size of the weight.

    Raises:
        LabError: see `LoRALinear`; a row of W0 that is zero and so has no direction.

    Example:
        >>> layer = DoRALinear(nn.Linear(6, 4), rank=2, alpha=4)
        >>> sum(p.numel() for p in layer.parameters() if p.requires_grad)  # LoRA's 20, and one for each output
        24
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        alpha: float | None,
        dropout: float = 0.0,
        use_rslora: bool = False,
        detach_norm: bool = True,
    ) -> None:
        super().__init__(base, rank=rank, alpha=alpha, dropout=dropout, use_rslora=use_rslora)
        self.detach_norm = detach_norm
        start = magnitudes(base.weight.detach())
        if not start.all():
            given, rule = f"{int((start == 0).sum())} rows of zeros", "a row of zeros has no direction"
            raise LabError(given, rule, "adapt this layer with LoRA")
        self.magnitude = nn.Parameter(start.to(torch.float32))
        self._merged_scale: torch.Tensor | None = None

    def norm(self) -> torch.Tensor:
        """|V|: the length of every row of W0 + scale * B A, (out,); without a gradient if ``detach_norm``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm):
            update = linear(self.lora_A.T.contiguous(), self.lora_B).T  # as PEFT multiplies, but without its identity
            return magnitudes(self.base.weight.to(update.dtype) + self.scale * update)

    def row_scale(self) -> torch.Tensor:
        """m / |V|, (out,): what every output of W0 x + scale * B A x is multiplied with."""
        return self.magnitude / self.norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the type of the base's output."""
        y = self.base(x)  # (..., out)
        if self.merged:
            return y
        x, scale = x.to(self.lora_A.dtype), self.row_scale()
        if self.training and isinstance(self.dropout, nn.Dropout):
            x = self.dropout(x)
            frozen = linear(x, self.base.weight.to(x.dtype))
        else:
            frozen = y if self.base.bias is None else y - self.base.bias
        low = linear(linear(x, self.lora_A), self.lora_B)  # (..., out)
        return (y + ((scale - 1) * frozen + scale * low * self.scale)).to(y.dtype)

    def weight(self) -> torch.Tensor:
        """W', the (out, in) matrix that this layer multiplies with; merged, the base's weight."""
        if self.merged:
            return self.base.weight
        return self.row_scale()[:, None] * (self.base.weight + self.delta_weight())

    @torch.no_grad()
    def merge(self) -> None:
        """Replace the base's weight by `weight`, rounded once to its type.

        Raises:
            LabError: it is merged already.
        """
        self._expect(merged=False)
        directed = self.base.weight + self.delta_weight()  # V
        self._merged_scale = self.magnitude / magnitudes(directed)  # after merging, |V| cannot be found any more
        self.base.weight.data = (self._merged_scale[:, None] * directed).to(self.base.weight.dtype)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Divide by m / |V| and subtract the update: the old weight up to rounding, worse than with LoRA.

        Raises:
            LabError: it is not merged.
        """
        self._expect(merged=True)
        weight = self.base.weight / self._merged_scale[:, None] - self.delta_weight()
        self.base.weight.data = weight.to(self.base.weight.dtype)
        self.merged, self._merged_scale = False, None


def add_dora(model: nn.Module, method: Method) -> dict[str, DoRALinear]:
    """`labkit.theory.lora.add_lora` with `DoRALinear` in place of `LoRALinear`; returns name -> new layer.

    Raises:
        LabError: see `add_lora`.
    """
    return add_lora(model, method, layer=DoRALinear)


def direction_gradient(base: nn.Linear, update: torch.Tensor, x: torch.Tensor, dy: torch.Tensor, *, detach: bool):
    """∂L/∂V where V = W0 + update, and V itself, both (out, in): `DoRALinear` with A the identity, so that B is V - W0.

    Args:
        base: the frozen linear; m is the length of its rows.
        update: (out, in).
        x: inputs, (..., in).
        dy: ∂L/∂y, (..., out).
        detach: equation 11 (True) or equation 6 (False).
    """
    size = base.in_features
    layer = DoRALinear(base, rank=size, alpha=size, detach_norm=detach)
    layer.lora_A.data, layer.lora_B.data = torch.eye(size), update.clone()
    layer(x).backward(dy)
    return layer.lora_B.grad, base.weight + update


class _Kept:
    """A tensor that autograd keeps; it dies with the part of the graph that needs it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Bytes that autograd still keeps for the backward pass when ``layer(x)`` has returned, parameters not counted.

    Each storage counts once, whatever part of it is kept. What the layer needed only on the way is not in it.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> _Kept:
        alive.add(kept := _Kept(tensor))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        y = layer(x)
    storages = {storage.data_ptr(): storage.nbytes() for storage in (kept.tensor.untyped_storage() for kept in alive)}
    del y  # it held the graph until here
    return sum(size for address, size in storages.items() if address not in own)


# --- a change of weights, taken apart --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightChange:
    """How far a weight has moved, in length and in direction; both are means over its rows (equations 3 and 4).

    Attributes:
        magnitude: mean of | |w'| - |w| |, in the units of the weights.
        direction: mean of 1 - cos(w', w), in [0, 2]; 0 where every row still points where it pointed.
        relative: mean of | |w'| / |w| - 1 |: ``magnitude`` for comparisons between matrices of unlike size.
    """

    magnitude: float
    direction: float
    relative: float


@torch.no_grad()
def weight_change(before: torch.Tensor, after: torch.Tensor) -> WeightChange:
    """What was done to the rows of ``before`` to get ``after``, both (out, in); computed in float64.

    Raises:
        LabError: matrices of unlike shapes, or a row of zeros.

    Example:
        >>> weight_change(torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        WeightChange(magnitude=1.0, direction=0.0, relative=1.0)
    """
    if before.shape != after.shape:
        given = f"shapes {tuple(before.shape)} and {tuple(after.shape)}"
        raise LabError(given, "a change is between two weights of one layer", "pass the same layer twice")
    before, after = before.double(), after.double()
    old, new = magnitudes(before), magnitudes(after)
    if not (old.all() and new.all()):
        raise LabError("a row of zeros", "it has no direction that could change", "leave this matrix out")
    moved = (new - old).abs()
    turned = (1 - cosine_similarity(before, after, dim=1)).clamp(min=0)  # rounding may give -1e-16
    return WeightChange(float(moved.mean()), float(turned.mean()), float((moved / old).mean()))


@dataclass(frozen=True)
class Correlation:
    """Pearson's r with its 95 % interval (Fisher's z, as scipy computes it), and the number of points.

    The interval takes the points as independent. Layers of one run are not, so it is a lower bound of the doubt.
    """

    r: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.r:+.2f} ({self.low:+.2f} to {self.high:+.2f}), n = {self.n:3}"


def correlate(changes: Sequence[WeightChange], *, relative: bool = False) -> Correlation:
    """The correlation between change of direction and change of magnitude over several matrices.

    Args:
        changes: one for each matrix, or for each matrix and moment; at least 4.
        relative: take the magnitudes' change relative to the magnitudes.

    Raises:
        LabError: too few, or one of the two does not vary.
    """
    import scipy.stats

    turned = [change.direction for change in changes]
    moved = [change.relative if relative else change.magnitude for change in changes]
    if len(changes) < 4 or min(len(set(turned)), len(set(moved))) < 2:
        given = f"{len(changes)} changes"
        raise LabError(given, "a correlation needs at least 4 points that differ", "take more layers or moments")
    found = scipy.stats.pearsonr(turned, moved)
    interval = found.confidence_interval(0.95)
    return Correlation(float(found.statistic), float(interval.low), float(interval.high), len(changes))
