"""The weights that a run works with, against PEFT's own merge; the moments at which it is watched."""

import copy

import pytest
import torch

from labkit.errors import LabError
from labkit.models.methods import TARGETS, Method
from labkit.models.shapes import shape_of
from labkit.theory.dora import WeightChange, weight_change
from labkit.training.ledger import add_adapters, random_model
from labkit.training.weight_changes import chosen, effective_weights, four_moments, kept_changes, points, watch_changes

TINY = shape_of("tiny")


def moved(kind, targets=TARGETS):
    model = add_adapters(random_model(TINY, dtype="float32"), Method(kind=kind, rank=2, dropout=0.0, targets=targets))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.rand_like(parameter)
    return model


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "down_proj")])
def test_the_effective_weights_are_those_that_peft_merges(kind, targets):
    model = moved(kind, targets)
    found = effective_weights(model)
    merged = effective_weights(copy.deepcopy(model).merge_and_unload())
    assert len(found) == 7 * TINY.n_layers
    assert sorted(found) == sorted(merged)
    for name, weight in found.items():
        torch.testing.assert_close(weight, merged[name], atol=1e-6, rtol=1e-5)


def test_a_plain_model_has_its_own_weights_as_copies():
    model = random_model(TINY, dtype="float32")
    found = effective_weights(model)
    inner = model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(found["layers.1.mlp.down_proj"], inner)
    assert found["layers.1.mlp.down_proj"].data_ptr() != inner.data_ptr()
    assert list(effective_weights(model, only=["layers.1.mlp.down_proj"])) == ["layers.1.mlp.down_proj"]


def test_an_adapter_that_has_not_trained_changes_nothing_but_rounding():
    plain = random_model(TINY, dtype="float32")
    before = effective_weights(plain)
    after = effective_weights(add_adapters(plain, Method(kind="dora", rank=2)))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight)


def test_a_quantized_weight_is_refused():
    model = random_model(TINY, dtype="float32")
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(LabError, match="not quantized"):
        effective_weights(model)


def test_a_run_is_watched_at_the_moments_that_are_named():
    model, found = moved("lora"), {}
    start = effective_weights(model)
    watch = watch_changes(start, (2, 3), found)
    for step in (1, 2, 3):
        with torch.no_grad():
            model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight += 0.1
        watch.on_step_end(None, type("State", (), {"global_step": step}), None, model=model)
    assert sorted(found) == [2, 3]
    name = "layers.0.self_attn.q_proj"
    assert found[3][name] == weight_change(start[name], effective_weights(model)[name])
    assert found[3][name].direction > found[2][name].direction > 0
    assert found[3]["layers.1.self_attn.q_proj"].magnitude == 0
    assert len(chosen(found)) == 2 * 7 * TINY.n_layers
    assert len(chosen(found, "q_proj", "v_proj", last=True)) == 2 * TINY.n_layers
    assert chosen(found, "q_proj", last=True)[0] == found[3][name]
    assert points(found, "q_proj")[3][0] == (found[3][name].direction, found[3][name].magnitude)
    assert {moment: len(drawn) for moment, drawn in points(found, "q_proj").items()} == dict.fromkeys(
        (2, 3), TINY.n_layers
    )


def test_what_was_watched_comes_back_digit_by_digit(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    found = {step: {"layers.0.mlp.up_proj": WeightChange(1 / 3, step * 1e-9, 2.0)} for step in (6, 12)}
    assert kept_changes("watched", {"rank": 4}, lambda: found) == found
    assert kept_changes("watched", {"rank": 4}, lambda: {}) == found
    assert "watched: taken from" in capsys.readouterr().out
    assert kept_changes("watched", {"rank": 4}, lambda: {}, force=True) == {}


@pytest.mark.parametrize(("steps", "moments"), [(24, (6, 12, 18, 24)), (5, (1, 2, 3, 5)), (1, (1,)), (2, (1, 2))])
def test_three_moments_on_the_way_and_the_end(steps, moments):
    assert four_moments(steps) == moments
