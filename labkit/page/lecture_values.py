"""The numbers that the lecture's claims are held against: recomputed by labkit, read from a stored run, or quoted.

``lecture.toml`` names one of these functions for every reading of a claim, with its arguments. Each returns a number or
a truth value; `GIVERS` also says which function of labkit, or which run, gave it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from labkit.models.methods import TARGETS, Method
from labkit.models.profiles import AMPERE
from labkit.models.shapes import shape_of
from labkit.page.memory_figures import GIB, predict_choice, settle, spare_gib
from labkit.page.verdicts import Value
from labkit.paths import data_folder
from labkit.theory.memory import moments
from labkit.theory.resident import optimizer_bytes, trainable_tensors

COMMON = {"model": "qwen3-8b", "batch": 1, "seq_len": 2048, "rank": 32}  # where a reading says nothing else
GIVERS: dict[str, tuple[Callable[..., Value], str]] = {}


def gives(origin: str) -> Callable:
    """Registers a function under its own name; ``origin`` is what a reader may call to get the same number."""

    def register(function: Callable[..., Value]) -> Callable[..., Value]:
        GIVERS[function.__name__] = (function, origin)
        return function

    return register


# --- memory ----------------------------------------------------------------------------------------------------------


@gives("labkit.models.shapes.ModelShape.n_params")
def per_parameter_gb(bytes_each: float, model: str = "qwen3-8b") -> float:
    """GB of ``bytes_each`` for every parameter."""
    return bytes_each * shape_of(model).n_params / 1e9


@gives("labkit.models.shapes.ModelShape.n_params")
def per_parameter_fits(bytes_each: float, card_gib: float, cards: int = 1, model: str = "qwen3-8b") -> bool:
    """Whether that fits, divided evenly over ``cards``; activations and reserve not counted."""
    return bytes_each * shape_of(model).n_params / cards <= card_gib * GIB


@gives("labkit.theory.memory.predict")
def peak_gb(**choice: Any) -> float:
    """Predicted peak of one step, GB; see `COMMON`."""
    return predict_choice(COMMON | choice).peak_allocated_bytes / 1e9


@gives("labkit.theory.memory.predict")
def fits(card_gib: float, **choice: Any) -> bool:
    """Whether the predicted peak leaves the usual reserve on a card."""
    return spare_gib(predict_choice(COMMON | choice), card_gib) >= 0


@gives("labkit.theory.memory.predict")
def peak_ratio(kinds: list[str], **choice: Any) -> float:
    """Predicted peak of the second method over that of the first."""
    first, second = (peak_gb(**choice, kind=kind) for kind in kinds)
    return second / first


@gives("labkit.theory.memory.predict")
def stored_gb(**choice: Any) -> float:
    """The base model as it lies in memory: weights and quantization constants, GB."""
    components = predict_choice(COMMON | choice).components
    return (components["parameters"] + components["quantization_constants"]) / 1e9


@gives("labkit.theory.memory.predict")
def stored_ratio(model: str = "qwen3-8b") -> float:
    """The NF4 model over the 16-bit one."""
    return stored_gb(model=model, kind="qlora") / stored_gb(model=model, kind="lora")


@gives("labkit.theory.memory.moments")
def activations_gb(**choice: Any) -> float:
    """The most that activations and logits take at one moment of a step, GB."""
    model, method, step = settle(COMMON | choice)
    held = (parts.get("activations", 0) + parts.get("logits", 0) for _, parts in moments(shape_of(model), method, step))
    return max(held) / 1e9


@gives("labkit.theory.memory.predict")
def is_largest(component: str, **choice: Any) -> bool:
    """Whether a component is the largest at the end of the step, gradients included."""
    model, method, step = settle(COMMON | choice)
    parts = moments(shape_of(model), method, step)[-1][1]
    return max(parts, key=parts.__getitem__) == component


@gives("labkit.theory.resident.optimizer_bytes")
def optimizer_bytes_each(dtype: str = "bfloat16", optimizer: str = "adamw") -> float:
    """Bytes of optimizer states for one parameter of Qwen3-8B in full fine-tuning."""
    shape = shape_of("qwen3-8b")
    states = optimizer_bytes(trainable_tensors(shape, Method(kind="full", dtype=dtype)), optimizer)
    return round(states / shape.n_params, 2)


@gives("labkit.theory.memory.predict")
def share_of_full(model: str = "qwen3-8b", **choice: Any) -> float:
    """Predicted peak of LoRA over that of full fine-tuning, both in one setting, per cent."""
    return 100 * peak_ratio(["full", "lora"], model=model, **choice)


# --- LoRA ------------------------------------------------------------------------------------------------------------


@gives("labkit.theory.resident.adapter_tensors")
def adapter_count(model: str = "qwen3-8b", rank: int = 32, targets: str = "all") -> int:
    """Parameters of the adapters."""
    choice = {"model": model, "kind": "lora", "rank": rank, "targets": targets}
    return predict_choice(choice).trainable_params


@gives("labkit.theory.resident.adapter_tensors")
def adapter_millions(**choice: Any) -> float:
    """The same, in millions."""
    return adapter_count(**choice) / 1e6


@gives("labkit.theory.resident.adapter_tensors")
def adapter_mb(bytes_each: float, **choice: Any) -> float:
    """The same, in MB of so many bytes each."""
    return bytes_each * adapter_count(**choice) / 1e6


@gives("labkit.theory.resident.adapter_tensors")
def adapter_percent(model: str = "qwen3-8b", **choice: Any) -> float:
    """Adapter parameters, per cent of the base model's."""
    return 100 * adapter_count(model, **choice) / shape_of(model).n_params


@gives("labkit.theory.lora.LoRALinear")
def layer_weights(size: int = 4096) -> int:
    """Frozen weights of one linear of size x size."""
    return _layer(1, size).base.weight.numel()


@gives("labkit.theory.lora.LoRALinear")
def layer_count(rank: int, size: int = 4096) -> int:
    """Parameters that train in one adapted linear of size x size."""
    layer = _layer(rank, size)
    return layer.lora_A.numel() + layer.lora_B.numel()


@gives("labkit.theory.lora.LoRALinear")
def layer_percent(rank: int, size: int = 4096) -> float:
    """The same, per cent of the frozen weight."""
    return 100 * layer_count(rank, size) / size**2


@gives("labkit.models.methods.Method.scale")
def scale(alpha_over_rank: float, rank: int = 32) -> float:
    """The factor of the update."""
    return Method(kind="lora", rank=rank, alpha=alpha_over_rank * rank).scale


@gives("labkit.theory.lora.LoRALinear")
def starts_at_zero() -> bool:
    """Whether a new adapter leaves its layer as it was."""
    return not _layer(8, 64).delta_weight().any()


@gives("labkit.theory.lora.LoRALinear")
def a_is_kaiming_uniform(size: int = 1024) -> bool:
    """Whether A lies within 1/sqrt(in) and has a uniform distribution's variance, a third of the bound's square."""
    a = _layer(64, size).lora_A.detach()
    return bool(a.abs().max() <= size**-0.5) and abs(float(a.var()) * 3 * size - 1) < 0.05


@gives("labkit.theory.lora.LoRALinear")
def frozen_weight_gets_no_gradient() -> bool:
    """Whether the backward pass leaves the frozen weight without a gradient."""
    return _after_backward()[0].base.weight.grad is None


@gives("labkit.theory.lora.LoRALinear")
def gradient_avoids_frozen_weight() -> bool:
    """Whether the gradient of the input goes round W0: with B still zero it would then be zero."""
    return not _after_backward()[1].grad.any()


def _layer(rank: int, size: int) -> Any:
    import torch

    from labkit.theory.lora import LoRALinear

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LoRALinear(torch.nn.Linear(size, size, bias=False), rank=rank, alpha=None)


def _after_backward() -> tuple[Any, Any]:
    import torch

    layer, x = _layer(4, 16), torch.ones(1, 16, requires_grad=True)
    layer(x).sum().backward()
    return layer, x


# --- NF4 -------------------------------------------------------------------------------------------------------------


@gives("labkit.theory.nf4.bits_per_weight")
def bits(double_quant: bool = False) -> float:
    """Bits of one quantized weight, constants included."""
    from labkit.theory.nf4 import bits_per_weight

    return bits_per_weight(64, double_quant=double_quant)


@gives("labkit.theory.nf4.bits_per_weight")
def double_quant_saves_bits() -> float:
    """What double quantization saves."""
    return bits() - bits(double_quant=True)


@gives("labkit.theory.memory.predict")
def bits_of_model(model: str = "qwen3-8b") -> float:
    """Mean bits of a parameter of a whole NF4 model, the 16-bit rest included."""
    return 8e9 * stored_gb(model=model, kind="qlora") / shape_of(model).n_params


@gives("labkit.theory.codes.normal_map")
def levels_are_quantiles() -> bool:
    """Whether the 16 levels are quantiles of N(0, 1) at probabilities in even steps (as bitsandbytes makes them)."""
    import torch

    from labkit.theory.codes import levels, normal_map

    return torch.equal(levels("nf4"), normal_map())


@gives("labkit.theory.codes.equation_4")
def levels_are_equation_4() -> bool:
    """Whether they are what equation 4 of the paper gives."""
    import torch

    from labkit.theory.codes import equation_4, levels

    made, used = equation_4(), levels("nf4")
    return made.shape == used.shape and torch.allclose(made, used, atol=1e-3)


@gives("labkit.theory.codes.normal_error")
def no_code_is_better(block_size: int, rival: str, power: int) -> bool:
    """Whether NF4's error on N(0, 1) is at most a rival's of as many levels."""
    from labkit.theory.codes import normal_error

    return normal_error("nf4", block_size, power=power) <= normal_error(rival, block_size, power=power)


@gives("labkit.theory.codes.entropy_bits")
def all_levels_used_alike() -> bool:
    """Whether the indices carry their 4 bits, to a hundredth."""
    from labkit.theory.codes import entropy_bits, normal_usage

    return entropy_bits(normal_usage("nf4")) >= 3.99


@gives("data/measurements/nf4_laptop.json")
def error_over_normal(label: str, block_size: int) -> float:
    """NF4's relative error measured on the real weights over that of N(0, 1) weights."""
    from labkit.theory.codes import normal_error

    (effect,) = (effect for effect in stored("nf4_laptop.json")["effects"] if effect["label"] == label)
    return effect["weight_error"] / normal_error("nf4", block_size) ** 0.5


# --- precision, DoRA, and what others wrote --------------------------------------------------------------------------


@gives("data/measurements/sft_laptop/record.json")
def adapter_dtype_was(dtype: str) -> bool:
    """Whether the stored run kept its adapters in ``dtype``."""
    return stored("sft_laptop/record.json")["settings"]["profile"]["method"]["adapter_dtype"] == dtype


@gives("labkit.models.methods.Method")
def default_adapter_dtype_is(dtype: str) -> bool:
    """Whether the book's methods, PEFT's default, keep adapters in ``dtype``."""
    return Method(kind="qlora").adapter_dtype == dtype


@gives("data/measurements/sft_laptop/record.json")
def recorded_dropout() -> float:
    """The dropout of the stored run."""
    return stored("sft_laptop/record.json")["settings"]["profile"]["method"]["dropout"]


@gives("labkit.models.profiles.compute_dtype")
def computes_in_float16(capability: list[int]) -> bool:
    """Whether a GPU of that compute capability is given float16 (those with bfloat16 units are not)."""
    return tuple(capability) < AMPERE


@gives("labkit.models.profiles.compute_dtype")
def has_bfloat16_units(capability: list[int]) -> bool:
    """Whether a GPU of that compute capability computes in bfloat16 without emulation."""
    return tuple(capability) >= AMPERE


@gives("torch.finfo")
def bf16_is_wider() -> bool:
    """Whether bfloat16 reaches larger and smaller numbers than float16."""
    import torch

    wide, narrow = torch.finfo(torch.bfloat16), torch.finfo(torch.float16)
    return wide.max > narrow.max and wide.smallest_normal < narrow.smallest_normal


@gives("labkit.theory.resident.adapter_tensors")
def magnitudes_are_one_per(axis: str) -> bool:
    """Whether DoRA adds one number per row, or per column, of each (out, in) weight of Qwen3-8B."""
    shape = shape_of("qwen3-8b")
    dora, lora = (predict_choice({"model": shape.name, "kind": kind, "rank": 32}) for kind in ("dora", "lora"))
    place = {"column": 0, "row": 1}[axis]  # a linear is (in, out): rows of an (out, in) matrix are its outputs
    expected = shape.n_layers * sum(shape.linears()[name][place] for name in TARGETS)
    return dora.trainable_params - lora.trainable_params == expected


@gives("labkit.theory.resident.adapter_tensors")
def dora_extra_percent() -> float:
    """DoRA's own parameters, per cent of LoRA's (Qwen3-8B, rank 32)."""
    dora, lora = (predict_choice({"model": "qwen3-8b", "kind": kind, "rank": 32}) for kind in ("dora", "lora"))
    return 100 * (dora.trainable_params / lora.trainable_params - 1)


@gives("labkit.page.arms.difference")
def selected_beats(results: str, first: str, second: str) -> bool:
    """Whether one arm of a stored sweep has a lower held-out loss than another, clear of the noise between trials."""
    from labkit.jsonl import read_rows
    from labkit.page.arms import arms_of, difference

    arms = {arm.name: arm for arm in arms_of(read_rows(data_folder() / "results" / f"{results}.jsonl"))}
    return difference(arms[second], arms[first]).high < 0


@gives("labkit.theory.memory.predict")
def extra_peak_percent(kinds: list[str], **choice: Any) -> float:
    """How much higher the predicted peak of the second method is than that of the first, per cent."""
    return 100 * (peak_ratio(kinds, **choice) - 1)


@gives("data/measurements/dora_cost.json")
def dora_time_percent(method: str, tokens: int) -> float:
    """How much longer a step takes than without DoRA, per cent, as this book measured it on a CPU."""
    rows = stored("dora_cost.json")["times"]
    ratio = next(row["ratio"] for row in rows if (row["method"], row["tokens"]) == (method, tokens))
    return 100 * (ratio - 1)


@gives("labkit.page.duel.duel")
def raced_gain_percent(results: str, rank: int) -> float:
    """By how much DoRA lowers the held-out loss further than LoRA, per cent of LoRA's gain, both rates tuned."""
    from labkit.page.duel import duel
    from labkit.page.results import load_results

    return -duel(load_results(results).where(kind=["lora", "dora"], rank=rank)).percent[0]


@gives("")
def quoted(value: Value) -> Value:
    """A value that somebody else published: the reading names the source."""
    return value


@gives("")
def quoted_gain(first: float, second: float) -> float:
    """Second published value minus the first, to the digits that they have."""
    return round(second - first, 2)


@gives("labkit sweep data/grids/rank_tiny.toml")
def attention_reaches(place: str) -> bool:
    """Whether attention alone is as good as ``place`` at equal parameter count: each at its best learning rate, by a
    95 % t interval of the differences over the seeds (the tiny model's runs)."""
    from labkit.page.results import load_results
    from labkit.theory.intervals import paired_difference

    runs = load_results("rank_tiny").where(block="targets at equal count")
    best = {cell.at["targets"]: cell.by_seed for cell in runs.best("targets")}
    return paired_difference(best[place], best["attention"]).verdict != "higher"


@gives("")
def quoted_at_least(first: float, second: float) -> bool:
    """Whether the first published value is at least the second."""
    return first >= second


@cache
def stored(name: str) -> dict[str, Any]:
    """A stored measurement, by its name in ``data/measurements``."""
    return json.loads((data_folder() / "measurements" / name).read_text(encoding="utf-8"))


def run_of(name: str) -> str:
    """Hardware and date of a stored measurement, in words."""
    made = stored(name)
    hardware = made["hardware"]
    if isinstance(hardware, dict):
        hardware = f"{hardware['cores']} CPU cores of an {hardware['cpu']}"
    return f"{hardware}, {made['date'][:10]}"
