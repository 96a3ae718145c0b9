"""A model with random weights as the installed stack would build it for a method, on meta tensors or real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory.activations import autocast
from labkit.training.autocast import MetaAutocast
from labkit.training.ledger import add_adapters, checkpointed, random_model
from labkit.training.loading import bnb_config, forbid_cpu_repacking, freeze_all_but
from labkit.training.meta_kernels import Recomputation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build(shape: ModelShape, method: Method, step: Step, *, device: str = "meta") -> torch.nn.Module:
    """The model of this shape, ready to train by this method.

    Args:
        device: ``meta``, or that of a real one with random weights; a 4-bit base is quantized layer by layer there.

    Raises:
        LabError: a block size that transformers cannot load.
    """
    first = "meta" if method.quantized else device
    model = random_model(shape, dtype=method.dtype, device=first, attention=step.attention)
    if method.quantized:
        quantize(model, method, device=device)
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
    return checkpointed(model, **recomputing(method, device=device)) if step.checkpointing else model


def quantize(model: PreTrainedModel, method: Method, *, device: str = "meta") -> None:
    """Put the decoder's linears of a model on meta in NF4, by transformers and bitsandbytes themselves.

    On another ``device`` everything gets random numbers there, one 16-bit matrix at a time.
    """
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    replace_with_bnb_linear(model, get_keys_to_not_convert(model), bnb_config(method))
    dtype = getattr(torch, method.dtype)
    for linear in quantized_linears(model):
        linear.weight = _with_data(linear.weight, _random(linear.weight, device, dtype))
        linear.weight._quantize(device)
        if linear.bias is not None:
            linear.bias.data = linear.bias.data.to(dtype)
    if device != "meta":
        _materialise(model, device)
        forbid_cpu_repacking(model)
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)


def _with_data(weight: torch.nn.Parameter, data: torch.Tensor) -> torch.nn.Parameter:
    """A 4-bit parameter that is not quantized yet, with other numbers: those of meta cannot be replaced in place."""
    options = {name: getattr(weight, name) for name in ("quant_type", "blocksize", "compress_statistics", "module")}
    return type(weight)(data, requires_grad=False, quant_storage=weight.quant_storage, **options)


def _random(like: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(like.shape, dtype=dtype, device=device).normal_(std=0.02)


def _materialise(model: PreTrainedModel, device: str) -> None:
    """Random numbers on ``device`` for what is still on meta, each tensor once; rotary tables are computed."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                real = torch.nn.Parameter(_random(parameter, device, parameter.dtype), requires_grad=False)
                setattr(module, name, real)
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    model.tie_weights()


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


def recomputing(method: Method, *, device: str) -> dict:
    """Options of ``torch.utils.checkpoint`` for this method; on a real device it restores autocast by itself."""
    lowered = autocast(method) and device == "meta"

    @contextmanager
    def again() -> Iterator[None]:
        with Recomputation(), MetaAutocast() if lowered else nullcontext():
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
