"""Lesson 07: what the exercises accept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from labkit.models.methods import TARGETS, module_parts
from labkit.models.shapes import shape_of
from labkit.page.exercises import NotAttempted, Wrong, must_be_function, question
from labkit.page.questions.q00 import close
from labkit.page.questions.q01 import explanation
from labkit.theory.selection import select
from labkit.theory.spectrum import singular_values

# --- q7_1 ------------------------------------------------------------------------------------------------------------


def noise_and_spike(rows: int, columns: int, *, spike: float = 0, seed: int = 0) -> np.ndarray:
    """Singular values of N(0, 1) noise, with two planted directions of size ``spike``."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, columns))
    left, right = (np.linalg.qr(rng.standard_normal((side, 2)))[0] for side in (rows, columns))
    return singular_values(matrix + spike * left @ right.T)


# what it is -> (singular values, rows, columns); the text shows none of them
SNR_CASES: dict[str, tuple[np.ndarray, int, int]] = {
    "noise 80 x 50": (noise_and_spike(80, 50), 80, 50),
    "noise and a spike, 50 x 80": (noise_and_spike(50, 80, spike=60, seed=1), 50, 80),
    "noise 60 x 60": (noise_and_spike(60, 60, seed=2), 60, 60),
    "four values close together": (np.array([5.0, 4.9, 4.8, 4.7]), 4, 4),
}


def scores(values: np.ndarray, n: int, m: int) -> dict[str, float]:
    """The right score, and what recognised mistakes give."""
    upper, lower = np.quantile(values, [0.75, 0.25])
    sigma, beta = (upper - lower) / 1.349, min(n, m) / max(n, m)

    def ratio(threshold: float) -> float:
        below = values[values <= threshold].sum() if (values <= threshold).any() else 1.0
        return values[values > threshold].sum() / below

    right = ratio(sigma * (1 + math.sqrt(beta)))
    return {
        "right": right / values[0],
        "undivided": right,
        "times": right * values[0],
        "std": ratio(values.std() * (1 + math.sqrt(beta))) / values[0],
        "iqr": ratio((upper - lower) * (1 + math.sqrt(beta))) / values[0],
        "beta": ratio(sigma * (1 + beta)) / values[0],
        "upside down": ratio(sigma * (1 + math.sqrt(1 / beta))) / values[0],
        "edge": ratio(sigma * (math.sqrt(n) + math.sqrt(m))) / values[0],
    }


SNR_REASONS = {
    "undivided": ("the last division is missing: by the largest singular value", "漏了最后一步：除以最大的奇异值"),
    "times": ("divide by the largest singular value, do not multiply", "最后一步是除以最大的奇异值，不是乘"),
    "std": ("sigma is the interquartile range of the singular values over 1.349, not their standard deviation",
            "sigma 是奇异值的四分位距除以 1.349，不是标准差"),
    "iqr": ("the interquartile range is not divided by 1.349 yet", "四分位距还没有除以 1.349"),
    "beta": ("the threshold has the square root of beta", "阈值里是 beta 的平方根"),
    "upside down": ("beta is the shorter side over the longer", "beta 是短边除以长边"),
    "edge": ("that is the edge of section 1; the published threshold has 1 + sqrt(beta) in its place",
             "这是第 1 部分的边缘；论文代码的阈值用的是 1 + sqrt(beta)"),
}  # fmt: skip


@question("q7_1")
def snr(value: Any) -> list[float]:
    """A function (values, n, m) -> the published score."""
    must_be_function(value, "snr")
    results = []
    for name, (values, n, m) in SNR_CASES.items():
        result = value(values.copy(), n, m)
        if result is None or result is ...:
            raise NotAttempted
        _explain_score(name, result, values, n, m)
        results.append(round(float(result), 6))
    return results


def _explain_score(name: str, result: Any, values: np.ndarray, n: int, m: int) -> None:
    found = scores(values, n, m)
    result = float(result)
    if close(result, found["right"], tolerance=1e-6):
        return
    if not math.isfinite(result):
        raise Wrong(
            f"{name}: {result}; where nothing lies below the threshold, the denominator is 1",
            f"{name}：得到 {result}；阈值以下一个都没有时，分母取 1",
        )
    for mistake, reason in SNR_REASONS.items():
        if close(result, found[mistake], tolerance=1e-6):
            raise Wrong(f"{name}: {result:.4g}: {reason[0]}", f"{name}：{result:.4g}：{reason[1]}")
    raise Wrong(
        f"{name}: {result:.4g}, should be {found['right']:.4g}", f"{name}：得到 {result:.4g}，应为 {found['right']:.4g}"
    )


# --- q7_2 ------------------------------------------------------------------------------------------------------------

EDGE_SHAPE, EDGE_SIGMA = (12288, 4096), 0.02  # gate_proj of Qwen3-8B


def edges() -> dict[str, float]:
    """The right edge, and what recognised mistakes give."""
    (n, m), sigma = EDGE_SHAPE, EDGE_SIGMA
    return {
        "right": sigma * (math.sqrt(n) + math.sqrt(m)),
        "one side": sigma * math.sqrt(n),
        "root of the sum": sigma * math.sqrt(n + m),
        "low end": sigma * (math.sqrt(n) - math.sqrt(m)),
        "published": sigma * (1 + math.sqrt(m / n)),
        "squared": (sigma * (math.sqrt(n) + math.sqrt(m))) ** 2,
        "entries": sigma * math.sqrt(n * m),
    }


EDGE_REASONS = {
    "one side": ("that is the longer side only: both square roots are added", "这只算了长边：两个平方根要相加"),
    "root of the sum": ("the square root of the sum is not the sum of the square roots", "和的平方根不等于平方根之和"),
    "low end": ("that is where the noise begins, its smallest value; the edge has a plus", "这是噪声的下端（最小的奇异值）；边缘用加号"),
    "published": ("that is the published threshold's formula, without the size of the matrix", "这是论文代码里阈值的形式，丢掉了矩阵的大小"),
    "squared": ("that is the eigenvalue: take the square root", "这是特征值：还要开平方"),
    "entries": ("that is the Frobenius norm of the whole matrix, all singular values together", "这是整个矩阵的 Frobenius 范数，即所有奇异值合在一起"),
}  # fmt: skip


@question("q7_2")
def predicted_edge(value: Any) -> None:
    """The edge for Qwen3-8B's gate_proj filled with noise of 0.02: 3.497."""
    found = edges()
    if close(value, found["right"], tolerance=0.005):
        return
    for mistake, reason in EDGE_REASONS.items():
        if close(value, found[mistake], tolerance=0.005):
            raise Wrong(*reason)
    raise Wrong(f"{value} is not within 0.5 % of it", f"{value} 与正确值相差超过 0.5%")


# --- q7_3 ------------------------------------------------------------------------------------------------------------


def score_case(n_layers: int, seed: int) -> dict[str, float]:
    """Scores of a model whose types differ in size a hundredfold, as they do in real ones."""
    rng = np.random.default_rng(seed)
    modules = [(layer, place, name) for layer in range(n_layers) for place, name in enumerate(TARGETS)]
    rng.shuffle(modules)
    return {f"{int(layer)}.{name}": float(10.0 ** (int(place) / 3) * rng.random()) for layer, place, name in modules}


SELECT_CASES = (  # scores, percent
    (score_case(8, 0), 25),
    (score_case(10, 1), 25),  # int(2.5) is 2
    (score_case(12, 2), 50),
)


def overall(found: Mapping[str, float], percent: float, *, lowest: bool = False) -> set[str]:
    """The highest of all types together: a mistake."""
    order = sorted(found, key=found.__getitem__, reverse=not lowest)
    return set(order[: int(len(found) * percent / 100)])


def rounded(found: Mapping[str, float], percent: float) -> set[str]:
    """With the count rounded up: a mistake."""
    chosen: set[str] = set()
    for name in TARGETS:
        own = sorted((m for m in found if module_parts(m)[1] == name), key=found.__getitem__, reverse=True)
        chosen |= set(own[: math.ceil(len(own) * percent / 100)])
    return chosen


@question("q7_3")
def select_top(value: Any) -> list[int]:
    """A function (scores, percent) -> the modules that train."""
    must_be_function(value, "select_top")
    counts = []
    for found, percent in SELECT_CASES:
        result = value(dict(found), percent)
        if result is None or result is ...:
            raise NotAttempted
        _explain_selection(set(result), found, percent)
        counts.append(len(set(result)))
    return counts


def _explain_selection(result: set[str], found: Mapping[str, float], percent: float) -> None:
    if result == set(select(found, top_percent=percent)):
        return
    mistakes: tuple[tuple[Callable[[], set[str]], tuple[str, str]], ...] = (
        (lambda: overall(found, percent), ("that ranks all types together: scores compare inside one type only",
                                           "这把所有类型排在了一起：分数只能在同一类型内比较")),
        (lambda: set(select(found, top_percent=percent, order="low")), ("those are the lowest scores", "这些是分数最低的")),
        (lambda: rounded(found, percent), ("the count is rounded down: int(n * percent / 100)",
                                           "个数要向下取整：int(n * percent / 100)")),
    )  # fmt: skip
    for mistake, reason in mistakes:
        if result == mistake():
            raise Wrong(*reason)
    wanted = len(select(found, top_percent=percent))
    raise Wrong(
        f"{len(result)} modules at {percent} %, should be {wanted}: the highest of each type",
        f"{percent}% 选出了 {len(result)} 个模块，应为 {wanted} 个：每种类型里分数最高的",
    )


# --- q7_4 ------------------------------------------------------------------------------------------------------------

MATCH_MODEL, MATCH_RANK, MATCH_PERCENT = "smollm2-135m", 16, 10


def matching_rank() -> float:
    """The rank on int(30 * 10 %) = 3 of 30 modules a type that has as many parameters as rank 16 on all: 160."""
    n_layers = shape_of(MATCH_MODEL).n_layers
    return MATCH_RANK * n_layers / int(n_layers * MATCH_PERCENT / 100)


@question("q7_4")
def equal_budget(value: Any) -> None:
    """The rank that makes the budgets equal."""
    right = matching_rank()
    if close(value, right, tolerance=0.005):
        return
    if close(value, MATCH_RANK, tolerance=1e-9):
        raise Wrong(
            "the same rank on a tenth of the modules has a tenth of the parameters",
            "同样的秩放在十分之一的模块上，参数量也只有十分之一",
        )
    if close(value, MATCH_RANK * MATCH_PERCENT / 100, tolerance=0.05):
        raise Wrong("the other way round: fewer modules, a higher rank", "反了：模块少了，秩要更高")
    raise Wrong(
        f"{value} is not it; count r (in + out) on both sides of the equation",
        f"{value} 不对；等式两边都用 r (in + out) 来数",
    )


# --- q7_5 ------------------------------------------------------------------------------------------------------------

question("q7_5")(explanation)
