"""`labkit.theory.fitting`'s changes as moves of the explorer's controls, in the student's language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labkit.labels import text
from labkit.models.methods import Method, Step
from labkit.models.shapes import shape_of
from labkit.page.memory_tables import AXES
from labkit.theory.fitting import single_changes

ORDER = ("loss", "batch", "optimizer", "checkpointing", "kind", "rank", "targets", "seq_len", "model")


@dataclass(frozen=True, kw_only=True)
class Move:
    """One change of one axis, between two indices of `AXES`, with its cost and, in words, what it is and takes."""

    axis: str
    start: int
    to: int
    cost: int
    what: str
    price: str


def moves() -> list[Move]:
    """Every change on offer, in the order in which `single_changes` offers them."""
    return [move for axis in ORDER for start in AXES[axis] for move in _moves(axis, start)]


def _moves(axis: str, start: Any) -> Iterator[Move]:
    """The moves of one axis from one of its values; the other axes do not matter to what is offered."""
    chosen = {"kind": "lora", axis: start}
    method = Method(**{name: value for name, value in chosen.items() if name in ("kind", "rank", "targets")})
    step = Step(**{name: value for name, value in chosen.items() if name not in ("kind", "rank", "targets", "model")})
    for change in single_changes(shape_of(chosen.get("model", "qwen3-8b")), method, step):
        if change.field == axis:
            at = {"start": AXES[axis].index(start), "to": AXES[axis].index(change.value)}
            yield Move(axis=axis, cost=change.cost, what=text(*change.what), price=text(*change.price), **at)
