"""Lesson 05's exercises: the right answers, and each recognised mistake with its reason."""

import math

import numpy as np
import pytest
from scipy import stats

from labkit.models.methods import TARGETS, Method
from labkit.models.shapes import shape_of
from labkit.page.exercises import judge
from labkit.page.questions import q05
from labkit.theory.resident import adapter_tensors


def state(id, value):
    return judge(id, value)[:2]


def interval(kind):
    return lambda first, second: q05.intervals(first, second)[kind]


def solution(first, second):
    d = np.array(second) - np.array(first)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - half, d.mean() + half


def scipys(first, second):
    found = stats.ttest_rel(second, first).confidence_interval()
    return found.low, found.high


@pytest.mark.parametrize("answer", [solution, scipys, lambda *given: list(solution(*given))])
def test_an_interval_is_right_however_it_is_made(answer):
    assert state("q5_1", answer)[0] == "right"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("normal", "Student's t"),
        ("one-sided", "0.975"),
        ("no root", "sqrt"),
        ("ddof", "ddof=1"),
        ("n", "degrees of freedom"),
        ("unpaired", "differences first"),
        ("unpaired n-1", "differences first"),
        ("reversed", "second minus first"),
        ("error only", "multiply by t"),
    ],
)
def test_a_wrong_interval_gets_its_reason(kind, reason):
    found, message = state("q5_1", interval(kind))
    assert found == "wrong"
    assert reason in message


def test_other_answers_to_the_interval():
    assert state("q5_1", lambda first, second: None)[0] == "not attempted"
    assert "two numbers" in state("q5_1", lambda first, second: 0.5)[1]
    assert "should be" in state("q5_1", lambda first, second: (0.0, 9.0))[1]
    assert "without ()" in state("q5_1", (0.0, 1.0))[1]
    assert state("q5_1", lambda first, second: 1 / 0)[0] == "error"


def test_no_mistake_gives_the_right_interval():
    for pair in q05.PAIRS:
        found = q05.intervals(*pair)
        right = found.pop("right")
        assert right == pytest.approx(scipys(*pair))
        assert not [name for name, ends in found.items() if np.allclose(ends, right, atol=1e-4)]


def test_the_table_is_read():
    assert state("q5_2", {"ranks": (8, 4), "cause": "learning rate"})[0] == "right"
    assert state("q5_2", {"ranks": ..., "cause": ...})[0] == "not attempted"
    assert state("q5_2", {"ranks": (4, ...), "cause": "learning rate"})[0] == "not attempted"
    assert "30 points" in state("q5_2", {"ranks": (16, 64), "cause": "learning rate"})[1]
    for cause in set(q05.CAUSES) - {"learning rate"}:
        assert state("q5_2", {"ranks": (4, 8), "cause": cause})[0] == "wrong"
    assert "one of" in state("q5_2", {"ranks": (4, 8), "cause": "bug"})[1]
    assert state("q5_2", "learning rate")[0] == "wrong"


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"ranks": [8, 64], "learning_rates": [1e-4, 3e-4], "seeds": [0, 1, 2]}, "right"),
        ({"ranks": (64, 8), "learning_rates": (1e-3, 3e-4), "seeds": (7, 8, 9)}, "right"),
        ({"ranks": [8, 64], "learning_rates": [1e-4], "seeds": list(range(6))}, "one learning rate"),
        ({"ranks": [8, 64], "learning_rates": [1e-4, 2e-4, 4e-4], "seeds": [0, 1]}, "2 seeds"),
        ({"ranks": [8, 64], "learning_rates": [1e-4, 2e-4, 4e-4], "seeds": [0, 1, 2]}, "18 runs"),
        ({"ranks": [8, 16, 64], "learning_rates": [1e-4], "seeds": [0, 1, 2]}, "rank 8 and rank 64"),
        ({"ranks": [8, 64], "learning_rates": [1e-4, 1e-4], "seeds": [0, 1, 2]}, "twice"),
        ({"ranks": [8, 64], "learning_rates": [1e-4, 3], "seeds": [0, 1, 2]}, "between 0 and 1"),
        ({"ranks": 8, "learning_rates": [1e-4], "seeds": [0]}, "list"),
        ({"ranks": [8]}, "a dictionary with"),
        ({"ranks": ..., "learning_rates": ..., "seeds": ...}, "not attempted"),
    ],
)
def test_a_plan_is_fair_or_told_why_not(plan, said):
    assert said in " ".join(state("q5_3", plan))


def test_the_matching_rank():
    shape = shape_of("qwen3-1.7b")

    def params(rank, targets):
        tensors = adapter_tensors(shape, Method(kind="lora", rank=rank, targets=targets))
        return sum(count * elements for count, elements, _ in tensors)

    wanted = min(range(1, 100), key=lambda rank: abs(params(rank, TARGETS[:4]) - params(16, TARGETS)))
    assert state("q5_4", wanted)[0] == "right"
    assert math.isclose(q05.attention_rank(), params(16, TARGETS) / params(1, TARGETS[:4]))
    mistakes = {16: "not the same count", 28: "counts modules", q05.attention_rank(): "round", 5.9: "other way round"}
    for value, reason in mistakes.items():
        found, message = state("q5_4", value)
        assert found == "wrong"
        assert reason in message
    assert state("q5_4", ...)[0] == "not attempted"


def test_the_explanation_is_for_a_person():
    assert state("q5_5", "Too short.")[0] == "wrong"
    text = "One seed and one learning rate cannot tell. With alpha = 2r rank 128 wants a smaller rate. "
    text += "I would run both ranks at three rates with three seeds each."
    assert state("q5_5", text)[0] == "handed in"


def test_every_reason_is_in_both_languages(monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    assert "先逐个种子相减" in state("q5_1", interval("unpaired"))[1]
    assert "请取整" in state("q5_4", q05.attention_rank())[1]
