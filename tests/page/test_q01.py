"""The visible checks of lesson 01; the counts are compared with PEFT-free arithmetic and with labkit's prediction."""

from itertools import combinations, product

import pytest

from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.shapes import CATALOGUE
from labkit.page.exercises import judge
from labkit.page.memory_figures import predict_choice, spare_gib
from labkit.page.questions import q01
from labkit.theory.memory import predict
from labkit.theory.resident import adapter_tensors, trainable_tensors

ENGLISH = (
    "The gradient must pass every frozen layer. So norms keep their input. LoRA adds a float32 copy of its own input."
)
CHINESE = (
    "梯度必须穿过每个冻结的层，才能到达底层。沿路的非线性运算都要用到自己的输入，与冻结无关。适配器还要另存一份输入。"
)


def adapters(shape, rank):
    return rank * shape.n_layers * sum(a + b for a, b in shape.linears().values())


def static(full, base, adapter, *, layers=True):
    def answer(shape, kind, rank):
        n = adapters(shape, rank) if layers else adapters(shape, rank) // shape.n_layers
        return full * shape.n_params if kind == "full" else base * shape.n_params + adapter * n

    return answer


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (static(8, 2, 16), "right", "right"),
        (static(12, 2, 16), "wrong", "12 bytes a parameter"),
        (static(16, 2, 16), "wrong", "float32 convention"),
        (static(6, 2, 16), "wrong", "one of the four is missing"),
        (static(8, 4, 16), "wrong", "gets no gradient"),
        (static(8, 8, 16), "wrong", "neither gradient nor moments"),
        (static(8, 8, 0), "wrong", "that is full fine-tuning"),
        (static(8, 2, 8), "wrong", "adapters in float32"),
        (static(8, 2, 12), "wrong", "adapter's four parts"),
        (static(8, 2, 0), "wrong", "the adapters are missing"),
        (static(8, 2, 16, layers=False), "wrong", "one layer"),
        (lambda shape, kind, rank: 8 * (shape.n_params + adapters(shape, rank)), "wrong", "has no adapters"),
        (static(7, 2, 16), "wrong", "should be"),
        (lambda shape, kind, rank: "many", "wrong", "gives many"),
        (lambda shape, kind, rank: None, "not attempted", "not attempted"),
        (lambda shape: 1, "error", "TypeError"),
        (3, "wrong", "a function is asked for"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_static_bytes(value, state, reason):
    found, message, _ = judge("q1_1", value)
    assert (found, reason in message) == (state, True), message


@pytest.mark.parametrize(("name", "kind", "rank"), q01.CASES)
def test_static_bytes_are_labkits(name, kind, rank):
    shape, method = CATALOGUE[name], Method(kind=kind, rank=rank)
    prediction = predict(shape, method, Step())
    gradients = sum(count * size * width for count, size, width in trainable_tensors(shape, method))
    counters = 4 * sum(count for count, _, _ in trainable_tensors(shape, method))
    assert q01.wanted_static(shape, kind, rank) == prediction.static_bytes + gradients - counters
    assert q01.adapter_params(shape, rank) == sum(
        n * size for n, size, _ in adapter_tensors(shape, Method(kind="lora", rank=rank))
    )


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (9.2136, "right", "right"),
        (9.0, "right", "right"),
        (10, "right", "right"),
        (3.65, "wrong", "logits are missing"),
        (6.1, "wrong", "3,072 tokens"),
        (14.6, "wrong", "weights in bf16"),
        (9.2e9, "wrong", "that is bytes"),
        (30, "wrong", "times labkit's prediction"),
        ("9.2", "wrong", "times labkit's prediction"),
        (True, "wrong", "times labkit's prediction"),
        (..., "not attempted", "not attempted"),
    ],
)
def test_peak(value, state, reason):
    found, message, _ = judge("q1_2", value)
    assert (found, reason in message) == (state, True), message


FIX = {"checkpointing": True, "kbit_prepare": False}


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (FIX, "right", "right"),
        (FIX | {"optimizer": "adamw"}, "right", "right"),  # as it was: no change
        (FIX | {"loss": "fused"}, "wrong", "more than needed"),
        ({"checkpointing": True}, "wrong", "too much"),
        ({"checkpointing": True, "loss": "fused"}, "wrong", "is kept for the context"),
        ({"seq_len": 512}, "wrong", "part of the task"),
        ({"checkpoint": True}, "wrong", "did you mean checkpointing"),
        ({"loss": "none"}, "wrong", "loss must be one of"),
        ({"checkpointing": ...}, "not attempted", "not attempted"),
        ({}, "not attempted", "not attempted"),
        (..., "not attempted", "not attempted"),
        (3, "wrong", "a dict of changes"),
    ],
)
def test_changes(value, state, reason):
    found, message, _ = judge("q1_3", value)
    assert (found, reason in message) == (state, True), message


def test_two_changes_are_the_fewest_and_only_one_pair_does_it():
    options = {
        "checkpointing": [True],
        "kbit_prepare": [False],
        "loss": ["fused", "chunked"],
        "optimizer": ["adamw_foreach", "adamw_8bit", "paged_adamw_8bit", "sgd"],
        "adapter_dtype": ["bfloat16", "autocast"],
        "dropout": [0.0],
        "dtype": ["float16", "float32"],
        "double_quant": [False],
        "block_size": [32, 128, 4096],
        "attention": ["eager"],
        "padded": [True],
        "keep_logits": [True],
    }

    def fitting(size):
        for names in combinations(options, size):
            for values in product(*(options[name] for name in names)):
                changes = dict(zip(names, values, strict=True))
                try:
                    prediction = predict_choice({**q01.OLD_RECIPE, **changes})
                except LabError:  # settings that contradict each other
                    continue
                if spare_gib(prediction, q01.CARD_GIB) >= 0:
                    yield changes

    assert list(fitting(1)) == []
    assert list(fitting(q01.FEWEST)) == [FIX]


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (ENGLISH, "handed in"),
        (CHINESE, "handed in"),
        ("One. Two. Three.", "wrong"),
        (
            "it is wrong because of many things and I could go on about them for very long without ever ending it",
            "wrong",
        ),
        (
            "ok 1.5 2.5 3.5 and this line is long enough to have eighty characters but is no three sentences at all",
            "wrong",
        ),
        (3, "wrong"),
        ("  ", "not attempted"),
        (..., "not attempted"),
    ],
)
def test_an_explanation_is_three_sentences(value, state):
    assert judge("q1_4", value)[0] == state
