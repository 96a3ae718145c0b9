"""Merging an adapter into its base, the right way: dequantize first, then add.

Merging into NF4 weights in place rounds ``W + (alpha/r) B A`` to 16 levels again, and the update is smaller than the
distance between two levels: a large part of it is lost, more of a small update than of a large one (`merge_errors`
measures it; lesson 02 saw a fifth to more than the whole of a short training's update).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def merge_correctly(model: PeftModel, *, dtype: str | None = None) -> PreTrainedModel:
    """A plain model without adapter and without quantization: dequantized, merged in float32, then rounded once.

    ``model`` is used up: its layers become the result's.

    Args:
        model: base with adapter, from `checkpoints.reload` or a trainer.
        dtype: element type of the result; None keeps the base's. A bfloat16 result rounds every weight to 8 bits of
            precision once more, a float32 one is exact to about 1e-6 of the update.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    from labkit.training.loading import quiet

    with quiet():
        adapter, config = get_peft_model_state_dict(model, save_embedding_layers=False), model.peft_config["default"]
        base = model.unload()
        wanted = getattr(torch, dtype) if dtype else base.dtype
        if getattr(base, "is_quantized", False):
            base = base.dequantize(dtype=torch.float32)
        base = base.float()
        merged = get_peft_model(base, config)
        set_peft_model_state_dict(merged, adapter)
        return merged.merge_and_unload().to(wanted)


def merge_errors(model: PeftModel, layer: str) -> dict[str, float]:
    """Error of three ways to merge one 4-bit linear, as a share of the adapter's update (Frobenius norms).

    Args:
        model: quantized base with adapter; it is left as it was.
        layer: full name of an adapted linear, e.g. ``model.layers.0.mlp.up_proj``.

    Returns:
        ``into_4_bit``: PEFT's merge on the quantized model; ``dequantize_first``: `merge_correctly` in float32;
        ``dequantize_first_bfloat16``: the same, rounded to bfloat16.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    module = model.get_base_model().get_submodule(layer)
    packed = module.base_layer.weight
    weight = dequantize_4bit(packed.data, packed.quant_state).double()
    update = module.get_delta_weight("default").detach().double()
    exact = weight + update
    again, state = quantize_4bit(exact.to(packed.quant_state.dtype), quant_type="nf4", compress_statistics=True)
    ways = {
        "into_4_bit": dequantize_4bit(again, state),
        "dequantize_first": weight.float() + update.float(),
        "dequantize_first_bfloat16": (weight.float() + update.float()).to(torch.bfloat16),
    }
    return {name: float((merged.double() - exact).norm() / update.norm()) for name, merged in ways.items()}
