"""Weights of N(0, 1) after division by the absmax of their block: exact errors and the best levels, no sampling.

In a block of B independent weights w the largest magnitude M has density ``2 B phi(m) (2 Phi(m) - 1)**(B - 1)``. One
weight of the block is +M or -M, so its normalized value x = w / M is +1 or -1; given M = m, the other B - 1 are normal,
cut off at -m and m. So every expectation below is a sum over 16 intervals of closed normal integrals, and one numerical
integral over m. That x has another distribution for every B is the argument of arXiv 2306.06965 against calling NF4
optimal. Introduced in lesson 03.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from labkit.errors import LabError

LARGEST_M = 9.0  # P(|w| > 9) is 2e-19
POINTS = 400  # trapezoid rule on a smooth integrand that vanishes at both ends: more change no printed digit
ROUNDS, SETTLED = 4000, 1e-7


def expected_error(levels: Tensor, block_size: int, *, power: int = 2) -> float:
    """E|w - w'|**power for w ~ N(0, 1), where w' is M times the level nearest to w / M.

    Args:
        levels: values in [-1, 1], any order, repeats allowed, shape (n,).
        block_size: B, weights that share one M; at least 1.
        power: 2 for the mean squared error, 1 for the mean absolute error.

    Raises:
        LabError: no levels, a block size below 1, or another power.
    """
    q, edges = _sorted(levels)
    m, weight = _absmax_density(block_size)
    if power not in (1, 2):
        raise LabError(f"power={power}", "the error is squared (2) or absolute (1)", "use power=2")
    inside = _inside_error(q, edges, m, power)
    ends = (1 - q[-1]).abs() ** power / 2 + (1 + q[0]).abs() ** power / 2
    return float((weight * ((1 - 1 / block_size) * inside + m**power * ends / block_size)).sum())


def expected_usage(levels: Tensor, block_size: int) -> Tensor:
    """Share of N(0, 1) weights that each level gets, in ascending order of the levels; float64, sums to 1.

    Raises:
        LabError: see `expected_error`.
    """
    _, edges = _sorted(levels)
    m, weight = _absmax_density(block_size)
    mass = torch.special.ndtr(edges * m[:, None]).diff(dim=1) / _kept(m)[:, None]  # (points, n)
    shares = (1 - 1 / block_size) * (weight[:, None] * mass).sum(0)
    shares[0] += 0.5 / block_size
    shares[-1] += 0.5 / block_size
    return shares


def equal_mass_edges(block_size: int, n: int = 16) -> Tensor:
    """The n - 1 inner edges, float64, that cut the normalized values of N(0, 1) blocks into n equally likely parts."""
    m, weight = _absmax_density(block_size)
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    inside = (torch.special.ndtr(x[:, None] * m) - torch.special.ndtr(-m)) / _kept(m)
    below = (1 - 1 / block_size) * (inside * weight).sum(1) + 0.5 / block_size  # the atom at -1 is below all of them
    wanted = torch.arange(1, n, dtype=torch.float64) / n
    place = torch.searchsorted(below, wanted).clamp(1, x.numel() - 1)
    step = (wanted - below[place - 1]) / (below[place] - below[place - 1]).clamp(min=1e-300)
    return (x[place - 1] + step * (x[place] - x[place - 1])).clamp(-1, 1)


@functools.lru_cache(maxsize=64)
def lloyd_levels(block_size: int, *, n: int = 16, fixed: tuple[float, ...] = ()) -> Tensor:
    """The n levels of least mean squared error for N(0, 1) in blocks (Lloyd 1982, Max 1960), ascending, float64.

    Each level moves to the mean of its interval, each edge to the middle of two levels, until nothing moves. The error
    is that of the weights, so a normalized value counts M**2 times.

    Args:
        block_size: weights that share one absmax.
        n: number of levels.
        fixed: levels that must be in the code, e.g. ``(-1.0, 0.0, 1.0)``.

    Raises:
        LabError: see `expected_error`; or more fixed levels than levels.
    """
    if len(fixed) > n:
        raise LabError(f"fixed={fixed}", f"a code of {n} levels cannot fix {len(fixed)}", "fix fewer")
    ends = torch.ones(1, dtype=torch.float64)
    edges = torch.cat([-ends, equal_mass_edges(block_size, n), ends])
    return _settle((edges[:-1] + edges[1:]) / 2, lambda levels: _pin(_means(levels, block_size), fixed))


def sample_levels(values: Tensor, weights: Tensor | None = None, *, n: int = 16) -> Tensor:
    """Lloyd-Max for a sample: n ascending levels of locally least weighted mean squared error, float64.

    Args:
        values: normalized values in [-1, 1], any shape.
        weights: how much each value's squared error counts (its block's absmax squared, to reduce the weights' own
            error), same shape; None counts all alike.
        n: number of levels, at most the number of different values.

    Raises:
        LabError: fewer different values than levels.
    """
    flat, order = values.double().flatten().sort()
    if int((flat.diff() > 0).sum()) + 1 < n:
        raise LabError(f"{flat.numel()} values", f"{n} levels need {n} different values", "give a larger sample")
    counts = torch.ones_like(flat) if weights is None else weights.double().flatten()[order]
    zero = torch.zeros(1, dtype=torch.float64)
    mass, moment = torch.cat([zero, counts.cumsum(0)]), torch.cat([zero, (counts * flat).cumsum(0)])

    def means(levels: Tensor) -> Tensor:
        cuts = torch.searchsorted(flat, (levels[:-1] + levels[1:]) / 2)
        cuts = torch.cat([zero.long(), cuts, torch.tensor([flat.numel()])])
        held = mass[cuts].diff()
        return torch.where(held > 0, moment[cuts].diff() / held, levels)

    different = flat.unique()
    return _settle(different[torch.linspace(0, different.numel() - 1, n).long()], means)


def _settle(levels: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    for _ in range(ROUNDS):
        moved = step(levels)
        change, levels = float((moved - levels).abs().max()), moved
        if change < SETTLED:
            break
    return levels


def _sorted(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending levels (n,) and the edges of their intervals (n + 1,), from -1 to 1, both float64."""
    q = torch.as_tensor(levels, dtype=torch.float64).flatten().sort().values
    if not q.numel():
        raise LabError("0 levels", "a code has at least one level", "give some values between -1 and 1")
    ends = torch.ones(1, dtype=torch.float64)
    return q, torch.cat([-ends, ((q[:-1] + q[1:]) / 2).clamp(-1, 1), ends])


@functools.lru_cache(maxsize=64)
def _absmax_density(block_size: int) -> tuple[Tensor, Tensor]:
    """Points m of (0, LARGEST_M) and the probability of each, summing to 1; both (points,)."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        rule = "a block is a whole number of weights, at least 1"
        raise LabError(f"block_size={block_size!r}", rule, "try block_size=64")
    m = torch.linspace(0, LARGEST_M, POINTS + 1, dtype=torch.float64)[1:]
    density = _phi(m) * _kept(m) ** (block_size - 1)
    return m, density / density.sum()


def _phi(z: Tensor) -> Tensor:
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _kept(m: Tensor) -> Tensor:
    """P(|w| < m) of N(0, 1)."""
    return torch.erf(m / math.sqrt(2))


def _first(z: Tensor) -> Tensor:
    """Antiderivative of w phi(w)."""
    return -_phi(z)


def _second(z: Tensor) -> Tensor:
    """Antiderivative of w**2 phi(w)."""
    return torch.special.ndtr(z) - z * _phi(z)


def _inside_error(q: Tensor, edges: Tensor, m: Tensor, power: int) -> Tensor:
    """Mean error of the weights below the absmax, given that it is m; (points,)."""
    at, level = edges * m[:, None], q * m[:, None]
    if power == 2:
        mass, first, second = (f(at).diff(dim=1) for f in (torch.special.ndtr, _first, _second))
        return (second - 2 * level * first + level**2 * mass).sum(1) / _kept(m)
    clipped = torch.maximum(torch.minimum(level, at[:, 1:]), at[:, :-1])

    def gap(low: Tensor, high: Tensor) -> Tensor:  # integral of (w - level) phi(w) between low and high
        return _first(high) - _first(low) - level * (torch.special.ndtr(high) - torch.special.ndtr(low))

    return (gap(clipped, at[:, 1:]) - gap(at[:, :-1], clipped)).sum(1) / _kept(m)


def _means(levels: Tensor, block_size: int) -> Tensor:
    """The mean of every level's interval, counted M**2 times, the atoms at -1 and 1 included."""
    _, edges = _sorted(levels)
    m, weight = _absmax_density(block_size)
    at, share = edges * m[:, None], (1 - 1 / block_size) * (weight * m / _kept(m))[:, None]
    mass = (share * m[:, None] * torch.special.ndtr(at).diff(dim=1)).sum(0)
    moment = (share * _first(at).diff(dim=1)).sum(0)
    atom = (weight * m**2).sum() / 2 / block_size
    for end, sign in ((0, -1.0), (-1, 1.0)):
        mass[end] += atom
        moment[end] += sign * atom
    return torch.where(mass > 0, moment / mass, levels)


def _pin(levels: Tensor, fixed: tuple[float, ...]) -> Tensor:
    """``levels`` with the nearest one to each fixed value set to that value, ascending."""
    for value in fixed:
        levels[(levels - value).abs().argmin()] = value
    return levels.sort().values
