"""Lesson 02: what the exercises accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labkit.models.methods import TARGETS
from labkit.models.shapes import ModelShape, shape_of
from labkit.page.exercises import NotAttempted, Wrong, attempted, must_be_function, question
from labkit.page.questions.q00 import close
from labkit.page.questions.tensors import judge_tensor
from labkit.page.questions.written import explanation

if TYPE_CHECKING:
    import torch

# --- q2_1 ------------------------------------------------------------------------------------------------------------

ATTENTION = TARGETS[:4]
COUNT_CASES = (
    ("qwen3-4b", 8, TARGETS),  # q_proj is not square
    ("qwen3-0.6b", 1, ("q_proj",)),
    ("smollm2-135m", 4, ("k_proj", "down_proj")),
    ("llama-3.1-8b", 16, TARGETS),
    ("qwen3-32b", 64, ATTENTION),
)


def counts(shape: ModelShape, rank: int, targets: tuple[str, ...]) -> dict[str, int]:
    """The right count, and what recognised mistakes give."""
    sizes = shape.linears()

    def total(of_layer: Any, names: tuple[str, ...] = targets) -> int:
        return rank * shape.n_layers * sum(of_layer(*sizes[name]) for name in names)

    return {
        "right": total(lambda d_in, d_out: d_in + d_out),
        "one layer": total(lambda d_in, d_out: d_in + d_out) // shape.n_layers,
        "square": total(lambda d_in, d_out: 2 * shape.hidden_size),
        "twice in": total(lambda d_in, d_out: 2 * d_in),
        "twice out": total(lambda d_in, d_out: 2 * d_out),
        "no B": total(lambda d_in, d_out: d_in),
        "no A": total(lambda d_in, d_out: d_out),
        "product": total(lambda d_in, d_out: d_in * d_out),
        "attention": total(lambda d_in, d_out: d_in + d_out, ATTENTION),
        "everything": total(lambda d_in, d_out: d_in + d_out, TARGETS),
    }


COUNT_REASONS = {
    "one layer": ("that is one layer; multiply by n_layers", "这只是一层；还要乘以 n_layers"),
    "square": ("that takes every linear as hidden x hidden; use the sizes in shape.linears()",
               "这里把每个线性层都当成 hidden × hidden 的方阵；请用 shape.linears() 里的尺寸"),
    "twice in": ("that takes out = in: B has out x r numbers, and out differs from in",
                 "这里把输出维当成了输入维：B 有 out × r 个数，而 out 不等于 in"),
    "twice out": ("that takes in = out: A has r x in numbers, and in differs from out",
                  "这里把输入维当成了输出维：A 有 r × in 个数，而 in 不等于 out"),
    "no B": ("B is missing: out x r numbers", "漏掉了 B：out × r 个数"),
    "no A": ("A is missing: r x in numbers", "漏掉了 A：r × in 个数"),
    "product": ("in x out are the frozen weight's numbers; A and B have r x in and out x r",
                "in × out 是冻结权重的元素个数；A 和 B 分别有 r × in 和 out × r 个数"),
    "attention": ("that adapts q, k, v and o whatever is asked: use targets",
                  "不管要求什么，这里都只给 q、k、v、o 加了适配器：请使用 targets"),
    "everything": ("that adapts all seven linears whatever is asked: use targets",
                   "不管要求什么，这里都给七个线性层加了适配器：请使用 targets"),
}  # fmt: skip


@question("q2_1")
def lora_param_count(value: Any) -> list[int]:
    """A function (shape, rank, targets) -> how many parameters train."""
    must_be_function(value, "lora_param_count")
    results = []
    for name, rank, targets in COUNT_CASES:
        shape = shape_of(name)
        result = value(shape, rank, targets)
        if result is None or result is ...:
            raise NotAttempted
        found = counts(shape, rank, targets)
        if not close(result, found["right"], tolerance=1e-9):
            raise Wrong(*_why_count_is_wrong(f"lora_param_count({name}, {rank}, {targets})", result, found))
        results.append(int(result))
    return results


def _why_count_is_wrong(call: str, result: Any, found: dict[str, int]) -> tuple[str, str]:
    for name, reason in COUNT_REASONS.items():
        if close(result, found[name], tolerance=1e-9):
            return f"{call} = {result}: {reason[0]}", f"{call} = {result}：{reason[1]}"
    return f"{call} gives {result}, should be {found['right']}", f"{call} 得到 {result}，应为 {found['right']}"


# --- q2_2 ------------------------------------------------------------------------------------------------------------

# (leading sizes of x, in, out, r, alpha); the text shows none of them
FORWARD_CASES = (((), 3, 5, 1, 2.0), ((4,), 6, 2, 3, 16.0), ((2, 3), 4, 4, 2, 1.0))


def forward_case(place: int) -> tuple[torch.Tensor, ...]:
    """x, W0, A, B of a case: random, the same every time."""
    import torch

    leading, d_in, d_out, rank, _ = FORWARD_CASES[place]
    generator = torch.Generator().manual_seed(place)
    sizes = ((*leading, d_in), (d_out, d_in), (rank, d_in), (d_out, rank))
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def outputs(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float) -> dict[str, Any]:
    """The right output, and what recognised mistakes give."""
    rank, base, low = a.shape[0], x @ w.T, x @ a.T @ b.T
    return {
        "right": base + alpha / rank * low,
        "alpha": base + alpha * low,
        "unscaled": base + low,
        "upside down": base + rank / alpha * low,
        "rslora": base + alpha / rank**0.5 * low,
        "over in": base + alpha / a.shape[1] * low,
        "over out": base + alpha / b.shape[0] * low,
        "base only": base,
        "update only": alpha / rank * low,
        "all scaled": alpha / rank * (base + low),
    }


FORWARD_REASONS = {
    "alpha": ("the scale is alpha/r, not alpha", "缩放系数是 alpha/r，不是 alpha"),
    "unscaled": ("the scale alpha/r is missing", "漏掉了缩放系数 alpha/r"),
    "upside down": ("the scale is alpha/r; you have r/alpha", "缩放系数是 alpha/r；你写成了 r/alpha"),
    "rslora": ("alpha/sqrt(r) is rsLoRA; here alpha/r is asked for", "alpha/√r 是 rsLoRA；这里要的是 alpha/r"),
    "over in": ("r is the number of rows of A, not of its columns", "r 是 A 的行数，不是列数"),
    "over out": ("r is the number of columns of B, not of its rows", "r 是 B 的列数，不是行数"),
    "base only": ("the update is missing", "漏掉了更新量"),
    "update only": ("the frozen part W0 x is missing", "漏掉了冻结的部分 W0 x"),
    "all scaled": ("alpha/r multiplies the update only, not W0 x", "alpha/r 只乘更新量，不乘 W0 x"),
}


@question("q2_2")
def lora_forward(value: Any) -> list[float]:
    """A function (x, W0, A, B, alpha) -> W0 x + (alpha/r) B A x, for any leading sizes of x."""
    must_be_function(value, "lora_forward")
    sums = []
    for place, (leading, d_in, d_out, rank, alpha) in enumerate(FORWARD_CASES):
        tensors = forward_case(place)
        result = value(*(tensor.clone() for tensor in tensors), alpha)
        if result is None or result is ...:
            raise NotAttempted
        case = f"x {(*leading, d_in)}, W0 {(d_out, d_in)}, r={rank}, alpha={alpha:g}"
        judge_tensor(
            result, outputs(*tensors, alpha), case=case, reasons=FORWARD_REASONS, formula="W0 x + (alpha/r) B A x"
        )
        sums.append(round(float(result.detach().double().sum()), 4))
    return sums  # for the grader: what only a right function gives


# --- q2_3 ------------------------------------------------------------------------------------------------------------

FILE_MODEL, FILE_RANK = "qwen3-8b", 16
LECTURE_PARAMS = 40_000_000  # what the lecture says of rank 32


@question("q2_3")
def adapter_file(value: Any) -> None:
    """MB of the adapter file of `FILE_MODEL` at `FILE_RANK`, all linears, as PEFT saves it (float32)."""
    number, n = attempted(value), counts(shape_of(FILE_MODEL), FILE_RANK, TARGETS)["right"]
    if close(number, 4 * n / 1e6, tolerance=0.01):
        return
    share = FILE_RANK / 32
    reasons = (
        (4 * n / 2**20, "that is MiB (2**20 bytes); a MB is 1e6 bytes", "这是 MiB（2**20 字节）；MB 是 1e6 字节"),
        (2 * n / 1e6, "that is 2 bytes a parameter; PEFT keeps and saves adapters in float32", "这是每个参数 2 字节；PEFT 的适配器用 fp32 保存"),
        (n / 1e6, "that is millions of parameters; each takes 4 bytes", "这是以百万计的参数个数；每个参数占 4 字节"),
        (8 * n / 1e6, "that is rank 32; rank 16 is asked for", "这是秩 32 的结果；题目问的是秩 16"),
        (4 * n, "that is bytes; MB are asked for", "这是字节数；题目要 MB"),
        *((factor * LECTURE_PARAMS * part / 1e6,
           "that stands on the lecture's 40 M for rank 32; count the parameters: r (in + out) over all linears and layers",
           "这是从讲义“秩 32 约 40M”推出来的；请自己数：对所有层、所有线性层求 r (in + out) 之和")
          for factor in (2, 4) for part in (share, 1)),
    )  # fmt: skip
    for wrong, en, zh in reasons:
        if close(number, wrong, tolerance=0.01):
            raise Wrong(en, zh)
    raise Wrong(
        f"{number} MB is not within 1 % of parameters x bytes / 1e6",
        f"{number} MB 与 参数量 × 字节数 / 1e6 相差超过 1%",
    )


# --- q2_4 ------------------------------------------------------------------------------------------------------------


question("q2_4", written=True)(explanation)
