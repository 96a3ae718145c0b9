"""What can be changed so that a training step fits a GPU, what each change costs, and which change comes first.

The order of the costs is a teacher's judgement, not a measurement: first what changes nothing but the arithmetic, then
what costs time, then what rounds numbers that are not trained, then what changes what is learned, last another model.
Costs add up; their sizes say only which of two ways comes first. The memory explorer, ``labkit memory --gpu``,
``labkit sft`` and ``labkit doctor`` all ask here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from labkit.errors import LabError
from labkit.models.methods import TARGETS, Method, Step
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.memory import predict

GIB = 2**30
RESERVE_GIB = 1.0  # kept free for the CUDA context, workspaces and unusable gaps; a rule of thumb, not a measurement
SHORTEST = 128  # tokens: below it hardly an example is left
FEWER_TARGETS = (TARGETS[4:], TARGETS[:4], ("q_proj", "v_proj"))  # in the order in which they are given up
OF_A_RUN = ("batch", "checkpointing", "kind", "rank", "targets", "seq_len")  # what `run_sft` can change
LADDER = (  # models from small to large; a smaller one is the last resort
    "smollm2-135m",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-4b",
    "llama-3.1-8b",
    "qwen3-8b",
    "qwen3-14b",
    "qwen3-32b",
)

Words = tuple[str, str]  # the same in English and in Chinese
Setting = tuple[ModelShape, Method, Step]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field set to another value.

    Attributes:
        field: ``model``, or a field of `Method` or `Step`.
        value: its new value.
        cost: see this module; above 0.
        what, price: what it is and what it takes away, in English and in Chinese.
    """

    field: str
    value: Any
    cost: int
    what: Words
    price: Words


@dataclass(frozen=True, kw_only=True)
class Way:
    """One or two changes that make a step fit.

    Attributes:
        changes: in the order in which `single_changes` offers them.
        cost: their costs, added up.
        peak_allocated_bytes: predicted peak after them.
        spare_bytes: what is then left of the usable memory, 0 or more.
    """

    changes: tuple[Change, ...]
    cost: int
    peak_allocated_bytes: int
    spare_bytes: int


def fillable_bytes(free_bytes: float) -> int:
    """Bytes that a step may fill of those that are free on a GPU: all but `RESERVE_GIB`; below zero for very few."""
    return int(free_bytes - RESERVE_GIB * GIB)


def usable_bytes(gpu_gib: float) -> int:
    """Bytes of a GPU that a step may fill: its memory less `RESERVE_GIB`; below zero for a GPU smaller than that.

    Raises:
        LabError: not a number above 0.
    """
    number = isinstance(gpu_gib, int | float) and not isinstance(gpu_gib, bool)
    if not number or not math.isfinite(gpu_gib) or gpu_gib <= 0:
        raise LabError(f"gpu={gpu_gib!r}", "a GPU has more than 0 GiB of memory", "try 16, 24, 40 or 80")
    return fillable_bytes(gpu_gib * GIB)


def single_changes(shape: ModelShape, method: Method, step: Step) -> list[Change]:
    """Every change on offer for a setting, whether or not it helps."""
    found = [_undone(method, step), _losses(step), _batches(step), _optimizers(step), _checkpointing(step)]
    found += [_kinds(method), _ranks(method), _targets(method), _lengths(step), _models(shape, method)]
    return [change for group in found for change in group]


def changed(setting: Setting, change: Change) -> Setting:
    """The setting after a change; what no longer has a meaning then is dropped with it."""
    shape, method, step = setting
    if change.field == "model":
        return shape_of(change.value), method, step
    if change.field in {item.name for item in fields(Step)}:
        along = {"keep_logits": False} if change.field == "loss" else {}
        return shape, method, replace(step, **along, **{change.field: change.value})
    along = {"alpha": method.scale * change.value} if change.field == "rank" else {}  # the update keeps its factor
    return shape, replace(method, **along, **{change.field: change.value}), step


def ways_to_fit(
    shape: ModelShape,
    method: Method,
    step: Step,
    *,
    room_bytes: int,
    limit: int = 5,
    only: Sequence[str] = (),
) -> list[Way]:
    """The cheapest single changes and pairs of changes after which the predicted peak is at most ``room_bytes``.

    A way is left out if a part of it is enough, or if another way changes the same fields for less. Ways that cost the
    same stand with single changes first.

    Args:
        room_bytes: see `usable_bytes`; or bytes that are free on a GPU, less a reserve.
        limit: ways at most.
        only: fields that may change; empty means all.

    Returns:
        Cheapest first; empty if no two changes are enough. For a setting that fits already they are changes that still
        fit, so ask `predict` first.

    Raises:
        LabError: see `labkit.theory.memory.predict`.
    """
    setting = (shape, method, step)
    single = [change for change in single_changes(*setting) if not only or change.field in only]
    pairs = [pair for pair in itertools.combinations(single, 2) if pair[0].field != pair[1].field]
    options = sorted([*((change,) for change in single), *pairs], key=_cost)
    found: list[Way] = []
    for option in options:
        if len(found) == limit:
            break
        if _redundant(option, found):
            continue
        peak = _peak(setting, option)
        if peak <= room_bytes:
            found.append(
                Way(changes=option, cost=_cost(option), peak_allocated_bytes=peak, spare_bytes=room_bytes - peak)
            )
    return found


def _cost(changes: Sequence[Change]) -> int:
    return sum(change.cost for change in changes)


def _peak(setting: Setting, changes: Sequence[Change]) -> int:
    for change in changes:
        setting = changed(setting, change)
    return predict(*setting).peak_allocated_bytes


def _redundant(option: Sequence[Change], found: Sequence[Way]) -> bool:
    """Whether a way that was found is a part of this one, or changes the same fields."""
    names = {change.field for change in option}
    return any({change.field for change in way.changes} <= names for way in found)


# --- the changes -----------------------------------------------------------------------------------------------------


def _undone(method: Method, step: Step) -> Iterator[Change]:
    """Switches that only cost memory, turned back."""
    if step.keep_logits:
        what, price = (
            ("no kept logits", "不保留 logits"),
            ("the output is not there to look at", "训练时看不到模型输出"),
        )
        yield Change(field="keep_logits", value=False, cost=5, what=what, price=price)
    if step.attention == "eager":
        price = ("the same attention in tiles; weights cannot be looked at", "同样的注意力，分块计算；看不到注意力权重")
        yield Change(field="attention", value="sdpa", cost=12, what=("SDPA attention", "SDPA 注意力"), price=price)
    if method.kbit_prepare:
        what = ("no k-bit preparation", "不做 k-bit 准备")
        price = ("embedding, head and norms stay in 16 bits", "嵌入层、lm_head 和归一化层保持 16 位")
        yield Change(field="kbit_prepare", value=False, cost=14, what=what, price=price)
    if method.quantized and not method.double_quant:
        what, price = ("double quantization", "双重量化"), ("constants rounded to 8 bits", "量化常数舍入到 8 比特")
        yield Change(field="double_quant", value=True, cost=45, what=what, price=price)


def _losses(step: Step) -> Iterator[Change]:
    fused, chunked = ("the fused loss", "融合损失"), ("the chunked loss", "分块损失")
    same = ("the same loss in tiles; no price in quality", "同样的损失，分块计算，不影响质量")
    again = ("logits are computed twice", "logits 要多算一遍")
    if step.loss != "fused":
        yield Change(field="loss", value="fused", cost=10, what=fused, price=same)
    if step.loss == "full":
        yield Change(field="loss", value="chunked", cost=15, what=chunked, price=again)


def _batches(step: Step) -> Iterator[Change]:
    """The same update: gradients of several small passes are added up, so the new size divides the old one."""
    price = ("the same update, the GPU is used less well", "更新不变，GPU 利用率降低")
    smaller = [size for size in range(step.batch - 1, 0, -1) if step.batch % size == 0]
    for place, size in enumerate(smaller, start=1):
        times = step.batch // size
        what = (f"batch {size} with {times} accumulation steps", f"批大小 {size}，累积 {times} 步")
        yield Change(field="batch", value=size, cost=20 + place, what=what, price=price)


def _optimizers(step: Step) -> Iterator[Change]:
    eight, paged = ("8-bit AdamW", "8-bit AdamW"), ("paged 8-bit AdamW", "分页 8-bit AdamW")
    rounded = ("moments rounded to 8 bits", "动量和方差舍入到 8 比特")
    moved = (
        "moments rounded to 8 bits and kept outside the GPU until needed",
        "动量和方差舍入到 8 比特，平时不放在显存里",
    )
    out = ("large moments are kept outside the GPU until needed", "大的动量和方差平时不放在显存里")
    if step.optimizer == "adamw_foreach":
        what, price = ("fused AdamW", "fused AdamW"), ("the same update in one kernel", "同样的更新，一个核函数完成")
        yield Change(field="optimizer", value="adamw", cost=11, what=what, price=price)
    if step.optimizer in ("adamw", "adamw_foreach"):
        yield Change(field="optimizer", value="adamw_8bit", cost=30, what=eight, price=rounded)
        yield Change(field="optimizer", value="paged_adamw_8bit", cost=40, what=paged, price=moved)
    if step.optimizer == "adamw_8bit":
        yield Change(field="optimizer", value="paged_adamw_8bit", cost=35, what=paged, price=out)


def _checkpointing(step: Step) -> Iterator[Change]:
    if not step.checkpointing:
        what = ("gradient checkpointing", "梯度检查点")
        price = ("a second forward pass: about a third more arithmetic", "再做一遍前向，运算量多约三分之一")
        yield Change(field="checkpointing", value=True, cost=50, what=what, price=price)


def _kinds(method: Method) -> Iterator[Change]:
    rounded = (
        "frozen weights rounded to 4 bits, and unpacked at every use",
        "冻结的权重舍入到 4 比特，每次使用都要还原",
    )
    plain, low = ("no trained magnitude", "不再训练幅度"), ("only a low-rank update is learned", "只能学到低秩的更新")
    offers = (
        ("lora", "qlora", 80, "QLoRA", rounded),
        ("dora", "qdora", 80, "QDoRA", rounded),
        ("dora", "lora", 90, "LoRA", plain),
        ("qdora", "qlora", 90, "QLoRA", plain),
        ("full", "lora", 150, "LoRA", low),
    )
    for start, to, cost, name, price in offers:
        if method.kind == start:
            yield Change(field="kind", value=to, cost=cost, what=(name, name), price=price)


def _ranks(method: Method) -> Iterator[Change]:
    price = ("an update of lower rank", "更新的秩更低")
    for place, rank in enumerate(_powers_below(method.rank) if method.uses_adapters else (), start=1):
        yield Change(field="rank", value=rank, cost=100 + 5 * place, what=(f"rank {rank}", f"秩 {rank}"), price=price)


def _targets(method: Method) -> Iterator[Change]:
    price = ("fewer matrices adapt", "能调整的矩阵变少")
    if method.uses_adapters and method.targets == TARGETS and not method.modules:
        for place, targets in enumerate(FEWER_TARGETS):
            names = ", ".join(name.removesuffix("_proj") for name in targets)
            what = (f"targets {names}", f"目标模块 {names}")
            yield Change(field="targets", value=targets, cost=110 + 5 * place, what=what, price=price)


def _lengths(step: Step) -> Iterator[Change]:
    price = ("longer examples are cut", "更长的样本会被截断")
    for place, length in enumerate(_powers_below(step.seq_len, SHORTEST), start=1):
        what = (f"length {length:,}", f"长度 {length:,}")
        yield Change(field="seq_len", value=length, cost=120 + 10 * place, what=what, price=price)


def _models(shape: ModelShape, method: Method) -> Iterator[Change]:
    """Smaller models; not for selected layers, which mean something in one model only."""
    price = ("a weaker start", "起点更弱")
    smaller = [name for name in LADDER if shape_of(name).n_params < shape.n_params and not method.layers]
    for place, name in enumerate(reversed(smaller), start=1):
        what = (f"the model {name}", f"换成模型 {name}")
        yield Change(field="model", value=name, cost=300 + 20 * place, what=what, price=price)


def _powers_below(value: int, least: int = 1) -> list[int]:
    """Powers of two below ``value``, at least ``least``, largest first."""
    return [2**power for power in range((value - 1).bit_length() - 1, -1, -1) if least <= 2**power]
