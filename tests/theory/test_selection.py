"""Spectrum's rule of selection and its controls."""

import pytest

from labkit.errors import LabError
from labkit.models.methods import TARGETS
from labkit.models.shapes import shape_of
from labkit.theory.lora import lora_param_count
from labkit.theory.selection import lora_params, module_parts, select, selected_params

SCORES = {f"{layer}.{name}": (layer * 7) % 10 + place for layer in range(10) for place, name in enumerate(TARGETS)}


def by_type(modules):
    return {name: [layer for layer, other in map(module_parts, modules) if other == name] for name in TARGETS}


def test_each_type_gives_its_own_share_rounded_down():
    chosen = by_type(select(SCORES, top_percent=25))
    assert chosen == {name: [4, 7] for name in TARGETS}  # 9 and 8 of (layer * 7) % 10; int(2.5) = 2


def test_the_lowest_are_the_other_end():
    assert by_type(select(SCORES, top_percent=25, order="low")) == {name: [0, 3] for name in TARGETS}


def test_equal_scores_stay_in_the_order_of_layers():
    assert select(dict.fromkeys(SCORES, 1.0), top_percent=10) == tuple(f"0.{name}" for name in TARGETS)


def test_random_takes_as_many_of_each_type_and_depends_on_the_seed_alone():
    chosen = select(SCORES, top_percent=25, order="random", seed=1)
    assert {name: len(layers) for name, layers in by_type(chosen).items()} == dict.fromkeys(TARGETS, 2)
    assert chosen == select(dict(reversed(SCORES.items())), top_percent=25, order="random", seed=1)
    assert chosen != select(SCORES, top_percent=25, order="random", seed=2)


def test_everything_is_a_hundred_percent():
    assert set(select(SCORES, top_percent=100)) == set(SCORES)


@pytest.mark.parametrize("share", [0, -5, 101, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(LabError, match="above 0 and at most 100"):
        select(SCORES, top_percent=share)


def test_a_share_of_nothing_and_an_unknown_order():
    with pytest.raises(LabError, match="are none"):
        select(SCORES, top_percent=9)
    with pytest.raises(LabError, match="an order is one of"):
        select(SCORES, top_percent=25, order="best")


@pytest.mark.parametrize("module", ["up_proj", "x.up_proj", "3.lm_head", "-1.up_proj", ""])
def test_a_module_is_a_layer_and_a_linear(module):
    with pytest.raises(LabError, match="a layer number and a linear"):
        module_parts(module)


def test_counts_are_those_of_the_whole_model():
    shape = shape_of("qwen3-8b")
    everything = tuple(f"{layer}.{name}" for layer in range(shape.n_layers) for name in TARGETS)
    assert selected_params(shape, everything) == shape.linear_params()
    assert lora_params(shape, everything, rank=32) == lora_param_count(shape, rank=32) == 87_293_952
