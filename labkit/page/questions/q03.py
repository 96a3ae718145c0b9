"""Lesson 03: what the exercises accept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from labkit.models.shapes import shape_of
from labkit.page.exercises import NotAttempted, Wrong, attempted, must_be_function, question
from labkit.page.questions.q00 import close
from labkit.page.questions.q03_samples import pruned_weights
from labkit.page.questions.written import explanation

# --- q3_1 ------------------------------------------------------------------------------------------------------------

NF4_FIRST_UP, NF4_FIRST_DOWN = 0.07958029955625534, -0.09105003625154495
UNEVEN = (-1.0, -0.5, -0.125, 0.0, 0.25, 0.75, 1.0)  # a table that is not NF4's: the function must read its argument
BLOCKS = (  # (block, table; None means NF4's): the ties are exact in float32
    ((1.2, -2.0, 0.0, 0.3), None),  # a zero, and a largest magnitude that is negative
    ((NF4_FIRST_UP, 2.0, NF4_FIRST_DOWN, 0.0), None),  # two ties: half of the first level up, and of the first down
    ((0.0, 0.0, 0.0), None),  # a block of zeros
    ((-4.0, 3.9, 1.1, -0.2, 0.3, -1.0), None),
    ((0.5, 2.0, -1.5, 0.25, 1.0), UNEVEN),  # ties between 0 and 0.25, -1 and -0.5, 0.25 and 0.75
)


def nf4_levels() -> list[float]:
    """NF4's 16 levels, ascending."""
    from labkit.theory.codes import levels

    return levels("nf4").tolist()


def nearest_lower(block: Sequence[float], table: Sequence[float]) -> tuple[list[int], float]:
    """The reference: absmax, the nearest level, the lower one at a tie."""
    places = [min(range(len(table)), key=lambda i: abs(x - table[i])) for x in _scaled(block)]
    return places, max(map(abs, block))


def _with_scale(scale: Callable[[Sequence[float]], float]) -> Callable[..., tuple[list[int], float]]:
    def quantized(block: Sequence[float], table: Sequence[float]) -> tuple[list[int], float]:
        size = scale(block) or 1.0
        return [min(range(len(table)), key=lambda i: abs(x / size - table[i])) for x in block], scale(block)

    return quantized


def _scaled(block: Sequence[float]) -> list[float]:
    absmax = max(map(abs, block)) or 1.0
    return [x / absmax for x in block]


def _upper(block: Sequence[float], table: Sequence[float]) -> tuple[list[int], float]:
    places = [max(range(len(table)), key=lambda i: (-abs(x - table[i]), i)) for x in _scaled(block)]
    return places, max(map(abs, block))


def _below(block: Sequence[float], table: Sequence[float]) -> tuple[list[int], float]:
    return [max(i for i, q in enumerate(table) if q <= x) for x in _scaled(block)], max(map(abs, block))


def _above(block: Sequence[float], table: Sequence[float]) -> tuple[list[int], float]:
    return [min(i for i, q in enumerate(table) if q >= x) for x in _scaled(block)], max(map(abs, block))


MISTAKES = (
    (_with_scale(max), "that divides by the largest value; the largest *magnitude* is meant, abs first", "这里除的是最大值；应当除以最大的*绝对值*，先取 abs"),
    (_with_scale(lambda block: 1.0), "the block is not divided by its absmax", "没有先除以块的 absmax"),
    (_upper, "at a tie bitsandbytes takes the lower level, you take the upper one", "恰好在两个量化级正中间时，bitsandbytes 取较低的一个，你取了较高的"),
    (_below, "that is the level below the value, not the nearest one: an edge lies halfway between two levels", "这是不大于该值的量化级，不是最近的量化级：分界点在两个量化级的正中间"),
    (_above, "that is the level above the value, not the nearest one: an edge lies halfway between two levels", "这是不小于该值的量化级，不是最近的量化级：分界点在两个量化级的正中间"),
)  # fmt: skip


@question("q3_1")
def nf4_quantize(value: Any) -> list[list[int]]:
    """A function (block, table) -> (indices, absmax)."""
    must_be_function(value, "nf4_quantize")
    import torch

    kept = []
    for block, table in BLOCKS:
        table = nf4_levels() if table is None else list(table)
        try:
            result = value(torch.tensor(block), torch.tensor(table))
        except ZeroDivisionError:
            raise _zero_block() from None
        if result is None or result is ...:
            raise NotAttempted
        indices, absmax = _pair(result)
        _explain_indices(block, table, indices, absmax)
        kept.append(indices)
    return kept


def _zero_block() -> Wrong:
    return Wrong(
        "a block of zeros has absmax 0, and that cannot divide: every index is the one of level 0",
        "全零的块 absmax 是 0，不能做除数：每个下标都应是量化级 0 的下标",
    )


def _pair(result: Any) -> tuple[list[float], float]:
    try:
        indices, absmax = result
        numbers = indices.tolist() if hasattr(indices, "tolist") else list(indices)
        return [float(number) for number in numbers], float(absmax)
    except (TypeError, ValueError):
        raise Wrong(
            "two things are asked for: the indices and the absmax, as return indices, absmax",
            "要返回两样东西：下标和 absmax，写成 return indices, absmax",
        ) from None


def _explain_indices(block: Sequence[float], table: list[float], indices: list[float], absmax: float) -> None:
    wanted, scale = nearest_lower(block, table)
    if indices == wanted and close(absmax, scale, tolerance=1e-6):
        return
    if not any(block):
        raise _zero_block()
    if len(indices) == len(block) and all(number in table for number in indices) and max(map(abs, indices)) <= 1:
        raise Wrong(
            "those are levels; their places in the table are asked for", "这些是量化级本身；要的是它们在表中的下标"
        )
    for mistake, en, zh in MISTAKES:
        if indices == mistake(block, table)[0] != wanted:
            raise Wrong(en, zh)
    if indices == wanted:
        raise Wrong(
            f"the indices are right, the absmax is {scale:g} and not {absmax:g}",
            f"下标都对，但 absmax 应为 {scale:g}，不是 {absmax:g}",
        )
    shown = [int(number) if number.is_integer() else number for number in indices if math.isfinite(number)]
    raise Wrong(
        f"for the block {list(block)} the indices are {wanted}, yours are {shown}",
        f"块 {list(block)} 的下标应为 {wanted}，你的是 {shown}",
    )


# --- q3_2 ------------------------------------------------------------------------------------------------------------

BITS_CASES = ((64, False), (64, True), (32, False), (128, True), (4096, True), (48, False))


@question("q3_2")
def bits(value: Any) -> list[float]:
    """A function (block_size, double_quant) -> bits per weight of a very large tensor."""
    must_be_function(value, "bits")
    from labkit.theory.nf4 import bits_per_weight

    results = [value(size, double) for size, double in BITS_CASES]
    if any(result is None or result is ... for result in results):
        raise NotAttempted
    for (size, double), result in zip(BITS_CASES, results, strict=True):
        wanted = bits_per_weight(size, double_quant=double)
        if not close(result, wanted, tolerance=1e-6):
            raise Wrong(*_why_bits_are_wrong(size, double, result, wanted, results))
    return [float(result) for result in results]


def _why_bits_are_wrong(size: int, double: bool, result: Any, wanted: float, results: list) -> tuple[str, str]:
    constants = (8 + 32 / 256 if double else 32) / size
    reasons = [
        (4.0, "4 bits are the indices alone; every block also stores its absmax", "4 比特只是下标；每个块还要存自己的 absmax"),
        (4 + constants / 8, "that adds bytes to bits: a float32 has 32 bits", "字节和比特混在一起了：一个 float32 是 32 比特"),
        (wanted / 8, "that is bytes per weight; bits are asked for", "这是每个权重的字节数；题目要比特"),
    ]  # fmt: skip
    if double:
        reasons += [
            (4 + 8 / size, "the second-level constants are missing: one float32 for 256 blocks", "漏了第二级常数：每 256 个块一个 float32"),
            (4 + 8 / size + 32 / 256, "a second-level constant serves 256 *blocks*, not 256 weights", "一个第二级常数管 256 个*块*，不是 256 个权重"),
            (4 + 32 / size, "double_quant is ignored: the constants themselves become 8-bit", "没有用到 double_quant：常数本身也变成 8 比特了"),
        ]  # fmt: skip
    else:
        reasons += [
            (4 + 16 / size, "that is a 16-bit absmax; bitsandbytes stores it as float32", "这是 16 比特的 absmax；bitsandbytes 存的是 float32"),
            (4 + (8 + 32 / 256) / size, "that is with double quantization", "这是有双重量化的结果"),
        ]  # fmt: skip
    if len({str(number) for number in results}) == 1 and close(result, 4.5):
        return "4.5 is right for blocks of 64 only: use block_size", "4.5 只对大小为 64 的块成立：要用到 block_size"
    for number, en, zh in reasons:
        if close(result, number, tolerance=1e-6):
            return en, zh
    call = f"bits({size}, {double})"
    return f"{call} gives {result}, should be {wanted:.6g}", f"{call} 得到 {result}，应为 {wanted:.6g}"


# --- q3_3 ------------------------------------------------------------------------------------------------------------

MODEL = "qwen3-8b"


def nf4_gb(name: str = MODEL, *, double: bool = True) -> float:
    """GB of a model whose decoder linears are in NF4 blocks of 64, the rest in bfloat16, as bitsandbytes stores it."""
    from labkit.models.methods import Method
    from labkit.theory.resident import quantization_bytes

    shape = shape_of(name)
    packed = shape.linear_params() // 2 + quantization_bytes(shape, Method(kind="qlora", double_quant=double))
    return (packed + 2 * (shape.n_params - shape.linear_params())) / 1e9


@question("q3_3")
def suffering_and_gb(value: Any) -> None:
    """("A" or "B", GB): which layer loses more, and what the model takes in NF4, within 2 %."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Wrong('a pair is asked for, e.g. ("A", 12.3)', '这里要一对值，例如 ("A", 12.3)')
    layer, gb = attempted(value)
    if layer not in ("A", "B"):
        raise Wrong('the first is "A" or "B"', '第一个值是 "A" 或 "B"')
    if layer == "B":
        raise Wrong(
            "no block of B mixes rows (256 is a multiple of 64), so each has an absmax of its own size; in A one weight "
            "in each block sets the scale for 63 others",
            "B 的块不跨行（256 是 64 的倍数），每块的 absmax 与自己的大小相称；A 的每个块里，一个大权重决定了其余 63 个的刻度",
        )
    if not close(gb, nf4_gb(), tolerance=0.02):
        raise Wrong(*_why_gb_is_wrong(gb))


def _why_gb_is_wrong(gb: Any) -> tuple[str, str]:
    shape, linears = shape_of(MODEL), shape_of(MODEL).linear_params()
    rest = shape.n_params - linears
    bits = 4.126953125
    reasons = [
        (bits / 8 * shape.n_params / 1e9, "that puts the embedding and the LM head in 4 bits too; they stay in bfloat16", "这是把嵌入和 LM head 也按 4 比特算了；它们仍是 bfloat16"),
        (shape.n_params / 2e9, "that is 4 bits for every parameter: embedding and LM head stay 16-bit, and blocks store constants", "这是每个参数 4 比特：嵌入和 LM head 仍是 16 比特，块还要存常数"),
        (5.0, "5 GB is the lecture's figure; 5,048 MB is the QLoRA paper's LLaMA-7B, with a vocabulary of 32,000", "5 GB 是讲义的数字；5,048 MB 出自 QLoRA 论文的 LLaMA-7B，它的词表只有 32,000"),
        (nf4_gb(double=False), "that is without double quantization", "这是没有双重量化的结果"),
        (bits / 8 * linears / 1e9, "that is the linears alone", "这只是线性层"),
        ((bits / 8 * linears + 4 * rest) / 1e9, "that has the rest in float32, as after k-bit preparation; here it is bfloat16", "这是把其余部分按 float32 算（k-bit 准备之后）；这里是 bfloat16"),
        (2 * shape.n_params / 1e9, "that is bfloat16 throughout", "这是全部 bfloat16"),
        (nf4_gb() * 1e9 / 2**30, "that is GiB; GB are asked for", "这是 GiB；题目要 GB"),
        (nf4_gb() * 1e9, "that is bytes; GB are asked for", "这是字节数；题目要 GB"),
    ]  # fmt: skip
    for number, en, zh in reasons:
        if close(gb, number, tolerance=0.015):
            return en, zh
    return (
        f"{gb} GB is not it: linears at {bits:.3f} bits, everything else at 16",
        f"{gb} GB 不对：线性层按 {bits:.3f} 比特，其余按 16 比特",
    )


# --- q3_4 ------------------------------------------------------------------------------------------------------------

MOST = 0.5  # of NF4's squared error: the code may have this much
DEMANDED = (-1.0, 0.0, 1.0)


def code_error(levels: Any) -> float:
    """Mean squared error of `pruned_weights` in blocks of 64 under ``levels``.

    Raises:
        LabError: more than 16 levels, or one outside [-1, 1].
    """
    from labkit.theory.nf4 import dequantize, quantize

    weights = pruned_weights()
    return float((dequantize(quantize(weights, code=levels)) - weights).square().mean())


@question("q3_4")
def better_code(value: Any) -> dict[str, Any]:
    """16 different levels in [-1, 1], -1, 0 and 1 among them, and at most half of NF4's squared error."""
    levels = _as_levels(value)
    if len(set(levels)) != 16:
        raise Wrong(
            f"16 different levels are asked for; I count {len(set(levels))}",
            f"要 16 个不同的量化级；现在有 {len(set(levels))} 个",
        )
    if max(map(abs, levels)) > 1:
        raise Wrong(
            "levels are divided by the block's absmax: all lie between -1 and 1",
            "量化级是除以块的 absmax 之后的值：都在 -1 和 1 之间",
        )
    if missing := [number for number in DEMANDED if number not in levels]:
        raise Wrong(
            f"{missing[0]:g} must be one of the levels, exactly: zeros stay zeros, and the absmax is kept",
            f"{missing[0]:g} 必须恰好是其中一个量化级：零保持为零，absmax 原样保留",
        )
    mine, nf4 = code_error(levels), code_error("nf4")
    if all(abs(a - b) < 1e-4 for a, b in zip(sorted(levels), nf4_levels(), strict=True)):
        raise Wrong("that is NF4 itself", "这就是 NF4 本身")
    if mine > MOST * nf4:
        raise Wrong(
            f"its squared error is {mine / nf4:.1%} of NF4's; at most {MOST:.0%} is asked",
            f"它的平方误差是 NF4 的 {mine / nf4:.1%}；要求不超过 {MOST:.0%}",
        )
    return {"levels": levels, "error": mine, "nf4_error": nf4}


def _as_levels(value: Any) -> list[float]:
    numbers = value.tolist() if hasattr(value, "tolist") else value
    try:
        levels = [float(number) for number in attempted(list(numbers))]
    except (TypeError, ValueError):
        raise Wrong("a list of 16 numbers is asked for", "这里要一个由 16 个数组成的列表") from None
    if not all(math.isfinite(number) for number in levels):
        raise Wrong("a level is a finite number", "量化级必须是有限的数")
    return levels


# --- q3_5 -------------------------------------------------------------------------------------------------------------

question("q3_5", written=True)(explanation)
