"""Lesson 05: what the exercises accept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from labkit.models.methods import TARGETS
from labkit.models.shapes import shape_of
from labkit.page.exercises import NotAttempted, Wrong, attempted, must_be_function, question
from labkit.page.questions.q00 import close
from labkit.page.questions.q02 import counts
from labkit.page.questions.written import explanation

# --- q5_1 ------------------------------------------------------------------------------------------------------------

# losses of two settings, seed by seed; the text shows none of them
PAIRS = (
    ((4.90, 5.02, 4.97), (4.86, 4.99, 4.91)),
    ((2.61, 2.70, 2.55, 2.66, 2.58), (2.64, 2.69, 2.60, 2.69, 2.60)),
    ((1.0, 3.0), (2.0, 3.5)),
)


def intervals(first: Sequence[float], second: Sequence[float]) -> dict[str, tuple[float, float]]:
    """The right interval of ``second - first``, and what recognised mistakes give."""
    a, b = np.asarray(first), np.asarray(second)
    d, n = b - a, len(a)
    error, t = float(d.std(ddof=1)) / math.sqrt(n), float(stats.t.ppf(0.975, n - 1))
    apart = math.sqrt(a.var(ddof=1) / n + b.var(ddof=1) / n)

    def around(mean: float, half: float) -> tuple[float, float]:
        return float(mean - half), float(mean + half)

    return {
        "right": around(d.mean(), t * error),
        "normal": around(d.mean(), 1.96 * error),
        "one-sided": around(d.mean(), float(stats.t.ppf(0.95, n - 1)) * error),
        "no root": around(d.mean(), t * error * math.sqrt(n)),
        "ddof": around(d.mean(), t * float(d.std()) / math.sqrt(n)),
        "n": around(d.mean(), float(stats.t.ppf(0.975, n)) * error),
        "unpaired": around(d.mean(), float(stats.t.ppf(0.975, 2 * n - 2)) * apart),
        "unpaired n-1": around(d.mean(), t * apart),
        "reversed": around(-d.mean(), t * error),
        "error only": around(d.mean(), error),
    }


INTERVAL_REASONS = {
    "normal": ("1.96 is for a known spread; with n seeds take Student's t with n - 1 degrees of freedom",
               "1.96 适用于标准差已知的情形；只有 n 个种子时，要用自由度为 n − 1 的 t 分布"),
    "one-sided": ("95 % in the middle leaves 2.5 % on each side: ppf(0.975)", "中间 95%，两边各剩 2.5%：ppf(0.975)"),
    "no root": ("that is how single differences scatter; the mean of n scatters less by sqrt(n)",
                "这是单个差值的波动；n 个差值的均值，波动要除以 √n"),
    "ddof": ("np.std divides by n; the spread of a sample divides by n - 1 (ddof=1)",
             "np.std 默认除以 n；样本标准差要除以 n − 1（ddof=1）"),
    "n": ("n differences leave n - 1 degrees of freedom", "n 个差值，自由度是 n − 1"),
    "unpaired": ("that compares two separate groups; both ran with the same seeds: take the differences first",
                 "这是把两组当成互不相关来比；它们用了相同的种子：先逐个种子相减"),
    "unpaired n-1": ("that compares two separate groups; both ran with the same seeds: take the differences first",
                     "这是把两组当成互不相关来比；它们用了相同的种子：先逐个种子相减"),
    "reversed": ("the difference is second minus first", "差值是第二组减第一组"),
    "error only": ("that is one standard error on each side; multiply by t", "这只是左右各一个标准误；还要乘以 t"),
}  # fmt: skip


@question("q5_1")
def difference(value: Any) -> list[list[float]]:
    """A function (first, second) -> (low, high): the 95 % t interval of the mean paired difference."""
    must_be_function(value, "difference")
    kept = []
    for first, second in PAIRS:
        result = value(list(first), list(second))
        if result is None or result is ...:
            raise NotAttempted
        if not _two_numbers(result):
            raise Wrong("two numbers are asked for: return low, high", "这里要两个数：return low, high")
        _judge_interval(tuple(map(float, result)), intervals(first, second), f"difference({first}, {second})")
        kept.append([round(float(end), 6) for end in result])
    return kept


def _two_numbers(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and len(value) == 2 and all(np.isscalar(end) for end in value)


def _judge_interval(result: tuple[float, float], wanted: dict[str, tuple[float, float]], call: str) -> None:
    if np.allclose(result, wanted["right"], atol=1e-4):
        return
    shown = f"{call} = ({result[0]:.4f}, {result[1]:.4f})"
    for name, reason in INTERVAL_REASONS.items():
        if np.allclose(result, wanted[name], atol=1e-4):
            raise Wrong(f"{shown}: {reason[0]}", f"{shown}：{reason[1]}")
    low, high = wanted["right"]
    raise Wrong(f"{shown}, should be ({low:.4f}, {high:.4f})", f"{shown}，应为 ({low:.4f}, {high:.4f})")


# --- q5_2 ------------------------------------------------------------------------------------------------------------

# Liu et al. 2402.09353, table 15: LLaMA-7B, average accuracy on eight commonsense tasks in %, by rank
TABLE_15 = {4: (39.5, 61.9), 8: (40.7, 77.9), 16: (70.9, 77.5), 32: (74.7, 78.4), 64: (65.8, 72.1)}
CAUSES = ("seed noise", "rank too small", "learning rate", "test set too small")


@question("q5_2")
def artefact(value: Any) -> None:
    """A dictionary: the two ranks whose LoRA numbers are suspicious, and the likeliest cause."""
    if not isinstance(value, Mapping) or set(value) != {"ranks", "cause"}:
        raise Wrong('a dictionary with "ranks" and "cause" is asked for', '这里要一个含 "ranks" 和 "cause" 的字典')
    if value["ranks"] in (..., None) or value["cause"] in (..., None):
        raise NotAttempted
    ranks = tuple(attempted(list(value["ranks"])))
    if value["cause"] not in CAUSES:
        raise Wrong(f"cause is one of {', '.join(CAUSES)}", f"cause 从 {', '.join(CAUSES)} 里选")
    if set(ranks) != {4, 8}:
        raise Wrong(
            "look at the column LoRA: where does it fall by 30 points between neighbours, while DoRA does not?",
            "看 LoRA 那一列：哪里相邻两格差了 30 分，而 DoRA 没有？",
        )
    reasons = {
        "seed noise": ("two seeds differ by a point or two, not by 30", "换个种子差一两分，不会差 30 分"),
        "test set too small": (
            "eight test sets with thousands of questions scatter by about a point",
            "八个测试集共有上万道题，波动只有一分左右",
        ),
        "rank too small": (
            "DoRA of rank 8 is a LoRA of rank 8 with one vector more, and reaches 77.9; other papers find rank 1 to 8 enough",
            "秩 8 的 DoRA 就是秩 8 的 LoRA 再加一个向量，却有 77.9；别的论文里秩 1–8 就够用",
        ),
    }
    if value["cause"] in reasons:
        raise Wrong(*reasons[value["cause"]])


# --- q5_3 ------------------------------------------------------------------------------------------------------------

RUNS, FEWEST_SEEDS = 12, 3


@question("q5_3")
def fair_plan(value: Any) -> None:
    """A dictionary of lists (ranks, learning_rates, seeds) whose product is at most 12 runs."""
    names = ("ranks", "learning_rates", "seeds")
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise Wrong(f"a dictionary with {', '.join(names)} is asked for", f"这里要一个含 {'、'.join(names)} 的字典")
    if any(value[name] is ... or value[name] is None for name in names):
        raise NotAttempted
    if not all(isinstance(value[name], list | tuple) for name in names):
        raise Wrong("each entry is a list", "每一项都是一个列表")
    ranks, rates, seeds = (tuple(attempted(list(value[name]))) for name in names)
    if set(ranks) != {8, 64}:
        raise Wrong("the question is about rank 8 and rank 64", "问题只涉及秩 8 和秩 64")
    _judge_plan(ranks, rates, seeds)


def _judge_plan(ranks: tuple, rates: tuple, seeds: tuple) -> None:
    n = len(ranks) * len(rates) * len(seeds)
    if any(len(set(part)) < len(part) for part in (ranks, rates, seeds)):
        raise Wrong("a value stands twice: that run would only be repeated", "有的值写了两次：同样的训练只会重复一遍")
    if n > RUNS:
        raise Wrong(f"that is {n} runs, and there is time for {RUNS}", f"这是 {n} 次训练，而时间只够 {RUNS} 次")
    if len(rates) < 2:
        raise Wrong(
            "with one learning rate you compare how well two ranks like that rate",
            "只用一个学习率，比出来的是两个秩谁更适合这个学习率",
        )
    if len(seeds) < FEWEST_SEEDS:
        raise Wrong(
            f"{len(seeds)} seeds: Student's t is {stats.t.ppf(0.975, max(1, len(seeds) - 1)):.1f} then; take at least 3",
            f"{len(seeds)} 个种子：这时 t 值是 {stats.t.ppf(0.975, max(1, len(seeds) - 1)):.1f}；至少取 3 个",
        )
    if not all(0 < rate < 1 for rate in rates):
        raise Wrong("a learning rate lies between 0 and 1", "学习率在 0 和 1 之间")


# --- q5_4 ------------------------------------------------------------------------------------------------------------

MATCH_MODEL, MATCH_RANK = "qwen3-1.7b", 16


def attention_rank() -> float:
    """The rank (not rounded) with which attention alone has as many parameters as all linears at `MATCH_RANK`."""
    shape = shape_of(MATCH_MODEL)
    return counts(shape, MATCH_RANK, TARGETS)["right"] / counts(shape, 1, TARGETS[:4])["right"]


@question("q5_4")
def matching_rank(value: Any) -> None:
    """The whole rank next to `attention_rank`."""
    number, wanted = attempted(value), attention_rank()
    if close(number, round(wanted), tolerance=1e-9):
        return
    mistakes = (
        (MATCH_RANK, "the same rank is not the same count: the MLP's linears are missing", "秩相同不等于参数量相同：这里少了 MLP 的线性层"),
        (MATCH_RANK * 7 / 4, "7 linears against 4 counts modules; they differ in size", "7 比 4 数的是模块个数，而各模块大小不同"),
        (wanted, "right; a rank is a whole number: round it", "算对了；秩是整数，请取整"),
        (MATCH_RANK * MATCH_RANK / wanted, "that is the other way round", "方向反了"),
    )  # fmt: skip
    for wrong, en, zh in mistakes:
        if close(number, wrong, tolerance=0.01):
            raise Wrong(en, zh)
    raise Wrong(
        f"{number}: divide the count of all linears at rank {MATCH_RANK} by that of attention at rank 1",
        f"{number}：用秩 {MATCH_RANK} 全部线性层的参数量，除以秩 1 只挂注意力的参数量",
    )


# --- q5_5 ------------------------------------------------------------------------------------------------------------


@question("q5_5", written=True)
def verdict(value: Any) -> None:
    """Three sentences on a colleague's conclusion; a person marks what they say."""
    explanation(value)
