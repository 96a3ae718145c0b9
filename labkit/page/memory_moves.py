"""What can be changed so that a step fits a card, and what each change costs: the one list, used by the explorer.

The order of the costs is a teacher's judgement, not a measurement: first what changes nothing but the arithmetic, then
what costs time, then what rounds numbers that are not trained, then what changes what is learned, last another model.
Costs add up; their sizes say only which of two ways comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labkit.models.shapes import shape_of
from labkit.page.labels import text
from labkit.page.memory_tables import AXES


@dataclass(frozen=True, kw_only=True)
class Move:
    """One change of one axis: from an index to an index of `AXES`, with its cost and, in words, what it is and takes."""

    axis: str
    start: int
    to: int
    cost: int
    what: str
    price: str


def moves() -> list[Move]:
    """Every change on offer, in the student's language."""
    return [*_losses(), *_batches(), *_optimizers(), _checkpointing(), *_kinds(), *_smaller_adapters(), *_lengths(),
            *_models()]  # fmt: skip


def _move(axis: str, start: Any, to: Any, cost: int, what: str, price: str) -> Move:
    return Move(axis=axis, start=AXES[axis].index(start), to=AXES[axis].index(to), cost=cost, what=what, price=price)


def _losses() -> list[Move]:
    fused = text("the fused loss", "融合损失")
    same = text("the same loss in tiles; no price in quality", "同样的损失，分块计算，不影响质量")
    chunked = text("the chunked loss", "分块损失")
    again = text("logits are computed twice", "logits 要多算一遍")
    return [
        _move("loss", "full", "fused", 10, fused, same),
        _move("loss", "chunked", "fused", 10, fused, same),
        _move("loss", "full", "chunked", 15, chunked, again),
    ]


def _batches() -> list[Move]:
    """The same update: gradients of several small passes are added up."""
    found = []
    price = text("the same update, the GPU is used less well", "更新不变，GPU 利用率降低")
    for start in AXES["batch"]:
        for halvings, to in enumerate(reversed([size for size in AXES["batch"] if size < start]), start=1):
            times = start // to
            what = text(f"batch {to} with {times} accumulation steps", f"批大小 {to}，累积 {times} 步")
            found.append(_move("batch", start, to, 20 + halvings, what, price))
    return found


def _optimizers() -> list[Move]:
    eight, paged = text("8-bit AdamW", "8-bit AdamW"), text("paged 8-bit AdamW", "分页 8-bit AdamW")
    rounded = text("moments rounded to 8 bits", "动量和方差舍入到 8 比特")
    moved = text("moments rounded to 8 bits and kept outside the GPU until needed", "动量和方差舍入到 8 比特，平时不放在显存里")
    out = text("large moments are kept outside the GPU until needed", "大的动量和方差平时不放在显存里")
    return [
        _move("optimizer", "adamw", "adamw_8bit", 30, eight, rounded),
        _move("optimizer", "adamw", "paged_adamw_8bit", 40, paged, moved),
        _move("optimizer", "adamw_8bit", "paged_adamw_8bit", 35, paged, out),
    ]


def _checkpointing() -> Move:
    price = text("a second forward pass: about a third more arithmetic", "再做一遍前向，运算量多约三分之一")
    return _move("checkpointing", False, True, 50, text("gradient checkpointing", "梯度检查点"), price)


def _kinds() -> list[Move]:
    rounded = text("frozen weights rounded to 4 bits, and unpacked at every use", "冻结的权重舍入到 4 比特，每次使用都要还原")
    plain = text("no trained magnitude", "不再训练幅度")
    low = text("only a low-rank update is learned", "只能学到低秩的更新")
    return [
        _move("kind", "lora", "qlora", 80, "QLoRA", rounded),
        _move("kind", "dora", "qdora", 80, "QDoRA", rounded),
        _move("kind", "dora", "lora", 90, "LoRA", plain),
        _move("kind", "qdora", "qlora", 90, "QLoRA", plain),
        _move("kind", "full", "lora", 150, "LoRA", low),
    ]


def _smaller_adapters() -> list[Move]:
    found = []
    price = text("an update of lower rank", "更新的秩更低")
    for start in AXES["rank"]:
        for steps, to in enumerate(reversed([rank for rank in AXES["rank"] if rank < start]), start=1):
            found.append(_move("rank", start, to, 100 + 5 * steps, text(f"rank {to}", f"秩 {to}"), price))
    every, fewer = AXES["targets"][-1], text("fewer matrices adapt", "能调整的矩阵变少")
    for cost, to in enumerate((*AXES["targets"][2:0:-1], AXES["targets"][0])):
        names = ", ".join(name.removesuffix("_proj") for name in to)
        found.append(_move("targets", every, to, 110 + 5 * cost, text(f"targets {names}", f"目标模块 {names}"), fewer))
    return found


def _lengths() -> list[Move]:
    found = []
    price = text("longer examples are cut", "更长的样本会被截断")
    for start in AXES["seq_len"]:
        for halvings, to in enumerate(reversed([n for n in AXES["seq_len"] if n < start]), start=1):
            what = text(f"length {to:,}", f"长度 {to:,}")
            found.append(_move("seq_len", start, to, 120 + 10 * halvings, what, price))
    return found


def _models() -> list[Move]:
    found = []
    price = text("a weaker start", "起点更弱")
    order = sorted(AXES["model"], key=lambda name: shape_of(name).n_params)
    for place, start in enumerate(order):
        for steps, to in enumerate(reversed(order[:place]), start=1):
            found.append(_move("model", start, to, 300 + 20 * steps, to, price))
    return found
