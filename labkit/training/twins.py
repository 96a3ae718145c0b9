"""A DoRA layer of this book and PEFT's, made alike and run alike: lesson 06, section 3."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from labkit.models.methods import Method
from labkit.models.shapes import ModelShape
from labkit.theory.dora import DoRALinear, add_dora
from labkit.training.ledger import add_adapters, random_model
from labkit.training.loading import quiet

TRAINED = ("lora_A", "lora_B", "magnitude")


def peft_twin(ours: DoRALinear, *, alpha: float, dropout: float = 0.0) -> nn.Module:
    """PEFT's DoRA layer on a copy of the same base, with the same A, B and m."""
    with quiet():
        from peft import LoraConfig, get_peft_model

        options = {"lora_alpha": alpha, "lora_dropout": dropout, "use_dora": True}
        config = LoraConfig(r=ours.rank, target_modules=["0"], **options)
        theirs = get_peft_model(nn.Sequential(copy.deepcopy(ours.base)), config).base_model.model[0]
    share(ours, theirs)
    return theirs


def parts(theirs: nn.Module) -> dict[str, nn.Parameter]:
    """A, B and m of PEFT's layer, under the names that `DoRALinear` has for them."""
    homes = (theirs.lora_A, theirs.lora_B, theirs.lora_magnitude_vector)
    return {name: home["default"].weight for name, home in zip(TRAINED, homes, strict=True)}


@torch.no_grad()
def share(ours: DoRALinear, theirs: nn.Module) -> None:
    """Give PEFT's layer the A, B and m of ours."""
    for name, parameter in parts(theirs).items():
        parameter.copy_(getattr(ours, name))


def equal_to_peft(*, bias: bool = False, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> dict[str, bool]:
    """Whether a layer of 64 inputs and 48 outputs, run forward and backward, gives PEFT's tensors to the last bit.

    Returns:
        ``output`` and the gradients ``x``, ``lora_A``, ``lora_B`` and ``magnitude`` -> whether `torch.equal` holds.
    """
    ours = DoRALinear(nn.Linear(64, 48, bias=bias, dtype=dtype), rank=8, alpha=16, dropout=dropout)
    _move(ours)
    theirs = peft_twin(ours, alpha=16, dropout=dropout)
    tokens = torch.randn(5, 64).to(dtype)
    mine, other = (_run(module, tokens) for module in (ours, theirs))
    found = {name: torch.equal(mine[name], other[name]) for name in mine}
    grads = {name: torch.equal(getattr(ours, name).grad, parameter.grad) for name, parameter in parts(theirs).items()}
    return found | grads


def _run(module: nn.Module, tokens: torch.Tensor) -> dict[str, Any]:
    x = tokens.clone().requires_grad_()
    torch.manual_seed(1)  # the same dropout mask
    y = module(x)
    y.float().square().sum().backward()
    return {"output": y, "x": x.grad}


@torch.no_grad()
def _move(layer: DoRALinear) -> None:
    """Away from the start, where B is zero and m is the norm."""
    layer.lora_B.normal_(std=0.1)
    layer.magnitude.mul_(0.8 + 0.4 * torch.rand(len(layer.magnitude)))


def twin_models(shape: ModelShape, method: Method) -> tuple[nn.Module, nn.Module]:
    """Two models of ``shape`` with the same random weights, A, B and m: one adapted by this book, one by PEFT."""
    ours = random_model(shape, dtype="float32")
    theirs = add_adapters(copy.deepcopy(ours), method)
    for name, layer in add_dora(ours, method).items():
        _move(layer)
        share(layer, theirs.base_model.model.get_submodule(name))
    return ours, theirs
