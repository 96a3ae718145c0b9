"""The visible checks of lesson 07: the right answer, each recognised mistake, no answer, and code that raises."""

import math

import numpy as np
import pytest

from labkit.models.methods import TARGETS
from labkit.page.exercises import judge
from labkit.page.questions import q07
from labkit.theory.selection import lora_params
from labkit.theory.spectrum import noise_edge, published_snr


def score(values, n, m, *, sigma=None, root=True, flipped=False, divide=True, empty=1.0):
    upper, lower = np.quantile(values, [0.75, 0.25])
    beta = max(n, m) / min(n, m) if flipped else min(n, m) / max(n, m)
    threshold = ((upper - lower) / 1.349 if sigma is None else sigma(values)) * (1 + (beta**0.5 if root else beta))
    above = values > threshold
    below = values[~above].sum() if (~above).any() else empty
    return values[above].sum() / below / (values[0] if divide else 1)


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (score, "right", "right"),
        (lambda v, n, m: np.float64(score(v, n, m)), "right", "right"),
        (lambda v, n, m: score(v, n, m, divide=False), "wrong", "last division is missing"),
        (lambda v, n, m: score(v, n, m) * v[0] ** 2, "wrong", "do not multiply"),
        (lambda v, n, m: score(v, n, m, sigma=np.std), "wrong", "not their standard deviation"),
        (lambda v, n, m: score(v, n, m, sigma=lambda v: np.ptp(np.quantile(v, [0.25, 0.75]))), "wrong", "1.349"),
        (lambda v, n, m: score(v, n, m, root=False), "wrong", "square root of beta"),
        (lambda v, n, m: score(v, n, m, flipped=True), "wrong", "shorter side over the longer"),
        (lambda v, n, m: score(v, n, m, empty=math.nan), "wrong", "denominator is 1"),
        (lambda v, n, m: 1.0, "wrong", "should be"),
        (lambda v, n, m: None, "not attempted", "not attempted"),
        (lambda v, n, m: 1 / 0, "error", "ZeroDivisionError"),
        (3.0, "wrong", "pass snr itself"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_q7_1(value, state, reason):
    got, message, _ = judge("q7_1", value)
    assert (got, reason in message) == (state, True), message


def test_the_wanted_scores_are_labkits_and_the_last_case_has_nothing_below():
    for values, n, m in q07.SNR_CASES.values():
        assert q07.scores(values, n, m)["right"] == pytest.approx(published_snr(values, (n, m)))
    values, n, m = q07.SNR_CASES["four values close together"]
    assert q07.scores(values, n, m)["right"] == pytest.approx(values.sum() / values[0])


def test_every_mistake_is_told_apart_somewhere():
    for mistake in q07.SNR_REASONS:
        found = [q07.scores(*case) for case in q07.SNR_CASES.values()]
        assert any(not math.isclose(one[mistake], one["right"], rel_tol=1e-6) for one in found), mistake


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (noise_edge((12288, 4096), 0.02), "right", "right"),
        (3.5, "right", "right"),
        (0.02 * 12288**0.5, "wrong", "longer side only"),
        (0.02 * 16384**0.5, "wrong", "not the sum of the square roots"),
        (0.02 * (12288**0.5 - 64), "wrong", "smallest value"),
        (0.02 * (1 + 3**-0.5), "wrong", "without the size of the matrix"),
        (noise_edge((12288, 4096), 0.02) ** 2, "wrong", "take the square root"),
        (0.02 * (12288 * 4096) ** 0.5, "wrong", "Frobenius"),
        (7.0, "wrong", "not within"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_q7_2(value, state, reason):
    got, message, _ = judge("q7_2", value)
    assert (got, reason in message) == (state, True), message


def chosen(scores, percent, *, highest=True, rounding=int):
    found = []
    for kind in TARGETS:
        own = sorted((m for m in scores if m.endswith(f".{kind}")), key=scores.get, reverse=highest)
        found += own[: rounding(len(own) * percent / 100)]
    return found


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (chosen, "right", "right"),
        (lambda s, p: tuple(chosen(s, p)), "right", "right"),
        (lambda s, p: chosen(s, p, highest=False), "wrong", "lowest scores"),
        (lambda s, p: chosen(s, p, rounding=math.ceil), "wrong", "rounded down"),
        (lambda s, p: sorted(s, key=s.get)[-int(len(s) * p / 100) :], "wrong", "all types together"),
        (lambda s, p: list(s), "wrong", "should be"),
        (lambda s, p: None, "not attempted", "not attempted"),
        (["0.q_proj"], "wrong", "pass select_top itself"),
    ],
)
def test_q7_3(value, state, reason):
    got, message, _ = judge("q7_3", value)
    assert (got, reason in message) == (state, True), message


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (160, "right", "right"),
        (160.0, "right", "right"),
        (16, "wrong", "a tenth of the parameters"),
        (1.6, "wrong", "other way round"),
        (2, "wrong", "r (in + out)"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_q7_4(value, state, reason):
    got, message, _ = judge("q7_4", value)
    assert (got, reason in message) == (state, True), message


def test_the_wanted_rank_has_as_many_parameters():
    shape = q07.shape_of(q07.MATCH_MODEL)
    everything = tuple(f"{layer}.{kind}" for layer in range(shape.n_layers) for kind in TARGETS)
    few = tuple(module for module in everything if int(module.split(".")[0]) < 3)
    assert lora_params(shape, few, rank=160) == lora_params(shape, everything, rank=16)


def test_q7_5_asks_for_sentences():
    assert judge("q7_5", "LoRA.")[0] == "wrong"
    said = "I take LoRA on all linears, at 4.5 GiB. Section 7 found selections no better. Random controls would tell."
    assert judge("q7_5", said)[0] == "handed in"


def test_reasons_exist_in_both_languages(monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    said = [judge("q7_2", 1.0)[1], judge("q7_3", list)[1], judge("q7_4", 16)[1], judge("q7_1", lambda v, n, m: 1.0)[1]]
    assert all(any("\u4e00" <= sign <= "\u9fff" for sign in text) for text in said)
