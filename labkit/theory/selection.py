"""Which modules to train: Spectrum's rule, and the two controls that it has to beat (lesson 07).

A module is one linear of one decoder layer, written ``"3.up_proj"``. Hartford et al. (2406.06623; in their script
``generate_unfrozen_params_yaml``) sort the modules *of each type* by their score and take the first int(n * p / 100) of
n: scores of different types, and so of different shapes, are never compared.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from labkit.errors import LabError
from labkit.models.methods import TARGETS, module_parts, module_place
from labkit.models.shapes import ModelShape

ORDERS = ("high", "low", "random")


def select(scores: Mapping[str, float], *, top_percent: float, order: str = "high", seed: int = 0) -> tuple[str, ...]:
    """The modules that train, ``top_percent`` of each type, in the order of layers.

    Args:
        scores: module -> score; all modules of the model, in any order.
        top_percent: above 0, at most 100; of a type with n modules int(n * top_percent / 100) are taken, as published.
        order: ``high`` (as published), ``low`` or ``random``: as many of each type, by chance.
        seed: of ``random``.

    Raises:
        LabError: a share out of range, an unknown order, or so small a share that nothing is selected.
    """
    if not 0 < top_percent <= 100:
        raise LabError(f"top_percent={top_percent}", "a share is above 0 and at most 100", "try 25")
    if order not in ORDERS:
        raise LabError(f"order={order!r}", f"an order is one of {', '.join(ORDERS)}", "use high, as published")
    draw, chosen = random.Random(seed), []
    for name in TARGETS:
        modules = sorted((module for module in scores if module_parts(module)[1] == name), key=module_place)
        if order == "random":
            draw.shuffle(modules)
        else:
            modules.sort(key=scores.__getitem__, reverse=order == "high")  # stable: equal scores stay in layer order
        chosen += modules[: int(len(modules) * top_percent / 100)]
    if not chosen:
        most = max((sum(module_parts(module)[1] == name for module in scores) for name in TARGETS), default=0)
        rule = f"{top_percent} % of {most} modules of a type are none"
        raise LabError(f"top_percent={top_percent}", rule, "select a larger share")
    return tuple(sorted(chosen, key=module_place))


def selected_params(shape: ModelShape, modules: tuple[str, ...]) -> int:
    """Weights in these modules: what full fine-tuning of them trains (biases, where there are any, come on top)."""
    sizes = shape.linears()
    return sum(sizes[name][0] * sizes[name][1] for _, name in map(module_parts, modules))


def lora_params(shape: ModelShape, modules: tuple[str, ...], *, rank: int) -> int:
    """Parameters of LoRA of this rank on these modules: r (in + out) each."""
    return rank * sum(sum(shape.linears()[name]) for _, name in map(module_parts, modules))
