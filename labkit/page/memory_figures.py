"""Predicted memory as a student sees it: a choice becomes a prediction, predictions become bars beside the cards."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import Method, Step, parse_targets
from labkit.models.shapes import shape_of
from labkit.page.figures import OKABE_ITO
from labkit.theory.fitting import GIB, RESERVE_GIB
from labkit.theory.memory import COMPONENTS, PHASES, Prediction, predict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPONENTS_ZH = dict(
    zip(
        COMPONENTS,
        ("权重", "量化常数", "适配器", "梯度", "优化器状态", "激活值", "logits", "临时张量"),
        strict=True,
    )
)
PHASES_ZH = dict(zip(PHASES, ("加载", "前向", "反向", "更新"), strict=True))
CARDS_GIB = (16, 24, 80)  # T4, RTX 4090, A100-80G
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo")  # the second cue beside colour
METHOD_FIELDS = tuple(field.name for field in fields(Method))
STEP_FIELDS = tuple(field.name for field in fields(Step))
PALETTE = (*OKABE_ITO[:7], "#999999")  # grey for temporaries: black would hide its hatch


def settle(choice: Mapping[str, Any]) -> tuple[str, Method, Step]:
    """Model name, method and step of a ``choice`` such as ``dict(model="qwen3-8b", kind="qlora", seq_len=2048)``.

    Args:
        choice: ``model``, ``kind`` and any field of `Method` and `Step`; ``targets`` may be ``"all"`` or
            ``"q_proj,v_proj"``. What is left out keeps its default.

    Raises:
        LabError: ``model`` or ``kind`` is missing, an unknown key (with near matches), or a value out of range.
    """
    known = ("model", *METHOD_FIELDS, *STEP_FIELDS)
    for key in choice:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=2)
            fix = f"did you mean {' or '.join(near)}?" if near else "use one of " + ", ".join(known)
            raise LabError(f"{key}={choice[key]!r}", "a choice has no such key", fix)
    if missing := [key for key in ("model", "kind") if key not in choice]:
        raise LabError(f"a choice without {missing[0]}", "a choice names a model and a kind", "add kind='qlora', say")
    settings = dict(choice)
    if isinstance(settings.get("targets"), str):
        settings["targets"] = parse_targets(settings["targets"])
    method = Method(**{key: settings[key] for key in METHOD_FIELDS if key in settings})
    step = Step(**{key: settings[key] for key in STEP_FIELDS if key in settings})
    return settings["model"], method, step


def predict_choice(choice: Mapping[str, Any]) -> Prediction:
    """`labkit.theory.memory.predict` for a dictionary (see `settle`, which also says what it raises)."""
    model, method, step = settle(choice)
    return predict(shape_of(model), method, step)


def spare_gib(prediction: Prediction, card_gib: float) -> float:
    """GiB left on a card once the predicted peak and `RESERVE_GIB` are taken; below zero, it does not fit."""
    return card_gib - RESERVE_GIB - prediction.peak_allocated_bytes / GIB


def verdict(prediction: Prediction, card_gib: float) -> str:
    """One line: whether the prediction fits a card, and by how much."""
    spare = spare_gib(prediction, card_gib)
    return verdict_template(fits=spare >= 0).format(card=f"{card_gib:g}", gib=f"{abs(spare):.2f}")


def verdict_template(*, fits: bool) -> str:
    """The wording of `verdict`, with {card} and {gib} to be filled in."""
    if fits:
        return text("fits {card} GiB: {gib} GiB spare", "{card} GiB 放得下：富余 {gib} GiB")
    return text("does not fit {card} GiB: {gib} GiB short", "{card} GiB 放不下：还差 {gib} GiB")


def describe(predictions: Mapping[str, Prediction]) -> str:
    """The bars in words, for a figure's alt text: each label with its peak and its largest component."""
    parts = []
    for label, prediction in predictions.items():
        name, size = max(prediction.components.items(), key=lambda item: item[1])
        peak = prediction.peak_allocated_bytes / GIB
        parts.append(f"{label} {peak:.2f} GiB, the largest part {name.replace('_', ' ')} ({size / GIB:.2f} GiB)")
    return "Predicted peak memory: " + "; ".join(parts)


def memory_bars(predictions: Mapping[str, Prediction], *, cards_gib: Sequence[float] = CARDS_GIB) -> Figure:
    """One stacked horizontal bar a prediction, in GiB, by component at the peak; dashed lines are the cards.

    Args:
        predictions: label -> prediction, top to bottom.
        cards_gib: capacities in GiB; those far beyond the longest bar are left out.

    Raises:
        LabError: there is no prediction to draw.
    """
    if not predictions:
        raise LabError("memory_bars({})", "there is nothing to draw", "give at least one label and prediction")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8.5, 1.5 + 0.45 * len(predictions)))
    axes = fig.subplots()
    _stack(axes, predictions)
    longest = max(prediction.peak_allocated_bytes for prediction in predictions.values()) / GIB
    near = [card for card in sorted(cards_gib) if card <= 1.5 * longest] or sorted(cards_gib)[:1]
    _cards(axes, near)
    axes.set_xlim(0, max([1.28 * longest, *(1.08 * card for card in near)]))
    axes.set_xlabel("peak allocated memory (GiB), predicted")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55 / fig.get_figheight() - 0.1), ncols=4, frameon=False)
    return fig


def _stack(axes: Axes, predictions: Mapping[str, Prediction]) -> None:
    labels, lefts = list(predictions), [0.0] * len(predictions)
    for name, colour, hatch in zip(COMPONENTS, PALETTE, HATCHES, strict=True):
        widths = [prediction.components[name] / GIB for prediction in predictions.values()]
        if any(widths):
            style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
            axes.barh(labels, widths, left=lefts, label=name.replace("_", " "), **style)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for row, (left, prediction) in enumerate(zip(lefts, predictions.values(), strict=True)):
        note = f" {left:.2f} GiB = {prediction.peak_allocated_bytes / 1e9:.2f} GB"
        axes.text(left, row, note, va="center", fontsize=9, bbox={"color": "white", "pad": 0.6})


def _cards(axes: Axes, cards_gib: Sequence[float]) -> None:
    for card in cards_gib:
        axes.axvline(card, color="#000000", linestyle="--", linewidth=1, zorder=0)
        axes.text(card, 1.01, f"{card:g} GiB", ha="center", fontsize=9, transform=axes.get_xaxis_transform())
