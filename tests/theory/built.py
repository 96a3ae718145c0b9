"""Small models with and without PEFT's adapters that the closed form's tests count."""

from __future__ import annotations

import peft
import torch

from labkit.models.methods import Method
from labkit.models.shapes import ModelShape

SMALL = ModelShape("small", "qwen3", 192, 128, 384, 2, 4, 2, 32, tied_embeddings=True, qk_norm=True)
QV, MLP = ("q_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")


def method(kind: str, **changes) -> Method:
    return Method(**{"kind": kind, "rank": 16, "dropout": 0.0, **changes})


def with_adapters(model: torch.nn.Module, chosen: Method) -> torch.nn.Module:
    config = peft.LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules=list(chosen.targets),
        layers_to_transform=list(chosen.layers) or None,
        use_dora=chosen.uses_magnitude,
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=chosen.adapter_dtype != "bfloat16")


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
