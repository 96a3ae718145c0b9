"""Lesson 01: what the exercises accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.errors import LabError
from labkit.models.methods import TARGETS
from labkit.models.shapes import ModelShape, shape_of
from labkit.page.exercises import NotAttempted, Wrong, attempted, must_be_function, question
from labkit.page.memory_figures import GIB, RESERVE_GIB, predict_choice, spare_gib
from labkit.page.questions.q00 import close
from labkit.page.questions.written import explanation

CASES = (("qwen3-4b", "full", 8), ("qwen3-4b", "lora", 64), ("qwen3-0.6b", "lora", 1), ("llama-3.1-8b", "lora", 16))

PEAK_SETTING = {"model": "qwen3-4b", "kind": "qlora", "rank": 16, "batch": 2, "seq_len": 1536, "loss": "full"}

OLD_RECIPE = {
    "model": "qwen3-8b",
    "kind": "qlora",
    "rank": 32,
    "targets": TARGETS,
    "batch": 1,
    "seq_len": 2048,
    "optimizer": "adamw",
    "loss": "full",
    "checkpointing": False,
    "kbit_prepare": True,
}
FIXED = ("model", "kind", "rank", "targets", "layers", "batch", "seq_len")  # they change what is learned
CARD_GIB = 12
FEWEST = 2


def adapter_params(shape: ModelShape, rank: int) -> int:
    """r (in + out) over the seven linears of all layers."""
    return rank * shape.n_layers * sum(d_in + d_out for d_in, d_out in shape.linears().values())


def wanted_static(shape: ModelShape, kind: str, rank: int) -> int:
    """Parameters, gradients and AdamW moments: 8 bytes a parameter, or 2 frozen and 16 an adapter parameter."""
    return 8 * shape.n_params if kind == "full" else 2 * shape.n_params + 16 * adapter_params(shape, rank)


@question("q1_1")
def static_bytes(value: Any) -> list[int]:
    """A function (shape, kind, rank) -> bytes of parameters, gradients and optimizer states."""
    must_be_function(value, "static_bytes")
    results = []
    for name, kind, rank in CASES:
        shape = shape_of(name)
        result = value(shape, kind, rank)
        if result is None or result is ...:
            raise NotAttempted
        _explain_static(result, shape, kind, rank)
        results.append(int(result))
    return results


def _explain_static(result: Any, shape: ModelShape, kind: str, rank: int) -> None:
    n, adapters, wanted = shape.n_params, adapter_params(shape, rank), wanted_static(shape, kind, rank)
    if close(result, wanted, tolerance=1e-9):
        return
    if kind == "full":
        reasons = {
            12 * n: ("that is 12 bytes a parameter; torch's AdamW on bf16 weights keeps bf16 moments: 2 + 2 + 2 + 2",
                     "这是每个参数 12 字节；torch 的 AdamW 对 bf16 权重保存 bf16 的动量和方差：2 + 2 + 2 + 2"),
            16 * n: ("that is 16 bytes a parameter, the float32 convention; here everything is bf16: 2 + 2 + 2 + 2",
                     "这是每个参数 16 字节的 fp32 口径；这里全部用 bf16：2 + 2 + 2 + 2"),
            6 * n: ("one of the four is missing: weights, gradients, and two moments", "四项里少了一项：权重、梯度、动量、方差"),
            8 * (n + adapters): ("full fine-tuning has no adapters", "全参数微调没有适配器"),
        }  # fmt: skip
    else:
        one_layer = adapters // shape.n_layers
        reasons = {
            4 * n + 16 * adapters: ("the frozen base gets no gradient", "冻结的基座没有梯度"),
            8 * n + 16 * adapters: ("the frozen base has neither gradient nor moments", "冻结的基座既没有梯度，也没有动量和方差"),
            8 * n: ("that is full fine-tuning", "这是全参数微调的结果"),
            2 * n + 8 * adapters: ("PEFT keeps adapters in float32: 4 + 4 + 4 + 4 bytes each", "PEFT 的适配器是 fp32：每个参数 4 + 4 + 4 + 4 字节"),
            2 * n + 12 * adapters: ("one of the adapter's four parts is missing: weights, gradients, two moments", "适配器的四项里少了一项：权重、梯度、动量、方差"),
            2 * n + 16 * one_layer: ("that is the adapters of one layer; multiply by n_layers", "这只是一层的适配器，还要乘以 n_layers"),
            2 * n: ("the adapters are missing", "漏掉了适配器"),
        }  # fmt: skip
    for number, reason in reasons.items():
        if close(result, number, tolerance=1e-9):
            raise Wrong(*reason)
    call = f"static_bytes({shape.name}, {kind!r}, {rank})"
    raise Wrong(f"{call} gives {result}, should be {wanted}", f"{call} 得到 {result}，应为 {wanted}")


@question("q1_2")
def peak_gb(value: Any) -> None:
    """The peak of `PEAK_SETTING` in GB, within 10 % of labkit's prediction."""
    prediction = predict_choice(PEAK_SETTING)
    parts, peak = prediction.components, prediction.peak_allocated_bytes / 1e9
    number = attempted(value)
    if close(number, peak, tolerance=0.1):
        return
    half = (parts["logits"] + parts["activations"]) / 2e9
    bf16 = 2 * shape_of(PEAK_SETTING["model"]).n_params / 1e9
    stored = (parts["parameters"] + parts["quantization_constants"]) / 1e9
    reasons = [
        (peak - parts["logits"] / 1e9, "the logits are missing: 12 bytes x tokens x V", "漏掉了 logits：12 字节 × token 数 × V"),
        (peak - half, "two sequences of 1,536 tokens are 3,072 tokens", "2 条序列、每条 1,536 个 token，一共 3,072 个"),
        (peak - stored + bf16, "that has the weights in bf16; here the linears are in NF4", "这里权重按 bf16 算了；线性层应按 NF4 算"),
        (peak * 1e9, "that is bytes; GB are asked for", "这是字节数，题目要 GB"),
    ]  # fmt: skip
    for wrong, en, zh in reasons:
        if close(number, wrong, tolerance=0.03):
            raise Wrong(en, zh)
    off = f"{number / peak:.2f}" if isinstance(number, int | float) else "?"
    raise Wrong(
        f"{number} GB is {off} times labkit's prediction, and within 10 % is asked; go through the four terms once more",
        f"{number} GB 是 labkit 预测值的 {off} 倍，要求误差在 10% 以内；请把四项重新核对一遍",
    )


@question("q1_3")
def fitting_changes(value: Any) -> dict[str, Any]:
    """The fewest changes to `OLD_RECIPE` with which it fits `CARD_GIB`, `RESERVE_GIB` left free."""
    if not isinstance(value, Mapping):
        raise Wrong(
            "a dict of changes is asked for, e.g. dict(rank=8)", "这里要一个由改动组成的 dict，例如 dict(rank=8)"
        )
    if not value or any(item is ... for item in value.values()):
        raise NotAttempted
    if touched := [key for key in value if key in FIXED]:
        raise Wrong(
            f"{touched[0]} is part of the task: it changes what the model learns, not only what it costs",
            f"{touched[0]} 是任务的一部分：改了它，模型学到的东西也变了，不只是开销",
        )
    changes = {key: item for key, item in value.items() if OLD_RECIPE.get(key, ...) != item}
    try:
        prediction = predict_choice({**OLD_RECIPE, **changes})
    except LabError as error:
        raise Wrong(str(error), str(error)) from error
    peak, spare = prediction.peak_allocated_bytes / GIB, spare_gib(prediction, CARD_GIB)
    if peak > CARD_GIB:
        raise Wrong(f"the peak is {peak:.2f} GiB: too much", f"峰值是 {peak:.2f} GiB，放不下")
    if spare < 0:
        raise Wrong(
            f"{peak:.2f} GiB are below 12 GiB, but {RESERVE_GIB:g} GiB is kept for the context and the allocator",
            f"{peak:.2f} GiB 虽然小于 12 GiB，但还要给 CUDA 上下文和分配器留 {RESERVE_GIB:g} GiB",
        )
    if len(changes) > FEWEST:
        raise Wrong(
            f"it fits ({peak:.2f} GiB), but {len(changes)} changes are more than needed",
            f"放得下（{peak:.2f} GiB），但 {len(changes)} 处改动多于必要",
        )
    return {"changes": changes, "peak_gib": round(peak, 3)}


question("q1_4", written=True)(explanation)
