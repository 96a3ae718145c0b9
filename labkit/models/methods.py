"""What a fine-tuning method is, and what one training step is, in numbers.

A number such as the rank enters once, here, and travels down unchanged to the theory and to the training recipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from labkit.errors import LabError

KINDS = ("full", "lora", "qlora", "dora", "qdora", "spectrum")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
ADAPTER_DTYPES = ("float32", "bfloat16", "autocast")
OPTIMIZERS = ("adamw", "adamw_foreach", "adamw_8bit", "paged_adamw_8bit", "sgd")
ATTENTIONS = ("sdpa", "eager")
LOSSES = ("full", "fused", "chunked")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a model is fine-tuned.

    Args:
        kind: ``full`` (every parameter trains), ``lora`` (Hu et al. 2021), ``qlora`` (LoRA on an NF4 base, Dettmers et
            al. 2023), ``dora`` (Liu et al. 2024), ``qdora`` (DoRA on an NF4 base), or ``spectrum`` (every parameter of
            the selected layers or modules trains, the rest is frozen; Hartford et al. 2024).
        rank: r of the adapter matrices, at least 1.
        alpha: numerator of the scale alpha/r, above 0; None means twice the rank. It is settled when the object is
            made, so ``dataclasses.replace(method, rank=...)`` keeps alpha, not alpha/r.
        rslora: divide alpha by sqrt(r) instead of r (Kalajdzievski 2023, 2312.03732).
        dropout: share of the adapter's input that is dropped, in [0, 1).
        targets: the linears of a decoder layer that get an adapter; kept in the order of `TARGETS`.
        layers: indices of the selected decoder layers. ``spectrum`` needs at least one, or ``modules``; adapters with
            none go into every layer; ``full`` takes none.
        modules: single linears of single layers, like ``"3.up_proj"``, instead of ``targets`` and ``layers``, which are
            then settled to what occurs in them. ``spectrum`` trains these weights (and their biases) and nothing else;
            adapters go into these linears only. In the order of layers.
        dtype: element type of the base weights that are not quantized.
        adapter_dtype: ``float32`` or ``bfloat16`` adapters, or ``autocast`` (float32 adapters under bf16 autocast).
        double_quant: quantize NF4's absmax constants once more.
        kbit_prepare: `peft.prepare_model_for_kbit_training` raised the 16-bit rest of a quantized base to float32.
        block_size: weights that share one NF4 absmax constant.

    Raises:
        LabError: a value outside these ranges, echoed with the rule and a fix.
    """

    kind: str
    rank: int = 32
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.05
    targets: tuple[str, ...] = TARGETS
    layers: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    adapter_dtype: str = "float32"
    double_quant: bool = True
    kbit_prepare: bool = False
    block_size: int = 64

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _at_least("rank", self.rank, 1)
        _settle(self, "alpha", 2 * self.rank if self.alpha is None else _positive("alpha", self.alpha))
        _share("dropout", self.dropout)
        _settle(self, "modules", _modules(self.modules, self.kind))
        if self.modules:
            parts = [module_parts(module) for module in self.modules]
            _settle(self, "targets", tuple({name for _, name in parts}))
            _settle(self, "layers", tuple({layer for layer, _ in parts}))
        _settle(self, "targets", _targets(self.targets))
        _settle(self, "layers", _layers(self.layers, self.kind))
        _one_of("dtype", self.dtype, tuple(DTYPE_BYTES))
        _one_of("adapter_dtype", self.adapter_dtype, ADAPTER_DTYPES)
        _one_of("block_size", self.block_size, BLOCK_SIZES)
        if self.kbit_prepare and not self.quantized:
            rule = f"k-bit preparation is for a quantized base, and {self.kind!r} has none"
            raise LabError("kbit_prepare=True", rule, "use qlora or qdora, or leave it out")

    @property
    def scale(self) -> float:
        """alpha / rank, or with ``rslora`` alpha / sqrt(rank): the factor of the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def quantized(self) -> bool:
        """Whether the decoder's linears are stored in NF4."""
        return self.kind in ("qlora", "qdora")

    @property
    def uses_adapters(self) -> bool:
        """Whether low-rank adapters train (and the base is frozen)."""
        return self.kind in ("lora", "qlora", "dora", "qdora")

    def at(self, layer: int) -> Method | None:
        """The method as one decoder layer has it, with the targets of that layer; None where nothing of it trains."""
        if not self.modules:
            return self if not self.layers or layer in self.layers else None
        own = tuple(module for module in self.modules if module_parts(module)[0] == layer)
        return replace(self, modules=own) if own else None

    @property
    def uses_magnitude(self) -> bool:
        """Whether a DoRA magnitude vector trains beside every adapter."""
        return self.kind in ("dora", "qdora")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step on one GPU.

    Args:
        batch: sequences per forward pass (gradient accumulation repeats the pass and adds no memory).
        seq_len: tokens per sequence, at least 2 (the loss predicts token t+1 from token t).
        optimizer: ``adamw`` is torch's fused AdamW (what transformers runs), ``adamw_foreach`` its foreach variant
            (plain ``torch.optim.AdamW`` on CUDA), ``adamw_8bit`` and ``paged_adamw_8bit`` bitsandbytes', ``sgd``
            without momentum.
        checkpointing: recompute each decoder layer in the backward pass.
        attention: ``sdpa`` (flash kernels) or ``eager`` (every score matrix stored).
        loss: ``full`` (transformers: all logits, then cross-entropy in float32), ``fused`` (TRL's fused LM head),
            ``chunked`` (256 tokens at a time, each chunk checkpointed).
        keep_logits: the caller keeps the model's output until after the backward pass (only ``full`` has logits).
        padded: the batch holds padding, so attention gets a dense mask.

    Raises:
        LabError: a value outside these ranges, echoed with the rule and a fix.
    """

    batch: int = 1
    seq_len: int = 1024
    optimizer: str = "adamw"
    checkpointing: bool = True
    attention: str = "sdpa"
    loss: str = "fused"
    keep_logits: bool = False
    padded: bool = False

    def __post_init__(self) -> None:
        _at_least("batch", self.batch, 1)
        _at_least("seq_len", self.seq_len, 2)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("attention", self.attention, ATTENTIONS)
        _one_of("loss", self.loss, LOSSES)
        if self.keep_logits and self.loss != "full":
            rule = f"the {self.loss} loss never makes all logits, so there are none to keep"
            raise LabError("keep_logits=True", rule, 'use loss="full", or leave it out')

    @property
    def tokens(self) -> int:
        """Tokens in one forward pass: batch times seq_len."""
        return self.batch * self.seq_len


def parse_targets(text: str) -> tuple[str, ...]:
    """``"all"`` or names separated by commas, e.g. ``"q_proj,v_proj"``, as a tuple in the order of `TARGETS`.

    Raises:
        LabError: an unknown or repeated name, or none at all.
    """
    if text.strip() == "all":
        return TARGETS
    return _targets(tuple(name.strip() for name in text.split(",") if name.strip()))


def parse_modules(text: str) -> tuple[str, ...]:
    """``"3.up_proj,4.q_proj"`` as a tuple; an empty text as ``()``.

    Raises:
        LabError: see `module_parts`.
    """
    modules = tuple(part.strip() for part in text.split(",") if part.strip())
    for module in modules:
        module_parts(module)
    return modules


def module_parts(module: str) -> tuple[int, str]:
    """``"3.up_proj"`` as ``(3, "up_proj")``.

    Raises:
        LabError: it is not written like that.
    """
    layer, _, name = module.partition(".") if isinstance(module, str) else ("", "", "")
    if not layer.isdecimal() or name not in TARGETS:
        rule = "a module is a layer number and a linear"
        raise LabError(f"module={module!r}", rule, "write it like 3.up_proj")
    return int(layer), name


def module_place(module: str) -> tuple[int, int]:
    """What modules are sorted by: layer, then the order of `TARGETS`."""
    layer, name = module_parts(module)
    return layer, TARGETS.index(name)


def parse_layers(text: str) -> tuple[int, ...]:
    """``"0,3,10-12"`` as ``(0, 3, 10, 11, 12)``; an empty text as ``()``.

    Raises:
        LabError: something other than layer numbers and ranges.
    """
    layers: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        numbers = first.isdecimal() and (last.isdecimal() or not dash)
        if not numbers or int(last or first) < int(first):
            rule = f"{part!r} is neither a layer number nor a range"
            raise LabError(f"layers={text!r}", rule, "write layers like 0,3,10-12")
        layers += range(int(first), int(last or first) + 1)
    return tuple(layers)


def _settle(method: Method, field: str, value: object) -> None:
    object.__setattr__(method, field, value)  # the one moment at which a frozen dataclass may be completed


def _one_of(field: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise LabError(f"{field}={value!r}", f"{field} must be one of {names}", f"choose one, e.g. {allowed[0]}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _at_least(field: str, value: object, least: int) -> None:
    if not _is_int(value) or value < least:
        rule = f"{field} must be a whole number, at least {least}"
        raise LabError(f"{field}={value!r}", rule, f"try {field}={max(least, 8)}")


def _positive(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise LabError(f"{field}={value!r}", f"{field} must be a number above 0", f"try {field}=16")
    return value


def _share(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise LabError(f"{field}={value!r}", f"{field} must be at least 0 and below 1", f"try {field}=0.05")


def _targets(targets: tuple[str, ...]) -> tuple[str, ...]:
    given = f"targets={targets!r}"
    fix = f'use "all" or some of {", ".join(TARGETS)}'
    if isinstance(targets, str) or not targets:
        raise LabError(given, "targets must name at least one linear, as a tuple", fix)
    if unknown := [name for name in targets if name not in TARGETS]:
        raise LabError(given, f"{unknown[0]!r} is not a linear of a decoder layer", fix)
    if len(set(targets)) < len(targets):
        raise LabError(given, "a linear is named twice", fix)
    return tuple(name for name in TARGETS if name in targets)


def _modules(modules: tuple[str, ...], kind: str) -> tuple[str, ...]:
    given = f"modules={modules!r}"
    if isinstance(modules, str):
        raise LabError(given, "modules are given as a tuple", 'write ("3.up_proj",)')
    if kind == "full" and modules:
        raise LabError(given, "full fine-tuning trains every module", "use spectrum, or leave modules out")
    if len(set(modules)) < len(modules):
        raise LabError(given, "a module is named twice", "name each module once")
    return tuple(sorted(modules, key=module_place))


def _layers(layers: tuple[int, ...], kind: str) -> tuple[int, ...]:
    given = f"layers={layers!r}"
    if kind == "full" and layers:
        raise LabError(given, "full fine-tuning trains every layer", "use spectrum, or leave layers out")
    if kind == "spectrum" and not layers:
        raise LabError(
            given, "spectrum trains selected layers or modules and none is selected", "name some, e.g. layers 24-27"
        )
    if not all(_is_int(layer) and layer >= 0 for layer in layers):
        raise LabError(given, "a layer is a whole number counted from 0", "try layers 24-27")
    if len(set(layers)) < len(layers):
        raise LabError(given, "a layer is named twice", "name each layer once")
    return tuple(sorted(layers))
