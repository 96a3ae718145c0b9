"""The visible checks of lesson 06: the right answer, each recognised mistake, no answer, and code that raises."""

import math
import statistics

import pytest
import scipy.stats
import torch
from torch.nn.functional import linear

from labkit.page.exercises import judge
from labkit.page.questions import q06
from labkit.theory.dora import DoRALinear


def forward(weight):
    """A student's function that builds the whole weight W' and multiplies with it."""
    return lambda x, w, a, b, m, scale: x @ weight(w, w + scale * b @ a, m).T


RIGHT = forward(lambda w, v, m: (m / v.norm(dim=1))[:, None] * v)


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (RIGHT, "right", "right"),
        (lambda x, w, a, b, m, s: linear(x, w + s * b @ a) * (m / (w + s * b @ a).norm(dim=1)), "right", "right"),
        (forward(lambda w, v, m: m * v / v.norm(dim=0)), "wrong", "scales the columns"),
        (forward(lambda w, v, m: v * (m / v.norm(dim=0))[:, None]), "wrong", "dim=0"),
        (forward(lambda w, v, m: m / v.norm(dim=1) * v), "wrong", "multiplies along the columns"),
        (forward(lambda w, v, m: m[:, None] * v), "wrong", "division by the norm"),
        (forward(lambda w, v, m: (m / w.norm(dim=1))[:, None] * v), "wrong", "norm is that of W0"),
        (forward(lambda w, v, m: m[:, None] * v / v.norm()), "wrong", "every row has its own"),
        (forward(lambda w, v, m: (m / v.square().sum(1))[:, None] * v), "wrong", "squared norm"),
        (forward(lambda w, v, m: v / v.norm(dim=1, keepdim=True)), "wrong", "magnitude m is missing"),
        (forward(lambda w, v, m: (v.norm(dim=1) / m)[:, None] * v), "wrong", "you have norm / m"),
        (forward(lambda w, v, m: w + (m / v.norm(dim=1))[:, None] * (v - w)), "wrong", "not only the update"),
        (forward(lambda w, v, m: (m / v.norm(dim=1))[:, None] * w + v - w), "wrong", "not only W0"),
        (forward(lambda w, v, m: v), "wrong", "that is LoRA"),
        (lambda x, w, a, b, m, s: RIGHT(x, w, a, b, m, 1), "wrong", "multiplied by scale"),
        (lambda x, w, a, b, m, s: RIGHT(x, w, a, b, m, s) + 1, "wrong", "the numbers differ"),
        (lambda x, w, a, b, m, s: x[..., :2], "wrong", "is expected"),
        (lambda x, w, a, b, m, s: 3, "wrong", "your result is int"),
        (lambda x, w, a, b, m, s: None, "not attempted", "not attempted"),
        (lambda x: x, "error", "TypeError"),
        (3, "wrong", "a function is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_forward(value, state, reason):
    found, message, _ = judge("q6_1", value)
    assert (found, reason in message) == (state, True), message


def test_a_wrong_axis_that_only_breaks_on_other_sizes_is_explained():
    def answer(x, w, a, b, m, scale):
        v = w + scale * b @ a
        return x @ (m / v.norm(dim=0 if len(v) != v.shape[1] else 1))[:, None].mul(v).T

    state, message, _ = judge("q6_1", answer)
    assert (state, "belongs to an output" in message) == ("wrong", True)


def test_the_wanted_output_is_labkits():
    for place, (_, d_in, d_out, rank, scale) in enumerate(q06.FORWARD_CASES):
        x, w, a, b, m = q06.forward_case(place)
        layer = DoRALinear(torch.nn.Linear(d_in, d_out, bias=False), rank=rank, alpha=scale * rank)
        with torch.no_grad():
            layer.base.weight.copy_(w)
            for name, tensor in {"lora_A": a, "lora_B": b, "magnitude": m}.items():
                getattr(layer, name).copy_(tensor)
        torch.testing.assert_close(layer(x), q06.outputs(x, w, a, b, m, scale)["right"])


def test_every_recognised_output_differs_from_the_right_one_in_some_case():
    results = [q06.outputs(*q06.forward_case(place), case[4]) for place, case in enumerate(q06.FORWARD_CASES)]
    for mistake in q06.FORWARD_REASONS:
        known = [result for result in results if mistake in result]
        assert not all(torch.allclose(result[mistake], result["right"]) for result in known)


def test_the_axis_cannot_be_seen_by_shapes_in_the_first_case_only():
    square = [d_in == d_out for _, d_in, d_out, _, _ in q06.FORWARD_CASES]
    assert square == [True, False, False]


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (603.979776, "right", "right"),
        (604, "right", "right"),
        (67.1, "wrong", "out x out"),
        (201.3, "wrong", "the size of the weight"),
        (302, "wrong", "2 bytes a number"),
        (151, "wrong", "millions of numbers"),
        (0.0491, "wrong", "a vector of ones"),
        (603_979_776, "wrong", "that is bytes"),
        (576, "wrong", "that is MiB"),
        (5, "wrong", "is not in x in"),
        ("604", "wrong", "is not in x in"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_identity(value, state, reason):
    found, message, _ = judge("q6_2", value)
    assert (found, reason in message) == (state, True), message


def test_the_wanted_identity_is_what_peft_makes():
    from peft.tuners.lora.dora import DoraLinearLayer

    made, eye = [], torch.eye

    def spy(*sizes, **options):
        made.append(eye(*sizes, **options))
        return made[-1]

    low, up = torch.nn.Linear(12, 2, bias=False), torch.nn.Linear(2, 5, bias=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "eye", spy)
        DoraLinearLayer(fan_in_fan_out=False).get_lora_weight(low, up)
    (identity,) = made
    assert identity.nbytes == 4 * 12**2  # in x in, float32


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (3.81, "right", "right"),
        (3.8, "right", "right"),
        (0.0381, "wrong", "that is a share"),
        (1.944, "wrong", "one standard error of the difference"),
        (2.69, "wrong", "interval of one share"),
        (5.39, "wrong", "half widths do not add"),
        (1.375, "wrong", "one standard error of one share"),
        (0.9, "wrong", "the difference itself"),
        (10, "wrong", "two variances"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_noise(value, state, reason):
    found, message, _ = judge("q6_3", value)
    assert (found, reason in message) == (state, True), message


def test_the_wanted_noise_is_that_of_two_binomials():
    deviation = [scipy.stats.binom(1319, p).std() / 1319 for p in (0.478, 0.469)]
    assert judge("q6_3", 196 * math.hypot(*deviation))[0] == "right"


def by_pairs(lora, dora, *, z=None, least=2):
    differences = [one - other for one, other in zip(lora, dora, strict=True)]
    if len(differences) < least:
        return "noise"
    mean, count = statistics.mean(differences), len(differences)
    quantile = z or scipy.stats.t.ppf(0.975, count - 1)
    half = quantile * statistics.stdev(differences) / count**0.5 if count > 1 else 0
    return "noise" if abs(mean) <= half else "DoRA" if mean > 0 else "LoRA"


def unpaired(lora, dora):
    if len(lora) < 2:
        return "noise"
    found = scipy.stats.ttest_ind(lora, dora).confidence_interval()
    return "noise" if found.low <= 0 <= found.high else "DoRA" if found.low > 0 else "LoRA"


def lower_mean(lora, dora):
    return "DoRA" if statistics.mean(dora) < statistics.mean(lora) else "LoRA"


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (by_pairs, "right", "right"),
        (lower_mean, "wrong", "a method wins in every case"),
        (unpaired, "wrong", "seed by seed"),
        (lambda lora, dora: by_pairs(dora, lora), "wrong", "names are swapped"),
        (lambda lora, dora: by_pairs(lora, dora, z=1.96), "wrong", "Student's t is 12.7"),
        (lambda lora, dora: by_pairs(lora, dora, least=1), "wrong", "one seed has no interval"),
        (lambda lora, dora: "noise", "wrong", "seed by seed"),
        (lambda lora, dora: "draw", "wrong", "decide returned 'draw'"),
        (lambda lora, dora: None, "not attempted", "not attempted"),
        (lambda lora: "noise", "error", "TypeError"),
        ("noise", "wrong", "a function is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_decide(value, state, reason):
    found, message, _ = judge("q6_4", value)
    assert (found, reason in message) == (state, True), message


@pytest.mark.parametrize(("lora", "dora", "right"), q06.DECISIONS)
def test_the_wanted_decision_is_scipys_paired_test(lora, dora, right):
    if len(lora) < 2:
        assert right == "noise"
        return
    found = scipy.stats.ttest_rel(lora, dora).confidence_interval(0.95)
    assert right == ("noise" if found.low <= 0 <= found.high else "DoRA" if found.low > 0 else "LoRA")


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (
            "I stay with LoRA here. The difference is 0.003 nats and its interval of -0.01 to 0.02 spans zero. A step "
            "of DoRA takes half as long again, and that buys nothing I could measure.",
            "handed in",
        ),
        ("DoRA is better.", "wrong"),
        (..., "not attempted"),
    ],
)
def test_a_verdict_is_three_sentences(value, state):
    assert judge("q6_5", value)[0] == state
