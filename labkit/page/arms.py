"""The arms of lesson 07's comparison: each block of a sweep at its own best learning rate, and how far apart two are.

The trials of an arm differ in their seed, or (for a selection by chance) in what was drawn; arms are independent
samples, so two are compared by Welch's interval for the difference of their means (`scipy.stats.ttest_ind`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.errors import LabError
from labkit.theory.intervals import LEVEL, Interval, t_interval

LOSS = "heldout_loss_after"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to choose and to train, at the learning rate that served it best.

    Attributes:
        name: of the grid's block, e.g. ``"LoRA, high"``.
        learning_rate: the one with the lowest mean; a rate of which a trial failed is out.
        edge: whether that rate is the smallest or largest that was tried (the best may lie outside), of two or more.
        losses: held-out loss of each trial, nats a token.
        interval: of their mean, by Student's t.
        trainable_params: of each trial.
        predicted_bytes: peak of one step in closed form.
        rates: learning rate -> mean loss.
    """

    name: str
    learning_rate: float
    edge: bool
    losses: tuple[float, ...]
    interval: Interval
    trainable_params: int
    predicted_bytes: int
    rates: dict[float, float]


def arms_of(rows: Sequence[dict[str, Any]]) -> list[Arm]:
    """The blocks of a results file (see `labkit.jsonl.read_rows`) as arms, the best first.

    Raises:
        LabError: a block of which no learning rate has a loss for every trial.
    """
    names = dict.fromkeys(block for row in rows for block in row["blocks"])
    return sorted((_arm(name, [row for row in rows if name in row["blocks"]]) for name in names), key=_mean)


def _mean(arm: Arm) -> float:
    return arm.interval.mean


def _arm(name: str, rows: list[dict[str, Any]]) -> Arm:
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        by_rate.setdefault(row["settings"]["learning_rate"], []).append(row)
    most = max(map(len, by_rate.values()))  # a rate tried with one seed cannot beat one tried with three
    whole = {rate: group for rate, group in by_rate.items() if all(row[LOSS] is not None for row in group)}
    full = {rate: group for rate, group in whole.items() if len(group) == most}
    if not full:
        rule = "no learning rate has a loss for every trial"
        raise LabError(f"block {name!r}", rule, "run the sweep again with --retry")
    means = {rate: sum(row[LOSS] for row in group) / len(group) for rate, group in whole.items()}
    best = min(full, key=means.__getitem__)
    losses = tuple(row[LOSS] for row in full[best])
    return Arm(
        name=name,
        learning_rate=best,
        edge=len(by_rate) > 1 and best in (min(by_rate), max(by_rate)),
        losses=losses,
        interval=t_interval(losses),
        trainable_params=full[best][0]["trainable_params"],
        predicted_bytes=full[best][0]["peak_memory"]["predicted_bytes"],
        rates=dict(sorted(means.items())),
    )


def difference(first: Arm, second: Arm) -> Interval:
    """``second`` minus ``first``, with Welch's 95 % interval; ``holds_zero`` says that they may as well be equal.

    Raises:
        LabError: an arm of a single trial.
    """
    from scipy.stats import ttest_ind

    if min(len(first.losses), len(second.losses)) < 2:
        rule = "a difference of single runs says nothing"
        raise LabError(f"{first.name} and {second.name}", rule, "run at least two trials each")
    found = ttest_ind(second.losses, first.losses, equal_var=False).confidence_interval(LEVEL)
    n = len(first.losses) + len(second.losses)
    return Interval(second.interval.mean - first.interval.mean, float(found.low), float(found.high), n, "Welch")


def table(arms: Sequence[Arm], *, baseline: str) -> list[tuple[str, ...]]:
    """Head and lines: arm, best learning rate, trained parameters, predicted peak, loss, and distance to an arm."""
    reference = next(arm for arm in arms if arm.name == baseline)
    rows = [("arm", "rate", "trained", "peak, MiB", "held-out loss", f"minus {baseline}")]
    for arm in arms:
        gap = "" if arm is reference else _signed(difference(reference, arm))
        loss = f"{arm.interval.mean:.3f} ± {arm.interval.half_width:.3f}"
        rate = f"{arm.learning_rate:g}" + ("*" if arm.edge else "")
        peak = f"{arm.predicted_bytes / 2**20:.1f}"
        rows.append((arm.name, rate, f"{arm.trainable_params:,}", peak, loss, gap))
    return rows


def _signed(gap: Interval) -> str:
    said = "noise" if gap.holds_zero else "better" if gap.mean < 0 else "worse"
    return f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}) {said}"
