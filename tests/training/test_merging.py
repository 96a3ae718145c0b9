"""Merging: the merged model answers as base and adapter do, and how much the careless way loses."""

import pytest
import torch
from torch.testing import assert_close

from labkit.training.merging import merge_correctly, merge_errors

LAYER = "model.layers.0.mlp.up_proj"
IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def trained(trainer_for):
    def train(kind: str, **options):
        trainer = trainer_for(kind, steps=10, **options)
        trainer.train()
        return trainer.model.eval()

    return train


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", ["lora", "qlora", "dora", "qdora"])
def test_the_merged_model_is_plain_and_answers_the_same(trained, kind):
    model = trained(kind)
    with_adapter = logits(model)
    with model.disable_adapter():
        assert (logits(model) - with_adapter).abs().max() > 0.1  # the adapter does something
    merged = merge_correctly(model)
    assert_close(logits(merged), with_adapter, atol=2e-4, rtol=1e-4)
    assert {type(module).__name__ for module in merged.modules() if "inear" in type(module).__name__} == {"Linear"}
    assert not hasattr(merged, "peft_config") and not getattr(merged, "is_quantized", False)


@pytest.mark.parametrize(("asked", "expected"), [(None, "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_the_result_has_one_element_type_the_one_asked_for(trained, asked, expected):
    merged = merge_correctly(trained("qlora", dtype="bfloat16"), dtype=asked)
    assert {weight.dtype for weight in merged.parameters()} == {getattr(torch, expected)}
    assert merged.lm_head.weight is merged.get_input_embeddings().weight  # still tied


def test_the_merged_model_saves_and_loads_without_bitsandbytes(trained, tmp_path):
    from transformers import AutoModelForCausalLM

    model = trained("qlora")
    with_adapter = logits(model)
    merge_correctly(model).save_pretrained(str(tmp_path))
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32)
    assert again.config.to_dict().get("quantization_config") is None
    assert_close(logits(again.eval()), with_adapter, atol=2e-4, rtol=1e-4)


def test_merging_into_four_bits_loses_much_of_the_update(trained):
    errors = merge_errors(trained("qlora"), LAYER)
    assert errors["dequantize_first"] < 1e-5 < 0.05 < errors["into_4_bit"]
    assert errors["dequantize_first"] < errors["dequantize_first_bfloat16"] < errors["into_4_bit"]


def test_the_error_reported_is_the_one_that_pefts_merge_makes(trained):
    """`merge_errors` against PEFT's own merge into the quantized weights."""
    from bitsandbytes.functional import dequantize_4bit

    model = trained("qlora")
    reported = merge_errors(model, LAYER)["into_4_bit"]
    module = model.get_base_model().get_submodule(LAYER)
    state = module.base_layer.weight
    before = dequantize_4bit(state.data, state.quant_state).double()
    update = module.get_delta_weight("default").detach().double()
    with pytest.warns(UserWarning, match="4-bit"):
        module.merge()
    state = module.base_layer.weight
    after = dequantize_4bit(state.data, state.quant_state).double()
    assert float((after - before - update).norm() / update.norm()) == pytest.approx(reported, rel=1e-3)


def test_measuring_the_errors_changes_nothing(trained):
    model = trained("qlora")
    before = logits(model)
    merge_errors(model, LAYER)
    assert torch.equal(logits(model), before)
