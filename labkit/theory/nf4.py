"""Four-bit weights in blocks, equal to bitsandbytes bit for bit: indices, absmax, packed bytes, double quantization.

``quantize`` follows the rule of `bitsandbytes.functional.quantize_4bit` on a CPU (bitsandbytes 0.50,
``backends/default/ops.py``; there is no C++ kernel for it): divide a block by its largest magnitude, take the nearest
level, and at a tie the lower one. ``double_quantize`` follows its compiled CPU kernel (``quantize_cpu`` in
``csrc/cpu_ops.cpp``), which rounds to 65,536 steps before it looks up the level, so about one constant in 700 gets the
second nearest level; the plain rule of bitsandbytes' Python implementation, the nearest, is there too. bitsandbytes'
CUDA kernels were not compared here. Introduced in lesson 03.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.theory.codes import AT_ONCE, Code, count_below, dynamic_map, levels, look_up

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALLEST = 1e-38  # absmax is raised to it before the division, so that a block of zeros divides by no zero
OUTER_BLOCK = 256  # first-level constants that share one second-level constant
STEPS = 65535  # resolution of the CPU kernel's lookup table for 8-bit levels
RULES = ("table", "nearest")


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor in at most 4 bits a weight, before packing.

    Attributes:
        indices: uint8, the weight's own shape: places in ``table``.
        absmax: float32, one per block of ``block_size`` weights in row-major order; the last block may be shorter.
        table: float32, the code's levels in the order of its indices.
        shape, dtype: of the weight that was quantized.
        code: the name of the code, or "own".
        block_size: weights per block.
    """

    indices: Tensor
    absmax: Tensor
    table: Tensor
    shape: torch.Size
    dtype: torch.dtype
    code: str
    block_size: int


@dataclass(frozen=True, eq=False)
class DoubleQuantized:
    """First-level constants in 8 bits: ``absmax = dynamic_map()[indices] * outer (by block of 256) + offset``.

    Attributes:
        indices: uint8, one per first-level constant.
        outer: float32, one per 256 of them.
        offset: float32 scalar, their mean, which was subtracted.
    """

    indices: Tensor
    outer: Tensor
    offset: Tensor


def quantize(weight: Tensor, *, block_size: int = 64, code: Code = "nf4") -> Quantized:
    """``weight`` as indices into a code and one absmax per block.

    Args:
        weight: float32, bfloat16 or float16, any shape, at least one element, all finite.
        block_size: consecutive weights (row-major) that share one absmax; at least 1. bitsandbytes knows powers of two
            from 32 to 4096.
        code: a name of `labkit.theory.codes.CODES`, or at most 16 levels in [-1, 1].

    Raises:
        LabError: another dtype, an empty tensor, infinities or NaN, a bad block size or code.

    Example:
        >>> quantize(torch.tensor([1.0, -2.0, 0.1, 0.0]), block_size=4).indices.tolist()
        [12, 0, 8, 7]
    """
    _check(weight, block_size)
    table = levels(code, block_size)
    order = torch.argsort(table, stable=True).to(weight.device)
    bounds = _middles(table.to(weight.device)[order])
    scaled, absmax = _scaled(weight, block_size)
    if not bool(torch.isfinite(absmax).all()):
        rule = "one infinity or NaN becomes the absmax of its block and erases the others"
        raise LabError("a weight that is not finite", rule, "find out where it comes from, then replace it")
    indices = count_below(scaled, bounds)  # the place of the nearest level, at a tie of the lower one
    if order.tolist() != list(range(len(order))):  # FP4 stands in the order of its bits
        indices = order.to(torch.uint8).index_select(0, indices.int())
    name = code if isinstance(code, str) else "own"
    return Quantized(indices.reshape(weight.shape), absmax, table, weight.shape, weight.dtype, name, block_size)


def dequantize(quantized: Quantized, absmax: Tensor | None = None) -> Tensor:
    """The weight that a computation sees: level times absmax in float32, then in the weight's own dtype and shape.

    Args:
        quantized: from `quantize`.
        absmax: other constants to use, e.g. from `restore`; None uses its own.
    """
    scales = quantized.absmax if absmax is None else absmax
    flat, size = quantized.indices.flatten(), quantized.block_size
    restored = torch.empty(flat.numel(), dtype=quantized.dtype, device=flat.device)
    rest = flat.numel() % size  # weights of a shorter last block
    whole = flat.numel() - rest
    step = size * max(1, AT_ONCE // size)
    for start in range(0, whole, step):
        part = slice(start, min(start + step, whole))
        rows = look_up(flat[part], quantized.table).view(-1, size)
        blocks = slice(start // size, part.stop // size)
        torch.mul(rows, scales[blocks, None], out=restored[part].view(-1, size))
    if rest:
        torch.mul(look_up(flat[whole:], quantized.table), scales[-1], out=restored[whole:])
    return restored.reshape(quantized.shape)


def pack(quantized: Quantized) -> Tensor:
    """Two indices a byte, the first in the high half: uint8, shape (ceil(n / 2),).

    Where the number of weights is odd, the last half byte is the index that a zero weight would get.
    """
    flat = quantized.indices.flatten()
    if flat.numel() % 2:
        table = quantized.table
        order = torch.argsort(table, stable=True)
        zero = order[torch.bucketize(torch.zeros(1), _middles(table[order]))]
        flat = torch.cat([flat, zero.to(flat)])
    return (flat[::2] << 4) | flat[1::2]


def unpack(packed: Tensor, n_weights: int) -> Tensor:
    """The first ``n_weights`` indices in ``packed``, uint8, flat.

    Raises:
        LabError: fewer bytes than that many indices need, or many more.
    """
    if packed.numel() != -(-n_weights // 2):
        rule = f"{n_weights} indices are packed in {-(-n_weights // 2)} bytes"
        raise LabError(f"{packed.numel()} bytes", rule, "give the number of weights that were packed")
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:n_weights]


def double_quantize(absmax: Tensor, *, rule: str = "table") -> DoubleQuantized:
    """First-level constants (float32, flat) in 8 bits: mean subtracted, blocks of 256, dynamic 8-bit levels.

    Args:
        absmax: float32, one-dimensional.
        rule: ``table`` (what bitsandbytes' CPU kernel does) or ``nearest`` (what its Python implementation does).

    Raises:
        LabError: not a flat float32 tensor, another rule, or constants whose mean is not finite.
    """
    if absmax.dtype != torch.float32 or absmax.dim() != 1 or not absmax.numel():
        given = f"absmax of {absmax.dtype} and shape {tuple(absmax.shape)}"
        raise LabError(given, "constants are a flat float32 tensor", "pass quantize(...).absmax")
    if rule not in RULES:
        raise LabError(f"rule={rule!r}", f"a rule is one of {', '.join(RULES)}", "use rule='table'")
    offset = absmax.mean()
    if not bool(torch.isfinite(offset)):
        raise LabError("absmax", "the mean of the constants is not a finite number", "scale the weights down")
    centred = absmax - offset
    if rule == "nearest":
        scaled, outer = _scaled(centred, OUTER_BLOCK)
        indices = torch.bucketize(scaled, _middles(dynamic_map()).to(scaled.device))
    else:
        rows, outer = _blocks(centred, OUTER_BLOCK)
        places = _table_index(rows * (1 / outer)[:, None]) * (outer > 0)[:, None]  # a block of zeros gets index 0
        indices = _lookup_table().to(places.device)[places].flatten()[: absmax.numel()]
    return DoubleQuantized(indices.to(torch.uint8), outer, offset)


def restore(double: DoubleQuantized) -> Tensor:
    """The first-level constants that double quantization gives back, float32."""
    values = dynamic_map().to(double.indices.device)[double.indices.long()]
    return values * double.outer.repeat_interleave(OUTER_BLOCK)[: values.numel()] + double.offset


def stored_bytes(n_weights: int, *, block_size: int = 64, double_quant: bool = False) -> int:
    """Bytes of a tensor of ``n_weights`` in 4 bits: packed indices and constants, without the code's own table.

    Plain: one float32 per block. Double quantization: one byte per block, a float32 per 256 blocks, a float32 offset.

    Raises:
        LabError: no weights, or a block size below 1.
    """
    for name, value in (("n_weights", n_weights), ("block_size", block_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LabError(f"{name}={value!r}", f"{name} is a whole number, at least 1", f"try {name}=64")
    blocks = -(-n_weights // block_size)
    constants = blocks + 4 * -(-blocks // OUTER_BLOCK) + 4 if double_quant else 4 * blocks
    return -(-n_weights // 2) + constants


def bits_per_weight(block_size: int = 64, *, double_quant: bool = False, n_weights: int | None = None) -> float:
    """Bits that one weight takes: exactly for a tensor of ``n_weights``, or for a very large one (None).

    The limit is 4 + 32 / B, or 4 + 8 / B + 32 / (256 B) with double quantization (QLoRA paper, section 3).

    Example:
        >>> bits_per_weight(64), bits_per_weight(64, double_quant=True)
        (4.5, 4.126953125)

    Raises:
        LabError: see `stored_bytes`.
    """
    if n_weights is not None:
        return 8 * stored_bytes(n_weights, block_size=block_size, double_quant=double_quant) / n_weights
    stored_bytes(1, block_size=block_size)  # for its checks
    return 4 + (8 + 32 / OUTER_BLOCK if double_quant else 32) / block_size


def relative_error(weight: Tensor, approximation: Tensor) -> float:
    """Norm of the difference over the norm of ``weight``, in float64; 0 for two tensors of zeros.

    Raises:
        LabError: different shapes.
    """
    if weight.shape != approximation.shape:
        shapes = f"{tuple(weight.shape)} and {tuple(approximation.shape)}"
        raise LabError(shapes, "an error compares tensors of one shape", "reshape one of them")
    norm = float(weight.double().norm())
    off = float((weight.double() - approximation.double()).norm())
    return off / norm if norm else (math.inf if off else 0.0)


def usage(quantized: Quantized) -> Tensor:
    """Share of the weights that each index of the table gets, float64, in the table's order; sums to 1."""
    counts = torch.bincount(quantized.indices.flatten().long(), minlength=quantized.table.numel())
    return counts.double() / quantized.indices.numel()


def _check(weight: Tensor, block_size: int) -> None:
    if weight.dtype not in DTYPES or not weight.numel():
        given = f"a tensor of {weight.dtype} with {weight.numel()} elements"
        raise LabError(given, "weights are float32, bfloat16 or float16, at least one", "use weight.float()")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        rule = "a block is a whole number of weights, at least 1"
        raise LabError(f"block_size={block_size!r}", rule, "try block_size=64")


def _blocks(flat: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """``flat`` as rows of one block each, the last one filled with zeros, and the largest magnitude of each row."""
    rows = torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).reshape(-1, block_size)
    return rows, rows.abs().amax(dim=1)


def _scaled(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Flat weights over their block's absmax, in [-1, 1], and the absmax, both float32.

    Two habits of bitsandbytes matter for equal bits: whole blocks are multiplied by a reciprocal while a shorter last
    block is divided, and only the latter's absmax is *stored* raised to `SMALLEST`.
    """
    flat = weight.detach().flatten().float()
    rows, absmax = _blocks(flat, block_size)
    scaled = rows * (1 / absmax.clamp(min=SMALLEST))[:, None]
    if flat.numel() % block_size:
        absmax[-1] = absmax[-1].clamp(min=SMALLEST)
        scaled[-1] = rows[-1] / absmax[-1]
    return scaled.clamp_(-1, 1).flatten()[: flat.numel()], absmax


def _middles(ascending: Tensor) -> Tensor:
    return (ascending[:-1] + ascending[1:]) / 2


@functools.cache
def _lookup_table() -> Tensor:
    """The 8-bit level of each of 65,536 even steps from -1 to 1, as the CPU kernel builds it."""
    steps = 2 * torch.arange(STEPS + 1, dtype=torch.float32) / STEPS - 1
    return torch.bucketize(steps, _middles(dynamic_map()))


def _table_index(scaled: Tensor) -> Tensor:
    """The step nearest to each value; NaN (a second-level constant so small that its reciprocal overflows) gives 0.

    float64 and one rounding to float32 stand for the fused multiply-add that the compiled kernel uses.
    """
    half = (scaled.nan_to_num(-1.0, posinf=1.0, neginf=-1.0).clamp(-1, 1) + 1) * 0.5
    return (half.double() * STEPS + 0.5).float().long()
