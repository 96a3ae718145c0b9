"""The 16 levels of a 4-bit code, and where they come from: normal quantiles, floats, even steps, least squares.

A code is a table of at most 16 values in [-1, 1]; a stored index is a place in the table. The two codes that
bitsandbytes can store, ``nf4`` and ``fp4``, stand here in its order (`bitsandbytes.functional.get_4bit_type`), so that
indices are comparable; FP4's is the order of its bit patterns, not of its values. Introduced in lesson 03.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.theory import normal_blocks

CODES = ("nf4", "fp4", "int4", "uniform", "af4", "lloyd")
OFFSET = 0.9677083  # bitsandbytes' default, 1 - (1/30 + 1/32) / 2: the outermost quantile that still is finite
AT_ONCE = 2**18  # weights at a time: what is made of them on the way stays in a core's cache
FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # sign bit 0, then 2 exponent bits and 1 mantissa bit

# bitsandbytes.functional.get_4bit_type("af4"), made for blocks of 64; it names arXiv 2306.06965 as the source.
AF4 = (
    *(-1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0),
    *(0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0),
)

Code = str | Tensor | Sequence[float]


def levels(code: Code, block_size: int = 64) -> Tensor:
    """The table of ``code`` in the order of its indices: float32, at most 16 values in [-1, 1].

    ``nf4`` and ``fp4`` are bitsandbytes'; ``int4`` is -7..7 over 7 (15 levels: symmetric, with a zero); ``uniform`` is
    16 even steps from -1 to 1 (no zero); ``af4`` is bitsandbytes' table for blocks of 64, used for every block size;
    ``lloyd`` is computed for N(0, 1) in blocks of ``block_size`` (`normal_blocks.lloyd_levels`). A tensor or sequence
    is a code of your own.

    Raises:
        LabError: an unknown name, no or more than 16 levels, or a level that is not a number in [-1, 1].
    """
    if not isinstance(code, str):
        return _own(code)
    if code not in CODES:
        raise LabError(f"code={code!r}", f"a code is one of {', '.join(CODES)}, or a list of levels", "use code='nf4'")
    if code == "lloyd":
        return normal_blocks.lloyd_levels(block_size).float()
    return _fixed(code).clone()


def normal_map(offset: float = OFFSET) -> Tensor:
    """The generator in use: 8 positive quantiles of N(0, 1), 7 negative ones and zero, over the largest; float32 (16,).

    Probabilities run evenly from ``offset`` down to 1/2, in 8 steps on the positive side and 7 on the negative one
    (`bitsandbytes.functional.create_normal_map`).

    Raises:
        LabError: an offset outside (1/2, 1): at 1 the quantile is infinite.
    """
    if not 0.5 < offset < 1:
        raise LabError(f"offset={offset}", "the outermost probability is between 1/2 and 1", f"try {OFFSET}")
    positive = [_quantile(p) for p in torch.linspace(offset, 0.5, 9)[:-1].tolist()]
    negative = [-_quantile(p) for p in torch.linspace(offset, 0.5, 8)[:-1].tolist()]
    table = torch.tensor(sorted([*negative, 0.0, *positive]))
    return table / table.max()


def equation_4(k: int = 4) -> Tensor:
    """Equation 4 of the QLoRA paper, as printed, over the largest finite value: float32, 2**k - 1 values.

    ``q_i = (Q(i / (2**k + 1)) + Q((i + 1) / (2**k + 1))) / 2`` with Q the quantile function of N(0, 1). For i = 0 and
    i = 2**k one of the two quantiles is infinite; what is left, i = 1 .. 2**k - 1, is symmetric and has a zero.

    Raises:
        LabError: k below 1.
    """
    if k < 1:
        raise LabError(f"k={k}", "a code has at least one bit", "try k=4")
    n = 2**k + 1
    q = torch.tensor([(_quantile(i / n) + _quantile((i + 1) / n)) / 2 for i in range(1, n - 1)], dtype=torch.float64)
    return ((q - q.flip(0)) / 2 / q.max()).float()  # antisymmetric by construction; the average removes rounding


@functools.cache
def dynamic_map() -> Tensor:
    """The 256 levels of the signed 8-bit dynamic data type, ascending, float32: what double quantization stores.

    Seven decades, each divided evenly, the topmost into 64 parts per sign and every lower one into half as many
    (Dettmers et al. 2022, arXiv 2110.02861; `bitsandbytes.functional.create_dynamic_map`). Do not change it in place.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        scaled = (10.0 ** (decade - 6) * middles).tolist()
        values += scaled + [-value for value in scaled]
    return torch.tensor(sorted(values))


def count_below(values: Tensor, bounds: Tensor) -> Tensor:
    """How many of the bounds lie below each value: uint8, the shape of ``values``, which is flat.

    Fifteen comparisons of all values take half as long as a binary search for each, which guesses at every branch.
    """
    counts = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
    for some, count in zip(values.split(AT_ONCE), counts.split(AT_ONCE), strict=True):
        for bound in bounds.tolist():
            count += some > bound
    return counts


def look_up(indices: Tensor, table: Tensor) -> Tensor:
    """The level of each index: ``table[indices]`` for flat uint8 indices, float32, two at a time.

    What takes the time is the look-up, whether it fetches one level or two. An index that the table lacks gives NaN, or
    an IndexError where it is 16 or more.
    """
    even = indices.contiguous()
    if len(even) % 2 or even.storage_offset() % 2:  # two bytes read as one number begin at an even place
        even = torch.nn.functional.pad(even, (0, len(even) % 2))
    pairs = _pairs(tuple(table.tolist())).to(indices.device)
    return pairs.index_select(0, even.view(torch.int16).int()).view(torch.float32)[: len(indices)]


@functools.lru_cache(maxsize=32)
def _pairs(levels: tuple[float, ...]) -> Tensor:
    """Two levels in 8 bytes, at ``second * 256 + first`` of their indices: how two bytes read as one number."""
    table, pairs = torch.tensor(levels), torch.full((16, 256, 2), math.nan, dtype=torch.float32)
    pairs[: len(table), : len(table), 0] = table
    pairs[: len(table), : len(table), 1] = table[:, None]
    return pairs.view(torch.int64).flatten()


def normal_error(code: Code, block_size: int = 64, *, power: int = 2) -> float:
    """Exact mean squared (power 2) or absolute (power 1) error of ``code`` on N(0, 1) weights, in weight units.

    Example:
        >>> round(normal_error("nf4", 64), 5)
        0.00846

    Raises:
        LabError: see `levels` and `normal_blocks.expected_error`.
    """
    return normal_blocks.expected_error(levels(code, block_size), block_size, power=power)


def normal_usage(code: Code, block_size: int = 64) -> Tensor:
    """Share of N(0, 1) weights that each level gets, ascending order of levels, float64.

    Raises:
        LabError: see `levels` and `normal_blocks.expected_error`.
    """
    return normal_blocks.expected_usage(levels(code, block_size), block_size)


def entropy_bits(shares: Tensor) -> float:
    """Shannon entropy of ``shares`` (non-negative, summing to 1) in bits; at most log2 of their number."""
    used = shares[shares > 0].double()
    return float(-(used * used.log2()).sum())


def _quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


@functools.cache
def _fixed(code: str) -> Tensor:
    if code == "nf4":
        return normal_map()
    if code == "fp4":
        half = torch.tensor(FP4_TWELFTHS) / 12
        return torch.cat([half, -half])
    if code == "int4":
        return torch.arange(-7, 8) / 7
    return torch.linspace(-1, 1, 16) if code == "uniform" else torch.tensor(AF4)


def _own(code: Tensor | Sequence[float]) -> Tensor:
    try:
        table = torch.as_tensor(code, dtype=torch.float32).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise LabError(f"code={code!r}", "a code of your own is a list of numbers", "give 16 values") from error
    if not 1 <= table.numel() <= 16:
        raise LabError(f"{table.numel()} levels", "four bits tell 16 levels apart", "give 1 to 16 values")
    if not bool((table.abs() <= 1).all()):  # also refuses NaN
        raise LabError(f"code={table.tolist()}", "levels lie between -1 and 1", "divide them by the largest magnitude")
    return table.clone()
