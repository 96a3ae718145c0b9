"""The twins of lesson 06 are equal where they should be, and the comparison notices where they are not."""

import pytest
import torch

from labkit.models.methods import Method
from labkit.models.shapes import shape_of
from labkit.theory import dora
from labkit.training.twins import equal_to_peft, parts, peft_twin, twin_models

NAMES = {"output", "x", "lora_A", "lora_B", "magnitude"}


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"dropout": 0.1}, {"dtype": torch.bfloat16}])
def test_twins_are_equal(options):
    found = equal_to_peft(**options)
    assert found == dict.fromkeys(NAMES, True)


def test_a_wrong_axis_is_noticed(monkeypatch):
    def by_column(self):
        return dora.magnitudes((self.base.weight + self.delta_weight()).T)[: len(self.magnitude)].detach()

    monkeypatch.setattr(dora.DoRALinear, "norm", by_column)
    found = equal_to_peft()
    assert not found["output"]
    assert not found["magnitude"]


def test_a_twin_has_our_parameters_and_a_base_of_its_own():
    ours = dora.DoRALinear(torch.nn.Linear(6, 4), rank=2, alpha=4)
    theirs = peft_twin(ours, alpha=4)
    assert all(torch.equal(parameter, getattr(ours, name)) for name, parameter in parts(theirs).items())
    assert torch.equal(theirs.base_layer.weight, ours.base.weight)
    assert theirs.base_layer.weight.data_ptr() != ours.base.weight.data_ptr()


def test_whole_models_have_equal_logits():
    ours, theirs = twin_models(shape_of("tiny"), Method(kind="dora", rank=2, dropout=0.0))
    ids = torch.arange(16)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
