"""Records that no machine makes: of another model, of a card that is too small, of a run that took no time."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from labkit.course.grading.read import Answer, clean
from labkit.models.profiles import PROFILES
from labkit.page.exercises import CURVE_POINTS

# GiB of cards that students rent; a record with a larger peak is not of that card. Source: the makers' data sheets.
CARD_GIB = {"T4": 16, "P100": 16, "V100": 32, "RTX 3090": 24, "RTX 4090": 24, "RTX 5090": 32, "L4": 24, "A10": 24,
            "A40": 48, "L40": 48, "A100": 80, "H100": 94, "H800": 80, "H20": 141}  # fmt: skip
# A point is the loss of one batch, so real curves jump: of this book's 393 stored runs (tiny and SmolLM2-135M) the
# smoothest has a median second difference of 2.8 % of its median loss.
LEAST_NOISE = 0.004
FEWEST_POINTS = 8


@functools.cache
def static_bytes(profile: str) -> int:
    """What the model of a profile takes before any batch: weights, adapters, optimizer states."""
    from labkit.models.shapes import shape_of
    from labkit.theory.memory import predict

    chosen = PROFILES[profile]
    method = replace(chosen.method, dtype="bfloat16")  # 16 bits wherever there is a GPU
    return predict(shape_of(chosen.model), method, chosen.step).static_bytes


def doubts(answers: Sequence[Answer]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, English, Chinese) for records that do not fit their model, their GPU or each other."""
    found: dict[tuple[str, str, str], None] = {}
    for answer in answers:
        found |= dict.fromkeys(_doubts_of(answer))
    yield from list(found)[:8]
    machines = {(answer.profile, answer.gpu) for answer in answers}
    if len(machines) > 1:
        yield (
            "several machines",
            f"records of {len(machines)} machines or profiles",
            f"记录来自 {len(machines)} 台机器或配置",
        )


def _doubts_of(answer: Answer) -> Iterator[tuple[str, str, str]]:
    kind, id = "implausible", answer.question
    profile = PROFILES.get(answer.profile)
    if profile is None or profile.model != answer.model:
        named = f"{clean(answer.profile, 20)}/{clean(answer.model, 40)}"
        yield kind, f"{id}: no profile has this model ({named})", f"{id}：没有哪个配置用这个模型（{named}）"
        return
    if answer.gpu is None and answer.peak_bytes is not None:
        yield kind, f"{id}: GPU memory without a GPU", f"{id}：没有 GPU，却有显存峰值"
    if profile.needs_cuda and answer.gpu is None:
        yield kind, f"{id}: profile {profile.name} without a GPU", f"{id}：{profile.name} 配置却没有 GPU"
    card = next((gib for name, gib in CARD_GIB.items() if answer.gpu and name in answer.gpu), None)
    if card and answer.peak_bytes and answer.peak_bytes > card * 2**30:
        yield kind, f"{id}: a peak above the {card} GiB of its card", f"{id}：峰值超过了显卡的 {card} GiB"
    if answer.seconds < 0 or answer.seconds > 14 * 86_400:
        yield kind, f"{id}: a cell that ran {answer.seconds:g} s", f"{id}：单元格运行了 {answer.seconds:g} 秒"
    if id.startswith("r"):
        yield from _run_doubts(answer)
    if "python" not in answer.versions:
        yield kind, f"{id}: a record without versions", f"{id}：记录里没有版本"


class Run(BaseModel):
    """What `labkit.page.exercises.record_run` records."""

    steps: Annotated[int, Field(ge=1, le=10**7)]
    losses: Annotated[list[Annotated[float, Field(ge=0, le=1e6)]], Field(max_length=CURVE_POINTS)]
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    peak_memory: Annotated[dict[str, Annotated[int, Field(ge=0, le=2**50)]], Field(max_length=8)]


def _run_doubts(answer: Answer) -> Iterator[tuple[str, str, str]]:
    kind, id, profile = "implausible", answer.question, PROFILES[answer.profile]
    try:
        run = Run.model_validate(answer.value)
    except ValidationError:
        yield kind, f"{id}: the record of a run without a loss curve", f"{id}：训练记录里没有损失曲线"
        return
    if run.steps != profile.steps:
        took = f"{run.steps} steps, the profile {profile.name} takes {profile.steps}"
        yield kind, f"{id}: {took}", f"{id}：记录了 {run.steps} 步，而 {profile.name} 配置训练 {profile.steps} 步"
    if len(run.losses) >= FEWEST_POINTS and noise(run.losses) < LEAST_NOISE:
        yield kind, f"{id}: a loss curve without noise", f"{id}：损失曲线没有噪声"
    peak_bytes = run.peak_memory.get("cuda_max_allocated_bytes", 0)
    if answer.gpu is not None and peak_bytes < static_bytes(answer.profile):
        yield kind, f"{id}: a peak below the model's static size", f"{id}：峰值比模型的静态大小还小"
    if run.seconds < 0.005 * run.steps:
        took = f"{run.steps} steps in {run.seconds:g} s"
        yield kind, f"{id}: {took}", f"{id}：{run.steps} 步只用了 {run.seconds:g} 秒"


def noise(losses: Sequence[float]) -> float:
    """The median size of a curve's second differences, as a share of its median loss (at least three losses)."""
    second = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return statistics.median(second) / max(statistics.median(losses), 1e-9)
