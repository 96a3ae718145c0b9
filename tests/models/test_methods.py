"""Methods and steps: what is settled, what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from labkit.errors import LabError
from labkit.models.methods import (
    BLOCK_SIZES,
    KINDS,
    TARGETS,
    Method,
    Step,
    parse_layers,
    parse_modules,
    parse_targets,
)


def method(**changes) -> Method:
    return Method(**{"kind": "lora", **changes})


def test_alpha_is_twice_the_rank_unless_given():
    assert (method(rank=8).alpha, method(rank=8).scale) == (16, 2.0)
    assert method(rank=8, alpha=4).scale == 0.5
    assert method(rank=1).scale == 2.0


def test_replacing_the_rank_keeps_alpha():
    assert replace(method(rank=8), rank=32).scale == 0.5
    assert replace(method(rank=8), rank=32, alpha=None).scale == 2.0


def test_methods_are_frozen_and_hashable():
    assert len({method(), method(), method(rank=4)}) == 2
    with pytest.raises(FrozenInstanceError):
        method().rank = 4


@pytest.mark.parametrize(
    ("kind", "quantized", "adapters", "magnitude"),
    [
        ("full", False, False, False),
        ("spectrum", False, False, False),
        ("lora", False, True, False),
        ("qlora", True, True, False),
        ("dora", False, True, True),
        ("qdora", True, True, True),
    ],
)
def test_kinds(kind, quantized, adapters, magnitude):
    layers = (0,) if kind == "spectrum" else ()
    made = method(kind=kind, layers=layers)
    assert (made.quantized, made.uses_adapters, made.uses_magnitude) == (quantized, adapters, magnitude)


def test_targets_keep_the_order_of_the_layer():
    assert method(targets=("v_proj", "q_proj")).targets == ("q_proj", "v_proj")
    assert method(targets=["up_proj"]) == method(targets=("up_proj",))
    assert parse_targets(" all ") == TARGETS
    assert parse_targets("v_proj, q_proj,") == ("q_proj", "v_proj")


def test_modules_settle_targets_and_layers():
    made = method(modules=("10.up_proj", "2.up_proj", "2.q_proj"))
    assert made.modules == ("2.q_proj", "2.up_proj", "10.up_proj")
    assert (made.targets, made.layers) == (("q_proj", "up_proj"), (2, 10))
    other = replace(made, modules=("3.v_proj",))  # not the old ones
    assert (other.targets, other.layers) == (("v_proj",), (3,))


def test_a_layer_sees_its_own_targets():
    made = method(kind="spectrum", modules=("2.q_proj", "2.up_proj", "10.up_proj"))
    assert [made.at(layer) and made.at(layer).targets for layer in (1, 2, 10)] == [
        None,
        ("q_proj", "up_proj"),
        ("up_proj",),
    ]
    assert method().at(7) == method()
    assert method(layers=(3,)).at(7) is None


def test_modules_are_written_with_commas():
    assert parse_modules(" 3.up_proj, 4.q_proj,") == ("3.up_proj", "4.q_proj")
    assert parse_modules("") == ()
    with pytest.raises(LabError, match="a layer number and a linear"):
        parse_modules("up_proj")


def test_layers_are_sorted():
    assert method(kind="spectrum", layers=(3, 1)).layers == (1, 3)
    assert parse_layers("0, 3,10-12") == (0, 3, 10, 11, 12)
    assert parse_layers("") == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("kind", value) for value in ("LoRA", "", None, 3)),
        *(("rank", value) for value in (0, -8, 8.0, "8", True, None)),
        *(("alpha", value) for value in (0, -16, float("nan"), float("inf"), "16", True)),
        *(("dropout", value) for value in (-0.1, 1, 1.5, float("nan"), "0", True, None)),
        *(("targets", value) for value in ((), "q_proj", ("lm_head",), ("q_proj", "q_proj"), (3,))),
        *(("layers", value) for value in ((-1,), (1.5,), (2, 2), ("3",), (True,))),
        *(("dtype", value) for value in ("bf16", "int8", None)),
        *(("adapter_dtype", value) for value in ("float16", "bf16")),
        *(("block_size", value) for value in (0, 48, 65, 8192, "64")),
    ],
)
def test_bad_values_are_echoed_with_a_rule_and_a_fix(field, value):
    with pytest.raises(LabError) as error:
        method(**{field: value})
    assert error.value.given == f"{field}={value!r}"
    assert error.value.rule
    assert error.value.fix


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"modules": ("3.lm_head",)}, "a layer number and a linear"),
        ({"modules": (3,)}, "a layer number and a linear"),
        ({"modules": ("3.q_proj", "3.q_proj")}, "named twice"),
        ({"modules": "3.q_proj"}, "as a tuple"),
        ({"kind": "full", "modules": ("3.q_proj",)}, "trains every module"),
        ({"kind": "spectrum"}, "none is selected"),
        ({"kind": "full", "layers": (1,)}, "trains every layer"),
        ({"kind": "lora", "kbit_prepare": True}, "has none"),
        ({"kind": "full", "kbit_prepare": True}, "has none"),
    ],
)
def test_values_that_contradict_each_other(changes, rule):
    with pytest.raises(LabError, match=rule):
        method(**changes)


def test_what_bitsandbytes_accepts_as_a_block_is_accepted():
    import bitsandbytes.functional as bnb
    import torch

    for size in BLOCK_SIZES:
        bnb.quantize_4bit(torch.ones(size), blocksize=size, quant_type="nf4")
        assert method(block_size=size).block_size == size


@pytest.mark.parametrize("text", ["", " , ", "q_proj,lm_head", "all,q_proj", "q_proj,q_proj"])
def test_bad_target_lists(text):
    with pytest.raises(LabError, match="targets="):
        parse_targets(text)


@pytest.mark.parametrize("text", ["a", "3-", "-3", "1-2-3", "1.5", "²"])
def test_bad_layer_lists(text):
    with pytest.raises(LabError, match="neither a layer number nor a range"):
        parse_layers(text)


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(LabError, match="neither a layer number nor a range"):
        parse_layers("5-2")


def test_a_step_counts_tokens():
    assert Step(batch=3, seq_len=7).tokens == 21
    assert Step(batch=1, seq_len=2).tokens == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("batch", value) for value in (0, -1, 1.0, True)),
        *(("seq_len", value) for value in (1, 0, "1024")),
        ("optimizer", "adam"),
        ("attention", "flash"),
        ("loss", "liger"),
    ],
)
def test_bad_steps(field, value):
    with pytest.raises(LabError) as error:
        Step(**{field: value})
    assert error.value.given == f"{field}={value!r}"


@pytest.mark.parametrize("loss", ["fused", "chunked"])
def test_only_the_full_loss_has_logits_to_keep(loss):
    assert Step(loss="full", keep_logits=True).keep_logits
    with pytest.raises(LabError, match="never makes all logits"):
        Step(loss=loss, keep_logits=True)


def test_every_kind_of_the_design_is_there():
    assert KINDS == ("full", "lora", "qlora", "dora", "qdora", "spectrum")
