"""How a training run turns and stretches the weights that it adapts, at moments on the way: lesson 06, section 5.

Liu et al. 2024 (2402.09353), section 3.2, does this for the query and value matrices of full fine-tuning and LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.theory.dora import WeightChange, magnitudes, weight_change
from labkit.training.kept import kept
from labkit.training.loading import quiet

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, TrainerCallback
    from trl import SFTTrainer

Changes = dict[int, dict[str, WeightChange]]  # step -> name of the matrix -> how it has changed since the start


def effective_weights(model: PreTrainedModel, *, only: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The matrix that every linear of the decoder layers multiplies with, adapters of PEFT included; copies, (out, in).

    Args:
        model: plain, or with adapters of LoRA or DoRA.
        only: names of the linears that are wanted; none: all.

    Returns:
        name (``layers.3.self_attn.q_proj``) -> W0, W0 + scale B A, or with DoRA m/|V| (W0 + scale B A).

    Raises:
        LabError: a quantized base, whose rounding would hide small changes.
    """
    import torch

    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    found = {}
    with torch.no_grad():
        for number, layer in enumerate(decoder.layers):
            for name, linear in _linears(layer):
                if not only or f"layers.{number}.{name}" in only:
                    found[f"layers.{number}.{name}"] = _effective(linear)
    return found


def _linears(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    import torch

    adapted: list[str] = []
    for name, module in layer.named_modules():
        if any(name.startswith(f"{outer}.") for outer in adapted):
            continue  # a part of an adapted linear: its base, A, B or m
        if hasattr(module, "get_delta_weight"):
            adapted.append(name)
            yield name, module
        elif isinstance(module, torch.nn.Linear):
            yield name, module


def _effective(linear: nn.Module) -> torch.Tensor:
    base = getattr(linear, "base_layer", linear)
    if not base.weight.is_floating_point():
        rule = "a change of weights is measured on weights that are not quantized"
        raise LabError(f"a base of {base.weight.dtype}", rule, "use full, lora or dora")
    if base is linear:
        return base.weight.detach().clone()
    weight = base.weight + linear.get_delta_weight("default")
    if "default" in linear.lora_magnitude_vector:
        weight = (linear.lora_magnitude_vector["default"].weight / magnitudes(weight))[:, None] * weight
    return weight.detach().clone()


def watch_changes(start: Mapping[str, torch.Tensor], moments: Sequence[int], found: Changes) -> TrainerCallback:
    """A callback that fills ``found`` after each optimizer step that ``moments`` names.

    Args:
        start: `effective_weights` of the model before training.
        moments: numbers of steps, counted from 1.
        found: an empty dict.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step in moments:
                now = effective_weights(model, only=start)
                found[state.global_step] = {name: weight_change(start[name], now[name]) for name in start}

    return Watch()


def train_watched(trainer: SFTTrainer, *, only: Collection[str] = ()) -> Changes:
    """Run ``trainer.train()`` and return how the weights had changed at `four_moments`.

    Args:
        trainer: from `labkit.training.recipe.build_trainer`.
        only: see `effective_weights`; name what trains, because a matrix that cannot move says nothing.
    """
    found: Changes = {}
    start = effective_weights(trainer.model, only=only)
    trainer.add_callback(watch_changes(start, four_moments(trainer.args.max_steps), found))
    with quiet():
        trainer.train()
    return found


def kept_changes(name: str, settings: dict[str, Any], make: Callable[[], Changes], *, force: bool = False) -> Changes:
    """`labkit.training.kept.kept` for what `train_watched` found: a training that was watched once is not run again.

    Args:
        name, settings, force: see `kept`.
        make: trains.
    """

    def as_json() -> dict[str, dict[str, tuple[float, ...]]]:
        found = make()
        return {str(step): {of: astuple(change) for of, change in found[step].items()} for step in found}

    stored = kept(name, settings, as_json, force=force)
    return {int(step): {of: WeightChange(*change) for of, change in at.items()} for step, at in stored.items()}


def four_moments(steps: int) -> tuple[int, ...]:
    """Three steps on the way and the last, as in the paper.

    Example:
        >>> four_moments(24)
        (6, 12, 18, 24)
    """
    return tuple(sorted({max(1, steps * quarter // 4) for quarter in (1, 2, 3, 4)}))


def chosen(found: Changes, *targets: str, last: bool = False) -> list[WeightChange]:
    """The changes of the linears called ``targets`` (none: all of them), at every moment or only at the last."""
    moments = [max(found)] if last else sorted(found)
    return [
        change
        for moment in moments
        for name, change in found[moment].items()
        if not targets or name.rpartition(".")[2] in targets
    ]


def points(found: Changes, target: str) -> dict[int, list[tuple[float, float]]]:
    """(direction, magnitude) of every linear called ``target``, by moment: what the paper's figure 2 draws."""
    return {
        moment: [(change.direction, change.magnitude) for change in chosen({moment: found[moment]}, target)]
        for moment in sorted(found)
    }
