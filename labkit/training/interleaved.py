"""Times that can be compared on a machine that others use too: take turns, then compare within each round.

A program that runs beside for a minute slows all of a round, and drops out of the round's ratio. Lesson 06 and
``benchmarks/dora_cost.py`` measure with this; an absolute time from such a machine is worth nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from labkit.errors import LabError


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another, with a 95 % interval.

    Attributes:
        ratio: geometric mean over the rounds.
        low, high: Student's t on the logarithms of the rounds' ratios.
        rounds: how many.
    """

    ratio: float
    low: float
    high: float
    rounds: int


def take_turns(
    steps: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every step in every round, after one round that warms up; each round begins with another step.

    Args:
        steps: name -> what to time.
        rounds: at least 1.
        clock: in seconds. ``time.process_time`` (for what computes in this process) and `programs_time` (for programs)
            leave out most of what others cost.

    Raises:
        LabError: no steps, or no rounds.
    """
    if not steps or rounds < 1:
        raise LabError(f"{len(steps)} steps, rounds={rounds}", "there is nothing to time", "give a step and a round")
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            steps[name]()
            seconds[name].append(clock() - started)
    return {name: times[1:] for name, times in seconds.items()}


def programs_time() -> float:
    """Processor seconds of all programs that this process has started and that have ended (Unix)."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """How many times as long ``slow`` takes as ``fast``, both with one time for each round.

    Raises:
        LabError: unlike numbers of rounds, fewer than 2, or a time that is not above 0.
    """
    import scipy.stats

    given = f"{len(slow)} and {len(fast)} times"
    if len(slow) != len(fast) or len(slow) < 2 or min(*slow, *fast) <= 0:
        raise LabError(given, "both need a time above 0 in each of at least 2 rounds", "use take_turns(..., rounds=5)")
    logs = [math.log(one / other) for one, other in zip(slow, fast, strict=True)]
    mean = sum(logs) / len(logs)
    half = float(scipy.stats.t.ppf(0.975, len(logs) - 1) * scipy.stats.sem(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))
