"""Records that no machine makes: of another model, of a card that is too small, of a run that took no time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from labkit.course.grading.read import Answer, clean
from labkit.models.profiles import PROFILES

# GiB of cards that students rent; a record with a larger peak is not of that card. Source: the makers' data sheets.
CARD_GIB = {"T4": 16, "P100": 16, "V100": 32, "RTX 3090": 24, "RTX 4090": 24, "RTX 5090": 32, "L4": 24, "A10": 24,
            "A40": 48, "L40": 48, "A100": 80, "H100": 94, "H800": 80, "H20": 141}  # fmt: skip
TRAINED = ("q4_4",)  # questions whose cell trains the profile's model


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
    if answer.question in TRAINED and answer.state in ("right", "wrong"):
        yield from _training_doubts(answer)
    if "python" not in answer.versions:
        yield kind, f"{id}: a record without versions", f"{id}：记录里没有版本"


def _training_doubts(answer: Answer) -> Iterator[tuple[str, str, str]]:
    kind, id = "implausible", answer.question
    if answer.gpu is not None and (answer.peak_bytes or 0) < static_bytes(answer.profile):
        yield kind, f"{id}: a peak below the model's static size", f"{id}：峰值比模型的静态大小还小"
    if answer.seconds < 0.2:
        yield kind, f"{id}: a training run of {answer.seconds:g} s", f"{id}：训练只用了 {answer.seconds:g} 秒"
