"""Lesson 06: what the exercises accept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from labkit.models.shapes import shape_of
from labkit.page.exercises import NotAttempted, Wrong, attempted, must_be_function, question
from labkit.page.questions.q00 import close
from labkit.page.questions.tensors import judge_tensor
from labkit.page.questions.written import explanation

if TYPE_CHECKING:
    import torch

# --- q6_1 ------------------------------------------------------------------------------------------------------------

# (leading sizes of x, in, out, r, scale); the square one comes first, because the wrong axis runs there
FORWARD_CASES = (((4,), 5, 5, 2, 2.0), ((), 3, 6, 1, 0.5), ((2, 3), 7, 4, 3, 4.0))


def forward_case(place: int) -> tuple[torch.Tensor, ...]:
    """x, W0, A, B, m of a case: random, the same every time; m is not the norm of anything."""
    import torch

    leading, d_in, d_out, rank, _ = FORWARD_CASES[place]
    generator = torch.Generator().manual_seed(10 + place)
    sizes = ((*leading, d_in), (d_out, d_in), (rank, d_in), (d_out, rank))
    drawn = tuple(torch.randn(size, generator=generator) for size in sizes)
    return *drawn, 0.5 + torch.rand(d_out, generator=generator)


def outputs(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, m: torch.Tensor, scale: float) -> dict:
    """The right output and what recognised mistakes give; those of a wrong axis only where they run at all."""
    v = w + scale * b @ a  # (out, in)
    by_row = v.norm(dim=1)  # (out,)
    found = {
        "right": x @ v.T * (m / by_row),
        "no norm": x @ v.T * m,
        "norm of W0": x @ v.T * (m / w.norm(dim=1)),
        "whole norm": x @ v.T * (m / v.norm()),
        "squared norm": x @ v.T * (m / by_row**2),
        "no magnitude": x @ v.T / by_row,
        "upside down": x @ v.T * (by_row / m),
        "no scale": x @ (w + b @ a).T * (m / (w + b @ a).norm(dim=1)),
        "update only": x @ w.T + scale * (x @ a.T @ b.T) * (m / by_row),
        "base only": x @ w.T * (m / by_row) + scale * (x @ a.T @ b.T),
        "lora": x @ v.T,
    }
    if w.shape[0] == w.shape[1]:
        by_column = v.norm(dim=0)
        found |= {
            "columns": x @ (v * (m / by_column)).T,
            "columns on rows": x @ v.T * (m / by_column),
            "rows on columns": x @ (v * (m / by_row)).T,
        }
    return found


FORWARD_REASONS = {
    "columns": ("that scales the columns of W': a magnitude for each input. The layer is square, so nothing complained; m has one number for each output, that is, for each row",
                "这里缩放的是 W' 的列，也就是每个输入一个幅度。这一层是方阵，所以没有报错；m 的每个数对应一个输出，也就是一行"),
    "columns on rows": ("the norms are those of the columns (dim=0) but they scale the rows; take the norm of each row, dim=1",
                        "范数按列取了（dim=0），却用来缩放行；应当对每一行取范数，dim=1"),
    "rows on columns": ("the norms are right, but m / norm multiplies along the columns: write (m / norm)[:, None] * V, or scale the output",
                        "范数对了，但 m / norm 乘到了列上：写成 (m / norm)[:, None] * V，或者直接缩放输出"),
    "no norm": ("the division by the norm of V is missing", "漏掉了除以 V 的范数"),
    "norm of W0": ("the norm is that of W0; it must be that of V = W0 + scale B A, which moves", "这里用的是 W0 的范数；应当是 V = W0 + scale B A 的范数，它会随训练变化"),
    "whole norm": ("that is one norm of the whole matrix; every row has its own", "这是整个矩阵的一个范数；每一行有自己的范数"),
    "squared norm": ("that divides by the squared norm", "这里除以了范数的平方"),
    "no magnitude": ("the magnitude m is missing", "漏掉了幅度 m"),
    "upside down": ("the factor is m / norm; you have norm / m", "系数是 m / 范数；你写成了 范数 / m"),
    "no scale": ("B A is to be multiplied by scale", "B A 要乘以 scale"),
    "update only": ("m / norm multiplies the whole of V, not only the update", "m / 范数要乘整个 V，而不只是更新量"),
    "base only": ("m / norm multiplies the whole of V, not only W0", "m / 范数要乘整个 V，而不只是 W0"),
    "lora": ("that is LoRA: neither a norm nor a magnitude", "这是 LoRA：既没有范数，也没有幅度"),
}  # fmt: skip


@question("q6_1")
def dora_forward(value: Any) -> str:
    """A function (x, W0, A, B, m, scale) -> x times the transpose of m V / |V|, for any leading sizes of x."""
    must_be_function(value, "dora_forward")
    for place, (leading, d_in, d_out, rank, scale) in enumerate(FORWARD_CASES):
        tensors = forward_case(place)
        case = f"x {(*leading, d_in)}, W0 {(d_out, d_in)}, r={rank}, scale={scale:g}"
        result = _called(value, tensors, scale, case)
        if result is None or result is ...:
            raise NotAttempted
        judge_tensor(result, outputs(*tensors, scale), case=case, reasons=FORWARD_REASONS, formula="x (m V / |V|)ᵀ")
    return f"right on {len(FORWARD_CASES)} cases"


def _called(value: Callable, tensors: tuple, scale: float, case: str) -> Any:
    """The student's result; a shape that does not fit where the square layer's did is the wrong axis."""
    try:
        return value(*(tensor.clone() for tensor in tensors), scale)
    except RuntimeError as error:
        if "must match the size" not in str(error) and "shapes cannot be multiplied" not in str(error):
            raise
        raise Wrong(
            f"{case}: the sizes do not fit ({error}). A magnitude belongs to an output: take the norm of each row, dim=1",
            f"{case}：形状对不上（{error}）。每个幅度对应一个输出：对每一行取范数，dim=1",
        ) from error


# --- q6_2 ------------------------------------------------------------------------------------------------------------

IDENTITY_MODEL, IDENTITY_LINEAR = "qwen3-8b", "down_proj"


@question("q6_2")
def identity_mb(value: Any) -> None:
    """MB of the identity matrix that PEFT makes for DoRA on down_proj of Qwen3-8B, in float32."""
    number = attempted(value)
    d_in, d_out = shape_of(IDENTITY_MODEL).linears()[IDENTITY_LINEAR]
    if close(number, 4 * d_in**2 / 1e6, tolerance=0.01):
        return
    reasons = (
        (4 * d_out**2, "that is out x out; the identity goes into A, which takes in numbers", "这是 out × out；单位矩阵要送进 A，A 的输入是 in 个数"),
        (4 * d_in * d_out, "that is the size of the weight; the identity is in x in", "这是权重的大小；单位矩阵是 in × in"),
        (2 * d_in**2, "that is 2 bytes a number; adapters, and their identity, are float32", "这是每个数 2 字节；适配器和它的单位矩阵都是 fp32"),
        (d_in**2, "that is millions of numbers; each takes 4 bytes", "这是以百万计的个数；每个占 4 字节"),
        (4 * d_in, "that is a vector of ones; the identity is a square matrix", "这是一个向量；单位矩阵是方阵"),
        (4e6 * d_in**2, "that is bytes; MB are asked for", "这是字节数；题目要 MB"),
        (4e6 * d_in**2 / 2**20, "that is MiB (2**20 bytes); a MB is 1e6 bytes", "这是 MiB（2**20 字节）；MB 是 1e6 字节"),
    )  # fmt: skip
    for wrong, en, zh in reasons:
        if close(number, wrong / 1e6, tolerance=0.01):
            raise Wrong(en, zh)
    raise Wrong(f"{number} MB is not in x in x 4 bytes / 1e6", f"{number} MB 不等于 in × in × 4 字节 / 1e6")


# --- q6_3 ------------------------------------------------------------------------------------------------------------

QUESTIONS, LORA_SHARE, DORA_SHARE = 1319, 0.478, 0.469  # PEFT's benchmark: GSM8K's test set, LoRA, DoRA
Z = 1.96


def _half_width(p: float) -> float:
    return 100 * Z * math.sqrt(p * (1 - p) / QUESTIONS)


@question("q6_3")
def noise_points(value: Any) -> None:
    """Half the 95 % interval of the difference of two shares of 1,319 answers, in points: 3.81."""
    number = attempted(value)
    one, two = _half_width(LORA_SHARE), _half_width(DORA_SHARE)
    wanted = math.hypot(one, two)
    if close(number, wanted, tolerance=0.03):
        return
    reasons = (
        (wanted / 100, "that is a share; points are per cent", "这是比例；题目要百分点"),
        (wanted / Z, "that is one standard error of the difference; 95 % takes 1.96 of them", "这是差值的一个标准误；95% 要乘以 1.96"),
        ((one + two) / 2, "that is the interval of one share; a difference has the noise of both: the variances add", "这是单个比例的区间；差值带有两边的噪声：方差相加"),
        (one + two, "the half widths do not add; the variances do, so take the root of the sum of squares", "半宽不能直接相加；相加的是方差，所以取平方和的根"),
        (one / Z, "that is one standard error of one share; a difference has the noise of both, and 95 % takes 1.96", "这是单个比例的一个标准误；差值带有两边的噪声，而且 95% 要乘以 1.96"),
        (100 * (LORA_SHARE - DORA_SHARE), "that is the difference itself; how large is its noise?", "这是差值本身；它的噪声有多大？"),
    )  # fmt: skip
    for wrong, en, zh in reasons:
        if close(number, wrong, tolerance=0.03):
            raise Wrong(en, zh)
    raise Wrong(
        f"{number} is not 1.96 x the root of the two variances p (1 - p) / 1319, in points",
        f"{number} 不等于 1.96 × 两个方差 p (1 − p) / 1319 之和的平方根（百分点）",
    )


# --- q6_4 ------------------------------------------------------------------------------------------------------------

# Losses by seed of the two methods, and what follows at 95 %; the same place is the same seed.
DECISIONS = (
    ((2.31, 2.18, 2.45, 2.25), (2.27, 2.14, 2.42, 2.20), "DoRA"),  # every seed agrees; the seeds differ far more
    ((2.30, 2.35, 2.28), (2.33, 2.24, 2.36), "noise"),
    ((1.90, 1.93, 1.91, 1.92, 1.89), (1.95, 1.99, 1.97, 1.96, 1.95), "LoRA"),
    ((2.40,), (2.10,), "noise"),  # one seed
    ((2.30, 2.31), (2.28, 2.30), "noise"),  # two seeds: t is 12.7
    ((2.0, 2.4, 2.2), (1.999, 2.3988, 2.1991), "DoRA"),  # small and sure: about 0.001 in every seed
)
CHOICES = ("LoRA", "DoRA", "noise")


@question("q6_4")
def decision(value: Any) -> str:
    """A function (lora, dora) of losses by seed -> "LoRA", "DoRA" or "noise", by a paired t interval at 95 %."""
    must_be_function(value, "decide")
    said = []
    for lora, dora, _ in DECISIONS:
        result = value(list(lora), list(dora))
        if result is None or result is ...:
            raise NotAttempted
        if result not in CHOICES:
            raise Wrong(
                f'decide returned {result!r}; it should return "LoRA", "DoRA" or "noise"',
                f'decide 返回了 {result!r}；应当返回 "LoRA"、"DoRA" 或 "noise"',
            )
        said.append(result)
    _explain_decisions(said)
    return f"right on {len(DECISIONS)} cases"


def _explain_decisions(said: Sequence[str]) -> None:
    wrong = [place for place, case in enumerate(DECISIONS) if said[place] != case[2]]
    if not wrong:
        return
    lora, dora, right = DECISIONS[wrong[0]]
    en, zh = _why(said, wrong)
    shown = f"decide({list(lora)}, {list(dora)})"
    raise Wrong(f"{shown} should be {right}: {en}", f"{shown} 应为 {right}：{zh}")


def _why(said: Sequence[str], wrong: Sequence[int]) -> tuple[str, str]:
    opposite = {"LoRA": "DoRA", "DoRA": "LoRA", "noise": "noise"}
    if all(answer == opposite[case[2]] for answer, case in zip(said, DECISIONS, strict=True)):
        return "the names are swapped: the lower loss is the better", "名字写反了：损失低的更好"
    if "noise" not in said:
        return (
            "a method wins in every case: compare the difference with its interval",
            "每次都判出了胜者：请把差值和它的区间作比较",
        )
    if said[0] == "noise":
        return (
            "the seeds differ more than the methods, but within each seed DoRA is lower by about 0.04: take the "
            "differences seed by seed first, then the interval of their mean",
            "种子之间的差别比方法之间还大，但在每个种子内 DoRA 都低约 0.04：先逐个种子求差，再求差值均值的区间",
        )
    if 3 in wrong:
        return "one seed has no interval: nothing can be said", "只有一个种子就没有区间：什么也不能说"
    if 4 in wrong:
        return (
            "with two seeds Student's t is 12.7, not 1.96: the interval of [-0.02, -0.01] spans zero",
            "两个种子时 t 值是 12.7，而不是 1.96：差值 [-0.02, -0.01] 的区间跨过零",
        )
    if 1 in wrong:
        return "the differences have both signs, and their interval spans zero", "差值有正有负，区间跨过零"
    return "build the t interval of the differences, and see whether it spans zero", "求差值的 t 区间，看它是否跨过零"


# --- q6_5 ------------------------------------------------------------------------------------------------------------


@question("q6_5", written=True)
def verdict(value: Any) -> None:
    """Three sentences on whether to use DoRA, with numbers; a person marks what they say."""
    explanation(value)
