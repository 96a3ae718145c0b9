"""A model on meta tensors as the installed stack would build it for a method: frozen, quantized, adapted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory.activations import autocast
from labkit.training.autocast import MetaAutocast
from labkit.training.ledger import add_adapters, random_model
from labkit.training.loading import bnb_config, freeze_all_but, quiet
from labkit.training.meta_kernels import Recomputation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(shape: ModelShape, method: Method, step: Step, *, device: str = "meta") -> torch.nn.Module:
    """The model of this shape, ready to train by this method.

    Args:
        device: ``meta``, or ``cpu`` for a real one with random weights (not for a 4-bit base).

    Raises:
        LabError: a block size that transformers cannot load.
    """
    model = random_model(shape, dtype=method.dtype, device=device, attention=step.attention)
    if method.quantized:
        quantize(model, method)
    if step.loss == "fused":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
    if method.kind == "spectrum":
        freeze_all_but(model, method)
    if method.kbit_prepare:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if method.uses_adapters:
        model = add_adapters(model, method)
        cast_adapters(model, method)
    return checkpointed(model, method) if step.checkpointing else model


def quantize(model: PreTrainedModel, method: Method) -> None:
    """Put the decoder's linears in NF4, by transformers and bitsandbytes themselves."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    replace_with_bnb_linear(model, get_keys_to_not_convert(model), bnb_config(method))
    dtype = getattr(torch, method.dtype)
    for linear in quantized_linears(model):
        linear.weight.data = linear.weight.data.to(dtype)
        linear.weight._quantize("meta")
        if linear.bias is not None:
            linear.bias.data = linear.bias.data.to(dtype)
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)


def quantized_linears(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """bitsandbytes' 4-bit linears in the model."""
    from bitsandbytes.nn import Linear4bit

    return (module for module in model.modules() if isinstance(module, Linear4bit))


def quantization_constants(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The tensors of every ``QuantState``: absmax, code and, doubly quantized, offset and the second level's two."""
    for linear in quantized_linears(model):
        state = linear.weight.quant_state
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.offset, state.state2.absmax, state.state2.code)


def cast_adapters(model: torch.nn.Module, method: Method) -> None:
    """Half-precision adapters where the method asks for them: PEFT casts to the base's type, which it skips on meta.

    On a 4-bit base TRL casts to bf16, and leaves DoRA's magnitude as it is.
    """
    half = not method.quantized and method.dtype != "float32"
    dtype = getattr(torch, method.dtype) if half else torch.bfloat16
    for name, parameter in model.named_parameters():
        stays = method.quantized and "magnitude" in name
        if parameter.requires_grad and method.adapter_dtype == "bfloat16" and not stays:
            parameter.data = parameter.data.to(dtype)


def checkpointed(model: torch.nn.Module, method: Method) -> torch.nn.Module:
    """Recompute every decoder layer, as transformers' Trainer switches it on; autocast is on in both passes."""
    with quiet():
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=recomputing(method))
        model.enable_input_require_grads()
    return model


def recomputing(method: Method) -> dict:
    """Options of ``torch.utils.checkpoint`` for this method."""

    @contextmanager
    def again() -> Iterator[None]:
        with Recomputation(), MetaAutocast() if autocast(method) else nullcontext():
            yield

    return {"use_reentrant": False, "context_fn": lambda: (nullcontext(), again())}


def optimizer_states(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Make and list the states: one update with empty gradients, so that the traced step is a later one.

    Paged ones are left out: they live in managed memory, outside the CUDA allocator.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        tensors = [tensor for tensor in state.values() if isinstance(tensor, torch.Tensor)]
        yield from (tensor for tensor in tensors if not getattr(tensor, "is_paged", False))


def count(model: torch.nn.Module) -> tuple[int, int]:
    """Elements that train, and all elements (a 4-bit weight counts what it stands for)."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    packed = {id(linear.weight): linear.weight.quant_state.shape.numel() for linear in quantized_linears(model)}
    return trained, sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())
