"""The memory explorer: one training step against one card, moved in the browser."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import TARGETS, parse_targets
from labkit.page.memory_advice import move_text, nothing_fits
from labkit.page.memory_figures import (
    COMPONENTS_ZH,
    PALETTE,
    PHASES_ZH,
    RESERVE_GIB,
    describe,
    memory_bars,
    predict_choice,
    verdict,
    verdict_template,
)
from labkit.page.memory_moves import moves
from labkit.page.memory_tables import AXES, memory_tables
from labkit.page.sliders import Control, Explorer, show
from labkit.theory.memory import COMPONENTS, PHASES

CARDS_GIB = (16, 24, 40, 48, 80)
CARD_NAMES = ("T4", "RTX 4090, L4", "A100-40G", "L40S, A6000", "A100-80G, H100")
RANGES, SWITCHES = ("rank", "batch", "seq_len"), ("checkpointing",)
START = {
    "model": "qwen3-8b",
    "kind": "qlora",
    "rank": 32,
    "targets": TARGETS,
    "batch": 4,
    "seq_len": 2048,
    "checkpointing": True,
    "optimizer": "adamw",
    "loss": "fused",
}


def memory_explorer(*, card_gib: int = 16, **choice: Any) -> None:
    """Display the explorer.

    Args:
        card_gib: the card it starts with, one of `CARDS_GIB`.
        choice: other starting values than `START`, named like the fields of `Method` and `Step`, each one of
            `labkit.page.memory_tables.AXES`; ``targets`` may be ``"all"`` or ``"q_proj,v_proj"``.

    Raises:
        LabError: an unknown name, or a value that the controls do not offer.
    """
    show(make_explorer(card_gib=card_gib, **choice))


def make_explorer(*, card_gib: int = 16, **choice: Any) -> Explorer:
    """The explorer as an object; see `memory_explorer`."""
    if unknown := [name for name in choice if name not in AXES]:
        names = ", ".join(AXES)
        raise LabError(f"{unknown[0]}={choice[unknown[0]]!r}", f"the explorer has the axes {names}", "use one of them")
    if isinstance(choice.get("targets"), str):
        choice["targets"] = parse_targets(choice["targets"])
    start = START | choice
    controls = _controls(start, card_gib)
    prediction = predict_choice(start)
    label = f"{start['model']} {start['kind']}"
    return Explorer(
        title=text("Memory of one training step", "训练一步的显存"),
        view="memory",
        controls=controls,
        data=_data(),
        figure=memory_bars({label: prediction}, cards_gib=[card_gib]),
        alt=f"{describe({label: prediction})}. {verdict(prediction, card_gib)}",
        heights_px=(680, 980),
    )


def _controls(start: dict[str, Any], card_gib: int) -> list[Control]:
    labels = {
        "model": text("model", "模型"),
        "kind": text("method", "方法"),
        "rank": text("rank r", "秩 r"),
        "targets": text("targets", "目标模块"),
        "batch": text("batch (sequences)", "批大小（序列条数）"),
        "seq_len": text("length (tokens)", "长度（词元）"),
        "checkpointing": text("gradient checkpointing", "梯度检查点"),
        "optimizer": text("optimizer", "优化器"),
        "loss": text("loss", "损失"),
    }
    texts = {
        "targets": tuple(_targets_text(names) for names in AXES["targets"]),
        "seq_len": tuple(f"{length:,}" for length in AXES["seq_len"]),
        "kind": tuple(_kind_text(kind) for kind in AXES["kind"]),
    }
    kinds = dict.fromkeys(RANGES, "range") | dict.fromkeys(SWITCHES, "switch")
    made = [
        Control(name=name, label=labels[name], values=values, start=start[name], kind=kinds.get(name, "menu"),
                texts=texts.get(name, ()))
        for name, values in AXES.items()
    ]  # fmt: skip
    cards = tuple(f"{card} GiB ({name})" for card, name in zip(CARDS_GIB, CARD_NAMES, strict=True))
    made.append(Control(name="card", label=text("GPU", "显卡"), values=CARDS_GIB, start=card_gib, texts=cards))
    first = ("model", "kind", "card")
    return sorted(made, key=lambda control: first.index(control.name) if control.name in first else len(first))


def _targets_text(targets: tuple[str, ...]) -> str:
    if targets == TARGETS:
        return text("all seven linears", "全部七个线性层")
    return ", ".join(name.removesuffix("_proj") for name in targets)


def _kind_text(kind: str) -> str:
    names = {"lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "qdora": "QDoRA"}
    return names.get(kind) or text("full fine-tuning", "全参数微调")


def _data() -> dict[str, Any]:
    """What memory.js reads: tables, axes whose values are multiplied or compared, moves, texts."""
    codes = {name: [_code(value) for value in values] for name, values in AXES.items()}
    return {
        "tables": memory_tables(),
        "axes": {name: list(AXES[name]) for name in RANGES} | {"card": list(CARDS_GIB)},
        "adapted": [kind != "full" for kind in AXES["kind"]],
        "components": list(COMPONENTS),
        "statesAt": COMPONENTS.index("optimizer_states"),
        "phases": list(PHASES),
        "reserve": int(RESERVE_GIB) if RESERVE_GIB.is_integer() else RESERVE_GIB,
        "moves": [asdict(move) for move in moves()],
        "codes": codes,
        "colours": list(PALETTE),
        "texts": _texts(),
    }


def _code(value: Any) -> str:
    if isinstance(value, tuple):
        value = "all" if value == TARGETS else ",".join(value)
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _texts() -> dict[str, Any]:
    return {
        "fits": verdict_template(fits=True),
        "short": verdict_template(fits=False),
        "move": move_text(),
        "and": text(" and ", "，再加上"),
        "cheapest": text(
            "Cheapest way to fit: {what}. Then the peak is {peak} GiB, {spare} GiB spare.",
            "代价最小的办法：{what}。改后峰值 {peak} GiB，富余 {spare} GiB。",
        ),
        "none": nothing_fits(),
        "line": text("{card} GiB card; dashed: {reserve} GiB kept free", "显卡 {card} GiB；虚线：留出 {reserve} GiB"),
        "said": text(
            "Stacked bar: peak {peak} GiB in the phase {phase}, card {card} GiB.",
            "堆叠条形图：峰值 {peak} GiB，出现在{phase}阶段，显卡 {card} GiB。",
        ),
        "component": text("at the peak", "峰值时刻"),
        "bytes": text("bytes", "字节"),
        "peak": text("peak (phase: {phase})", "峰值（{phase}阶段）"),
        "phaseline": text("Peak of each phase, GiB: {phases}", "各阶段峰值（GiB）：{phases}"),
        "typed": text("The same as a typed choice:", "写成代码就是："),
        "fixed": text(
            "Fixed here: bfloat16 base, float32 adapters, dropout 0.05, double quantization, no k-bit preparation, "
            "SDPA attention, no padding.",
            "这里固定不变：bfloat16 基座，fp32 适配器，dropout 0.05，双重量化，不做 k-bit 准备，SDPA 注意力，无填充。",
        ),
        "components": [text(name.replace("_", " "), zh) for name, zh in COMPONENTS_ZH.items()],
        "phases": [text(name, zh) for name, zh in PHASES_ZH.items()],
    }
