"""Training the linears alone, of all layers or of those within a budget."""

import pytest
import torch

from labkit.errors import LabError
from labkit.models.shapes import shape_of
from labkit.training.ledger import random_model
from labkit.training.loading import module_path
from labkit.training.updates import modules_within, spread, train_only_linears


@pytest.mark.parametrize(
    ("n_layers", "count", "layers"),
    [(4, 4, (0, 1, 2, 3)), (28, 2, (7, 21)), (3, 1, (1,)), (5, 2, (1, 3)), (1, 1, (0,))],
)
def test_layers_are_evenly_spread(n_layers, count, layers):
    assert spread(n_layers, count) == layers


def test_all_linears_of_the_decoder_train_and_nothing_else():
    shape, model = shape_of("tiny"), random_model(shape_of("tiny"), dtype="float32")
    linears = train_only_linears(model)
    assert len(linears) == 7 * shape.n_layers
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.{name}.weight" for name in linears}
    assert sum(linear.weight.numel() for linear in linears.values()) == shape.linear_params()
    assert all(linear is model.model.get_submodule(name) for name, linear in linears.items())


def test_a_model_above_the_limit_trains_some_layers_and_at_least_one():
    model = random_model(shape_of("tiny"), dtype="float32")
    per_layer = shape_of("tiny").linear_params() // 4
    layers = {
        limit: {name.split(".")[1] for name in train_only_linears(model, limit=limit)} for limit in (1, 2 * per_layer)
    }
    assert layers == {1: {"2"}, 2 * per_layer: {"1", "3"}}


@pytest.mark.parametrize("limit", [1, 400_000, 10**9])
def test_named_before_anything_is_loaded_they_are_the_same_linears(limit):
    linears = train_only_linears(random_model(shape_of("tiny"), dtype="float32"), limit=limit)
    assert [module_path(name) for name in modules_within(shape_of("tiny"), limit=limit)] == list(linears)


def test_sixteen_bit_weights_are_refused():
    with pytest.raises(LabError, match="float32"):
        train_only_linears(random_model(shape_of("tiny")))


def test_a_step_changes_the_linears_only():
    model = random_model(shape_of("tiny"), dtype="float32")
    linears, before = train_only_linears(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {f"model.{name}.weight" for name in linears}
