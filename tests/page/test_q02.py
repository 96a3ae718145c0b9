"""The visible checks of lesson 02: the right answer, each recognised mistake, no answer, and code that raises."""

import pytest
import torch
from torch.nn.functional import linear

from labkit.models.methods import TARGETS
from labkit.models.shapes import shape_of
from labkit.page.exercises import judge
from labkit.page.questions import q02
from labkit.theory import lora

HIDDEN = {"qwen3-4b": 2560, "qwen3-0.6b": 1024, "smollm2-135m": 576, "llama-3.1-8b": 4096, "qwen3-32b": 5120}


def count(of_layer, *, layers=True, targets=None):
    def answer(shape, rank, asked):
        each = sum(of_layer(*shape.linears()[name]) for name in targets or asked)
        return rank * each * (shape.n_layers if layers else 1)

    return answer


def both(d_in, d_out):
    return d_in + d_out


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (count(both), "right", "right"),
        (lambda shape, rank, targets: float(count(both)(shape, rank, targets)), "right", "right"),
        (count(both, layers=False), "wrong", "one layer"),
        (lambda s, r, t: r * s.n_layers * len(t) * 2 * HIDDEN[s.name], "wrong", "hidden x hidden"),
        (count(lambda d_in, d_out: 2 * d_in), "wrong", "out differs from in"),
        (count(lambda d_in, d_out: 2 * d_out), "wrong", "in differs from out"),
        (count(lambda d_in, d_out: d_in), "wrong", "B is missing"),
        (count(lambda d_in, d_out: d_out), "wrong", "A is missing"),
        (count(lambda d_in, d_out: d_in * d_out), "wrong", "frozen weight's numbers"),
        (count(both, targets=TARGETS[:4]), "wrong", "q, k, v and o whatever"),
        (count(both, targets=TARGETS), "wrong", "all seven linears whatever"),
        (count(lambda d_in, d_out: 3), "wrong", "should be"),
        (lambda shape, rank, targets: "many", "wrong", "gives many"),
        (lambda shape, rank, targets: None, "not attempted", "not attempted"),
        (lambda shape: 1, "error", "TypeError"),
        (87_293_952, "wrong", "a function is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_counts(value, state, reason):
    found, message, _ = judge("q2_1", value)
    assert (found, reason in message) == (state, True), message


@pytest.mark.parametrize(("name", "rank", "targets"), q02.COUNT_CASES)
def test_the_wanted_count_is_labkits_and_mistakes_differ_from_it(name, rank, targets):
    found = q02.counts(shape_of(name), rank, targets)
    right = found.pop("right")
    assert right == lora.lora_param_count(shape_of(name), rank=rank, targets=targets)
    same = {mistake for mistake, number in found.items() if number == right}
    assert same <= ({"everything"} if targets == TARGETS else {"attention"} if targets == TARGETS[:4] else set())


def test_the_text_of_the_lesson_shows_none_of_the_cases():
    shown = [(name, 32, TARGETS) for name in HIDDEN]
    assert not set(shown) & set(q02.COUNT_CASES)


def forward(scale, *, base=True):
    def answer(x, w, a, b, alpha):
        return (x @ w.T if base else 0) + scale(alpha, a, b) * (x @ a.T @ b.T)

    return answer


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (forward(lambda alpha, a, b: alpha / len(a)), "right", "right"),
        (lambda x, w, a, b, alpha: linear(x, w + alpha / b.shape[1] * b @ a), "right", "right"),
        (lambda x, w, a, b, alpha: x.double() @ (w + alpha / len(a) * b @ a).double().T, "right", "right"),
        (forward(lambda alpha, a, b: alpha), "wrong", "alpha/r, not alpha"),
        (forward(lambda alpha, a, b: 1), "wrong", "alpha/r is missing"),
        (forward(lambda alpha, a, b: len(a) / alpha), "wrong", "you have r/alpha"),
        (forward(lambda alpha, a, b: alpha / a.shape[1]), "wrong", "number of rows of A"),
        (forward(lambda alpha, a, b: alpha / len(b)), "wrong", "number of columns of B"),
        (forward(lambda alpha, a, b: 0), "wrong", "the update is missing"),
        (forward(lambda alpha, a, b: alpha / len(a), base=False), "wrong", "frozen part W0 x is missing"),
        (lambda x, w, a, b, alpha: alpha / len(a) * (x @ w.T + x @ a.T @ b.T), "wrong", "multiplies the update only"),
        (lambda x, w, a, b, alpha: x @ w.T - alpha / len(a) * (x @ a.T @ b.T), "wrong", "the numbers differ"),
        (lambda x, w, a, b, alpha: x, "wrong", "of shape (5,) is expected"),
        (lambda x, w, a, b, alpha: 3, "wrong", "your result is int"),
        (lambda x, w, a, b, alpha: x @ w + x @ a @ b, "error", "RuntimeError"),
        (lambda x, w, a, b, alpha: None, "not attempted", "not attempted"),
        (3, "wrong", "a function is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_forward(value, state, reason):
    found, message, _ = judge("q2_2", value)
    assert (found, reason in message) == (state, True), message


def test_rslora_is_recognised_where_it_differs():
    found, message, _ = judge("q2_2", forward(lambda alpha, a, b: alpha / len(a) ** 0.5))
    assert (found, "is rsLoRA" in message) == ("wrong", True)


def test_every_recognised_output_differs_from_the_right_one_in_some_case():
    results = [q02.outputs(*q02.forward_case(place), case[4]) for place, case in enumerate(q02.FORWARD_CASES)]
    for mistake in q02.FORWARD_REASONS:
        assert not all(torch.allclose(result[mistake], result["right"]) for result in results)


def test_an_answer_may_not_change_what_it_was_given():
    def answer(x, w, a, b, alpha):
        w += alpha / len(a) * b @ a
        return x @ w.T

    assert judge("q2_2", answer)[0] == "right"


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (174.587904, "right", "right"),
        (174, "right", "right"),
        (175.5, "right", "right"),
        (166.5, "wrong", "that is MiB"),
        (87.3, "wrong", "2 bytes a parameter"),
        (43.6, "wrong", "millions of parameters"),
        (349.2, "wrong", "rank 32"),
        (174.6e6, "wrong", "that is bytes"),
        (40, "wrong", "lecture's 40 M"),
        (80, "wrong", "lecture's 40 M"),
        (160, "wrong", "lecture's 40 M"),
        (500, "wrong", "within 1 %"),
        ("174.6", "wrong", "within 1 %"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_file(value, state, reason):
    found, message, _ = judge("q2_3", value)
    assert (found, reason in message) == (state, True), message


def test_the_wanted_size_is_what_peft_saves(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(100, 60)), LoraConfig(r=16, target_modules=["0"]))
    model.save_pretrained(tmp_path)
    header = (tmp_path / "adapter_model.safetensors").stat().st_size - 4 * 16 * (100 + 60)
    assert 0 < header < 400


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (
            "Nothing moves. The gradient of A contains B and the gradient of B contains A. Both are zero for ever.",
            "handed in",
        ),
        (
            "损失一直不变。A 的梯度里有因子 B，B 的梯度里有因子 A，两个都是零，梯度也就是零。于是优化器永远不动。",
            "handed in",
        ),
        ("It does not learn.", "wrong"),
        (3, "wrong"),
        (..., "not attempted"),
    ],
)
def test_an_explanation_is_three_sentences(value, state):
    assert judge("q2_4", value)[0] == state
