"""Tables for the browser: Python functions written down as pieces of straight lines, exact on a grid of token counts.

An explorer's JavaScript knows no formula. What it adds up was evaluated here: a quantity in bytes that depends on the
tokens N and on the rank r as c + s N + r (u + w N), with its own c and s between two breakpoints of N, is written as
``[[[from, c, s], ...], u, w]``. `trace` finds these numbers by evaluating the function, and refuses one that is not of
that form; nothing is fitted, every value on the grid comes back to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from labkit.errors import LabError

Pieces = list[list[int]]  # [from, constant, slope], in the order of `from`


def pieces(values: Sequence[int], grid: Sequence[int]) -> Pieces:
    """Straight pieces through every point of ``values`` over ``grid``, as few as a walk from left to right finds.

    Args:
        values: whole numbers, one a grid point.
        grid: increasing whole numbers.
    """
    found, start = [], 0
    while start < len(grid):
        slope, constant, end = 0, values[start], start + 1
        if end < len(grid):
            step, rest = divmod(values[end] - values[start], grid[end] - grid[start])
            if not rest:  # a slope that is no whole number would not come back exactly
                slope, constant = step, values[start] - step * grid[start]
        while end < len(grid) and values[end] == constant + slope * grid[end]:
            end += 1
        found.append([grid[start], constant, slope])
        start = end
    return found


def trace(function: Callable[[int, int], int], grid: Sequence[int], ranks: Sequence[int]) -> list:
    """``[pieces, u, w]`` of a ``function`` (tokens, rank) -> bytes, with ``ranks`` its ranks (one: no rank at all).

    Raises:
        LabError: the function is not a straight line in the rank, checked at a middle and the last rank, at
            both ends and in the middle of the grid.
    """
    first, u, w = ranks[0], 0, 0
    if len(ranks) > 1:
        low, high = (function(n, ranks[1]) - function(n, first) for n in (grid[0], grid[-1]))
        w = (high - low) // ((ranks[1] - first) * (grid[-1] - grid[0]))
        u = low // (ranks[1] - first) - w * grid[0]
    found = pieces([function(n, first) - first * (u + w * n) for n in grid], grid)
    for rank in {ranks[-1], ranks[len(ranks) // 2]}:
        for n in (grid[0], grid[len(grid) // 2], grid[-1]):
            _straight(function(n, rank) == value([found, u, w], n, rank), f"at {n} tokens and rank {rank}")
    return [found, u, w]


def value(traced: list, tokens: int, rank: int) -> int:
    """What the browser makes of a traced function: find the piece, multiply, add."""
    found, u, w = traced
    _, constant, slope = next(piece for piece in reversed(found) if piece[0] <= tokens)
    return constant + slope * tokens + rank * (u + w * tokens)


class Pool:
    """Equal entries stored once: `add` returns an entry's index in ``entries``."""

    def __init__(self) -> None:
        self.entries: list = []
        self._index: dict[str, int] = {}

    def add(self, entry: list) -> int:
        """The index of ``entry``, which is appended if it is new."""
        key = json.dumps(entry)
        if key not in self._index:
            self._index[key] = len(self.entries)
            self.entries.append(entry)
        return self._index[key]


def _straight(holds: bool, where: str) -> None:
    if not holds:
        raise LabError(f"a table {where}", "it is not a straight line, so the page would be wrong", "use a finer table")
