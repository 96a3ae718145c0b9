"""The update that fine-tuning makes without a low-rank constraint: the instrument of lessons 02 and 06."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.models.shapes import ModelShape

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

TRAINED_WEIGHTS = 150_000_000  # at most: in float32 with gradients and AdamW's moments they take 2.4 GB


def spread(n_layers: int, count: int) -> tuple[int, ...]:
    """``count`` of ``n_layers`` layer numbers, evenly spread.

    Example:
        >>> spread(28, 2), spread(4, 4)
        ((7, 21), (0, 1, 2, 3))
    """
    return tuple((2 * place + 1) * n_layers // (2 * count) for place in range(count))


def modules_within(shape: ModelShape, *, limit: int = TRAINED_WEIGHTS) -> tuple[str, ...]:
    """The linears that `train_only_linears` lets train, as ``Method(kind="spectrum", modules=...)`` takes them.

    Example:
        >>> from labkit.models.shapes import shape_of
        >>> modules_within(shape_of("qwen3-1.7b"))[:3], len(modules_within(shape_of("qwen3-1.7b")))
        (('7.q_proj', '7.k_proj', '7.v_proj'), 14)
    """
    layers = _layers_within(shape.n_layers, shape.linear_params() // shape.n_layers, limit)
    return tuple(f"{layer}.{name}" for layer in layers for name in shape.linears())


def train_only_linears(model: PreTrainedModel, *, limit: int = TRAINED_WEIGHTS) -> dict[str, nn.Linear]:
    """Freeze all of ``model`` but the linears of its decoder layers, the matrices that LoRA would adapt.

    Args:
        model: a decoder with float32 weights; its ``requires_grad`` flags change.
        limit: weights that may train. A model with more trains evenly spread layers only, at least one.

    Returns:
        name (``layers.3.mlp.up_proj``) -> the linear that trains.

    Raises:
        LabError: the weights are not float32, in which small updates would be rounded away.
    """
    import torch

    if model.dtype != torch.float32:
        rule = "an update is measured in float32: 16-bit weights round small updates away"
        raise LabError(f"a {model.dtype} model", rule, 'load it with dtype="float32"')
    layers = model.get_decoder().layers
    per_layer = sum(linear.weight.numel() for linear in _linears(layers[0]).values())
    chosen = _layers_within(len(layers), per_layer, limit)
    found = {f"layers.{i}.{name}": linear for i in chosen for name, linear in _linears(layers[i]).items()}
    model.requires_grad_(False)
    for linear in found.values():
        linear.weight.requires_grad_(True)
    return found


def _layers_within(n_layers: int, per_layer: int, limit: int) -> tuple[int, ...]:
    return spread(n_layers, max(1, min(n_layers, limit // per_layer)))


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    import torch

    return {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
