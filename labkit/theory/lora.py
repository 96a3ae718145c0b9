"""LoRA by hand: ``y = W0 x + scale * B A x``, built in lesson 02 and equal to PEFT bit for bit.

Hu et al. 2021 (2106.09685), section 4.1; scale alpha/r there, alpha/sqrt(r) in rsLoRA (Kalajdzievski 2023, 2312.03732).
The paper draws A from a Gaussian; the init here is the one that its authors' code and PEFT use (`LoRALinear`).

Symbols: ``in`` and ``out`` are in_features and out_features of the frozen linear, r the rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from labkit.errors import LabError
from labkit.models.methods import TARGETS, Method
from labkit.models.shapes import ModelShape
from labkit.theory.resident import adapter_tensors, n_elements

# --- the layer -------------------------------------------------------------------------------------------------------


def lora_scale(method: Method, *, use_rslora: bool = False) -> float:
    """What B A is multiplied with: alpha/r, or with rsLoRA alpha/sqrt(r)."""
    return method.alpha / math.sqrt(method.rank) if use_rslora else method.scale


class LoRALinear(nn.Module):
    """A frozen linear with a trainable low-rank update beside it.

    ``lora_A`` (r, in) is uniform on +-1/sqrt(in): Kaiming-uniform with a = sqrt(5), as in ``torch.nn.Linear`` itself
    (loralib, and PEFT ``LoraLayer.reset_lora_parameters``). ``lora_B`` (out, r) is zero, so the layer starts as the
    frozen one. Both are float32 whatever the base is, as PEFT makes them (``autocast_adapter_dtype``).

    Args:
        base: the pretrained linear; it is kept, frozen, and changed only by `merge`.
        rank: r, at least 1; above min(in, out) it only costs more.
        alpha: numerator of the scale, above 0; None means twice the rank.
        dropout: share of the adapter's input that is dropped while training, in [0, 1).
        use_rslora: divide alpha by sqrt(r) instead of r.

    Raises:
        LabError: a value outside these ranges, or a base that is no ``nn.Linear`` of floating-point numbers.

    Example:
        >>> layer = LoRALinear(nn.Linear(6, 4), rank=2, alpha=4)
        >>> layer.scale, sum(p.numel() for p in layer.parameters() if p.requires_grad)
        (2.0, 20)
    """

    def __init__(
        self, base: nn.Linear, *, rank: int, alpha: float | None, dropout: float = 0.0, use_rslora: bool = False
    ) -> None:
        super().__init__()
        _refuse_other_than_linear(base)
        method = Method(kind="lora", rank=rank, alpha=alpha, dropout=dropout)  # it refuses what is out of range
        self.base = base.requires_grad_(False)
        self.rank, self.scale, self.merged = rank, lora_scale(method, use_rslora=use_rslora), False
        new = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **new))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, rank, **new))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A uniform on +-1/sqrt(in), B zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the type of the base's output."""
        y = self.base(x)  # (..., out)
        if self.merged:
            return y
        low = linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A)  # (..., r)
        return (y + linear(low, self.lora_B) * self.scale).to(y.dtype)

    def delta_weight(self) -> torch.Tensor:
        """scale * B A, the update as one (out, in) matrix, float32."""
        return self.lora_B @ self.lora_A * self.scale

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update into the base's weight, rounded once to its type; the layer then costs what the base costs.

        Raises:
            LabError: it is merged already (adding twice would train nobody's model).
        """
        self._expect(merged=False)
        self.base.weight += self.delta_weight()
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the update again: the old weight up to rounding, which a 16-bit weight shows.

        Raises:
            LabError: it is not merged.
        """
        self._expect(merged=True)
        self.base.weight -= self.delta_weight()
        self.merged = False

    def _expect(self, *, merged: bool) -> None:
        if self.merged != merged:
            rule = "an update is added once and taken out once"
            raise LabError(f"merged={self.merged}", rule, f"call {'unmerge' if self.merged else 'merge'} first")

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, merged={self.merged}"


def _refuse_other_than_linear(base: nn.Module) -> None:
    if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
        rule = "this layer adapts a torch.nn.Linear of floating-point weights"
        raise LabError(f"base={type(base).__name__}", rule, "dequantize it first, or let PEFT adapt it")


def add_lora(model: nn.Module, method: Method, *, layer: type[LoRALinear] = LoRALinear) -> dict[str, LoRALinear]:
    """Replace the linears that ``method`` targets by `LoRALinear`, freeze the rest; returns name -> new layer.

    Args:
        model: a decoder whose linears are called ``….layers.3.….q_proj``; changed in place.
        method: rank, alpha, dropout, targets and layers (none: every layer).
        layer: what to put in their place: `LoRALinear` or a class that is made with the same arguments.

    Raises:
        LabError: the model has none of the targets.
    """
    model.requires_grad_(False)
    found = [name for name, _ in model.named_modules() if _targeted(name, method)]
    if not found:
        rule = "this model has no linear of that name in these layers"
        raise LabError(f"targets={method.targets}, layers={method.layers}", rule, "print(model) to see them")
    settings = {"rank": method.rank, "alpha": method.alpha, "dropout": method.dropout, "use_rslora": method.rslora}
    adapted = {}
    for name in found:
        parent, _, own = name.rpartition(".")
        adapted[name] = layer(model.get_submodule(name), **settings)
        setattr(model.get_submodule(parent), own, adapted[name])
    return adapted


def _targeted(name: str, method: Method) -> bool:
    layer = re.search(r"\blayers\.(\d+)\.", name)
    here = method.at(int(layer[1])) if layer else None if method.layers else method
    return here is not None and name.rpartition(".")[2] in here.targets


def lora_param_count(shape: ModelShape, *, rank: int, targets: Sequence[str] = TARGETS) -> int:
    """How many parameters train: r (in + out) over the targeted linears of all layers.

    Example:
        >>> from labkit.models.shapes import shape_of
        >>> lora_param_count(shape_of("qwen3-8b"), rank=32)
        87293952
    """
    return n_elements(adapter_tensors(shape, Method(kind="lora", rank=rank, targets=tuple(targets))))


# --- how much of a matrix a rank keeps -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decomposition:
    """A matrix as left @ diag(values) @ right, and what its best approximation of each rank keeps.

    Attributes:
        left: (out, k) with k = min(out, in), orthonormal columns.
        values: (k,) singular values, largest first.
        right: (k, in), orthonormal rows.
        energy: (k + 1,) float64; entry r is the share of the sum of squared singular values in the first r.
        relative_error: (k + 1,) float64; entry r is the Frobenius norm of what rank r leaves out, over the whole.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    energy: torch.Tensor
    relative_error: torch.Tensor

    def truncated(self, rank: int) -> torch.Tensor:
        """The best approximation of ``rank``, (out, in)."""
        return self.left[:, :rank] * self.values[:rank] @ self.right[:rank]

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) with B A equal to `truncated`: the best adapter of that rank at a scale of 1."""
        root = self.values[:rank].sqrt()  # (r,)
        return root[:, None] * self.right[:rank], self.left[:, :rank] * root


def decompose(matrix: torch.Tensor) -> Decomposition:
    """Singular value decomposition of a (out, in) matrix, in float32 or its own wider type.

    Raises:
        LabError: not a matrix, numbers that are not finite, or nothing but zeros (no direction to keep).
    """
    _refuse_unusable(matrix)
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    squares = values.double().cpu() ** 2
    # From the small end, so that a small tail is not the difference of two large sums.
    tail = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    tail = tail / tail[0]
    return Decomposition(left, values, right, energy=1 - tail, relative_error=tail.sqrt())


def mean_energy(decompositions: Iterable[Decomposition], rank: int) -> float:
    """The mean share of energy that ``rank`` keeps (all of it where a matrix is smaller); matrices weigh the same."""
    shares = [float(parts.energy[min(rank, len(parts.values))]) for parts in decompositions]
    return sum(shares) / len(shares)


def _refuse_unusable(matrix: torch.Tensor) -> None:
    given = f"a tensor of shape {tuple(matrix.shape)}"
    if matrix.ndim != 2 or not matrix.numel():
        raise LabError(given, "a matrix has rows and columns", "pass a weight of shape (out, in)")
    if not matrix.isfinite().all():
        raise LabError(given, "it holds numbers that are not finite", "find out where they came from")
    if not matrix.any():
        raise LabError(given, "an update of zeros has no direction to keep", "train at least one step")


def truncate(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, float]:
    """The closest (out, in) matrix of at most ``rank``, and the share of energy that it keeps.

    No other matrix of that rank is closer, in the Frobenius or the spectral norm (Eckart and Young 1936).

    Raises:
        LabError: a rank below 1, or see `decompose`.
    """
    Method(kind="lora", rank=rank)
    parts = decompose(matrix)
    rank = min(rank, len(parts.values))
    return parts.truncated(rank), float(parts.energy[rank])


# --- experiments on one layer ----------------------------------------------------------------------------------------


def planted_update(out_features: int, in_features: int, *, rank: int, generator: torch.Generator) -> torch.Tensor:
    """A random (out, in) matrix with exactly ``rank`` singular values, all 1: a target whose true rank is known.

    Raises:
        LabError: a rank that such a matrix cannot have.
    """
    if not 1 <= rank <= min(out_features, in_features):
        rule = f"a {out_features} x {in_features} matrix has a rank of at most {min(out_features, in_features)}"
        raise LabError(f"rank={rank}", rule, "try a smaller rank")
    left, right = (torch.randn(size, rank, generator=generator) for size in (out_features, in_features))
    return torch.linalg.qr(left).Q @ torch.linalg.qr(right).Q.T


def fit(
    layer: nn.Module, x: torch.Tensor, y: torch.Tensor, *, learning_rate: float, steps: int, optimizer: str = "Adam"
) -> list[float]:
    """Train a layer's trainable parameters on inputs and wished outputs; the loss before each step and after the last.

    Args:
        layer: e.g. a `LoRALinear`.
        x: (n, in).
        y: (n, out).
        learning_rate: constant.
        steps: full-batch steps, at least 1.
        optimizer: a class of ``torch.optim``: ``"Adam"``, ``"SGD"``, ...

    Returns:
        steps + 1 times the squared error, as a share of the one that the layer starts with.
    """
    trainable = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    stepper = getattr(torch.optim, optimizer)(trainable, lr=learning_rate)
    losses: list[float] = []
    for _ in range(steps):
        stepper.zero_grad()
        loss = (layer(x) - y).square().sum()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append((layer(x) - y).square().sum().item())
    return [loss / losses[0] for loss in losses]
