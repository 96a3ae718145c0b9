"""Lesson 04: what the exercises accept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from labkit.models.methods import Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.page.exercises import NotAttempted, Wrong, attempted, must_be_function, question
from labkit.page.questions.q00 import close
from labkit.page.questions.written import explanation
from labkit.theory.memory import predict

IGNORED = -100

# --- q4_1 ------------------------------------------------------------------------------------------------------------

LABEL_CASES = (
    [[IGNORED, IGNORED, 7, 8, 2]],  # a prompt of two tokens
    [[IGNORED, 5, 2, IGNORED], [IGNORED, IGNORED, 9, 2]],  # padding, and a second row
    [[4, 6, 2]],  # plain text: nothing predicts its first token
    [[IGNORED, IGNORED, IGNORED]],  # an answer that was cut away
    [[3, IGNORED, 0, 2, IGNORED, IGNORED]],  # token 0 is a token like any other
)


def _counts(labels: list[list[int]]) -> dict[str, int]:
    kept = sum(label != IGNORED for row in labels for label in row)
    return {
        "right": sum(label != IGNORED for row in labels for label in row[1:]),
        "unshifted": kept,
        "ignored": sum(map(len, labels)) - kept,
        "all": sum(map(len, labels)),
        "positive": sum(label > 0 for row in labels for label in row[1:]),
    }


@question("q4_1")
def loss_tokens(value: Any) -> list[int]:
    """A function (labels of a batch) -> how many terms its loss has."""
    must_be_function(value, "loss_tokens")
    found = [value([list(row) for row in labels]) for labels in LABEL_CASES]
    if any(result is None or result is ... for result in found):
        raise NotAttempted
    for labels, result in zip(LABEL_CASES, found, strict=True):
        counts = _counts(labels)
        if result != counts["right"]:
            raise Wrong(*_why_count_is_wrong(labels, result, counts))
    return [int(result) for result in found]


def _why_count_is_wrong(labels: list[list[int]], result: Any, counts: dict[str, int]) -> tuple[str, str]:
    shown = f"loss_tokens({labels}) = {result}"
    if result == counts["unshifted"] and labels[0][0] != IGNORED:
        return (
            f"{shown}: position t predicts token t + 1, so nothing predicts a row's first token: its label never counts",
            f"{shown}：位置 t 预测的是第 t + 1 个词元，没有位置去预测每行的第一个词元，所以它的标签不算",
        )
    if result == counts["positive"]:
        return (
            f"{shown}: 0 is a token id like any other; only -100 is left out",
            f"{shown}：0 也是普通的词元编号，只有 -100 不算",
        )
    if result == counts["ignored"]:
        return f"{shown}: that counts the labels that are left out", f"{shown}：你数的是被忽略的标签"
    if result == counts["all"]:
        return (
            f"{shown}: that is every token; labels of -100 carry no loss",
            f"{shown}：这是全部词元；标签为 -100 的不产生损失",
        )
    return f"{shown}, should be {counts['right']}", f"{shown}，应为 {counts['right']}"


# --- q4_2 ------------------------------------------------------------------------------------------------------------

DIAGNOSES = ("healthy", "prompt", "stop", "shifted", "twice")
PROMPT = (
    "<|im_start|>",
    "user",
    "\n",
    "Name",
    " two",
    " colours",
    ".",
    "<|im_end|>",
    "\n",
    "<|im_start|>",
    "assistant",
    "\n",
)
ANSWER = ("red", ",", " blue", "<|im_end|>")
Patient = list[tuple[str, str]]  # (token, label as text): a label is "-100" or the token that the loss is on


def _patient(prompt: tuple[str, ...], answer: tuple[str, ...], padding: tuple[str, ...] = ()) -> Patient:
    ignored = str(IGNORED)
    learned = [(token, token) for token in answer]
    return [*((token, ignored) for token in prompt), *learned, *((token, ignored) for token in padding)]


def patients() -> dict[str, Patient]:
    """Four examples as a trainer would see them, each healthy or with one bug: name to (token, label) pairs."""
    healthy, padding = _patient(PROMPT, ANSWER), ("<|endoftext|>", "<|endoftext|>")
    tokens = [token for token, _ in healthy]
    labels = [label for _, label in healthy]
    return {
        "A": _patient(PROMPT, ANSWER[:-1], (ANSWER[-1],) * 3),
        "B": list(zip(tokens, [*labels[1:], str(IGNORED)], strict=True)),
        "C": _patient(PROMPT, ANSWER, padding),
        "D": _patient((*PROMPT[:3], *PROMPT, *PROMPT[7:]), ANSWER, padding),
    }


CURES = {"A": "stop", "B": "shifted", "C": "healthy", "D": "twice"}
LOOK = {
    "A": (
        "A: find the first <|im_end|> after the answer. What is its label?",
        "A：找到答案后面的第一个 <|im_end|>，它的标签是什么？",
    ),
    "B": (
        "B: compare a token with the label beside it. The model shifts labels by itself, once",
        "B：把每个词元和同一行的标签对照一下。模型自己会把标签移一位，而且只移一次",
    ),
    "C": (
        "C: the answer and its stop token carry loss, prompt and padding do not. Is that a bug?",
        "C：答案和停止词元产生损失，提示和填充不产生。这算错误吗？",
    ),
    "D": (
        "D: read the tokens from top to bottom. How many turns begin?",
        "D：从上到下读一遍词元，一共开始了几轮对话？",
    ),
}


@question("q4_2")
def diagnoses(value: Any) -> None:
    """A dictionary patient -> diagnosis."""
    if not isinstance(value, Mapping) or set(value) != set(CURES):
        raise Wrong('a dictionary with the keys "A" to "D" is asked for', '这里要一个键为 "A" 到 "D" 的字典')
    if any(item is ... or item is None for item in value.values()):
        raise NotAttempted
    for name, found in value.items():
        if found not in DIAGNOSES:
            known = ", ".join(DIAGNOSES)
            raise Wrong(f"{name}: {found!r} is none of {known}", f"{name}：{found!r} 不在 {known} 之中")
    for name, cure in CURES.items():
        if value[name] != cure:
            raise Wrong(*LOOK[name])


# --- q4_3 ------------------------------------------------------------------------------------------------------------

ONE_BATCH_ROWS = 16  # the gpu profile's rows per step, in one forward pass
TOLERANCE = 0.10


def peaks_gib() -> dict[str, float]:
    """Predicted peaks of Qwen3-1.7B: of the profile as it is, of the exercise, and of recognised mistakes, in GiB."""
    profile, shape = PROFILES["gpu"], shape_of("qwen3-1.7b")
    method = replace(profile.method, dtype="bfloat16")
    given = predict(shape, method, profile.step)
    wanted = predict(shape, method, Step(batch=ONE_BATCH_ROWS, seq_len=profile.seq_len))
    factor = ONE_BATCH_ROWS / profile.batch
    moving = given.peak_allocated_bytes - given.static_bytes
    found = {
        "given": given.peak_allocated_bytes,
        "wanted": wanted.peak_allocated_bytes,
        "all_scaled": given.peak_allocated_bytes * factor,
        "moving_only": moving * factor,
        "static_only": given.static_bytes,
    }
    return {name: n_bytes / 2**30 for name, n_bytes in found.items()}


@question("q4_3")
def peak_without_accumulation(value: Any) -> None:
    """GiB of the gpu profile's step with batch 16 in place of 4 times 4."""
    number, peaks = attempted(value), peaks_gib()
    mistakes = (
        ("given", "accumulation does not add memory, but a larger batch does", "梯度累积不增加显存，可批变大会增加"),
        (
            "all_scaled",
            "weights, adapters and optimizer states do not grow with the batch",
            "权重、适配器和优化器状态不随批大小变大",
        ),
        ("moving_only", "and the part that is there with any batch?", "那么与批大小无关的那一部分呢？"),
        ("static_only", "that is the static part alone", "这只是静态部分"),
    )
    if close(number, peaks["wanted"], tolerance=TOLERANCE):
        return
    for name, en, zh in mistakes:
        if close(number, peaks[name], tolerance=0.03):
            raise Wrong(en, zh)
    raise Wrong(
        f"{number} GiB is not within 10 % of what labkit predicts", f"{number} GiB 与 labkit 的预测相差超过 10%"
    )


# --- q4_4 ------------------------------------------------------------------------------------------------------------

DEFAULT_LEARNING_RATE = 2e-5  # of TRL's SFTConfig


@question("q4_4")
def better_run(value: Any) -> dict[str, Any]:
    """A dictionary with ``choice``, ``heldout_loss``, ``baseline`` and ``row_budget`` of a run that was made."""
    wanted = {"choice", "heldout_loss", "baseline", "row_budget"}
    if not isinstance(value, Mapping) or set(value) != wanted or not isinstance(value["choice"], Mapping):
        raise Wrong("leave the last line as it was, and change only the choice", "最后一行保持原样，只改 choice")
    choice, loss = value["choice"], value["heldout_loss"]
    if any(item is ... or item is None for item in (*choice.values(), loss)):
        raise NotAttempted
    rows = choice["steps"] * choice["batch"]
    if rows > value["row_budget"]:
        raise Wrong(
            f"steps x batch = {rows} rows, and the budget is {value['row_budget']}",
            f"steps × batch = {rows} 行，超过了 {value['row_budget']} 行的预算",
        )
    if not math.isfinite(loss):
        raise Wrong("the loss is not finite: this learning rate is far too high", "损失不是有限数：学习率太高了")
    if loss >= value["baseline"]:
        raise Wrong(*_why_not_better(choice, loss, value["baseline"]))
    return dict(value)


def _why_not_better(choice: Mapping[str, Any], loss: float, baseline: float) -> tuple[str, str]:
    numbers = f"{loss:.3f} >= {baseline:.3f}"
    if choice["learning_rate"] <= 2 * DEFAULT_LEARNING_RATE:
        return (
            f"{numbers}: near the library's default of 2e-5 an adapter hardly moves in so few steps",
            f"{numbers}：学习率接近库的默认值 2e-5，这么少的步数里适配器几乎没动",
        )
    return (
        f"{numbers}: the baseline is better. Same rows: would more, smaller steps do better? Or another learning rate?",
        f"{numbers}：基线更好。行数不变，换成更多、更小的步会不会更好？或者换一个学习率？",
    )


# --- q4_5 -------------------------------------------------------------------------------------------------------------

question("q4_5", written=True)(explanation)
