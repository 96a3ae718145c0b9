"""How sure a mean over a few seeds is: intervals by scipy, and differences paired over the seeds.

A seed changes the adapter's init, the dropout and the order of rows. Two settings that ran with the same seeds share
these accidents, so their difference is taken seed by seed; its interval is mostly narrower than the two means suggest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from labkit.errors import LabError

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it.

    Attributes:
        mean, low, high: in the unit of the values; with one value the interval is unknown, from -inf to inf.
        n: how many values (seeds) there were.
        method: ``t`` or ``bootstrap``.
        level: share of such intervals that hold the true mean, if the method's assumptions hold.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str = "t"
    level: float = LEVEL

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies inside: a difference that may as well be none."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:.3f} (n = 1: no interval)"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f}, n = {self.n})"


@dataclass(frozen=True)
class Difference(Interval):
    """An `Interval` of paired differences, and how large they are.

    Attributes:
        effect: mean difference divided by the standard deviation of the differences (Cohen's d of paired values);
            infinite where they are all equal and not zero.
        p: of the two-sided paired t-test; NaN with one pair.
    """

    effect: float = math.nan
    p: float = math.nan

    @property
    def verdict(self) -> str:
        """``higher`` or ``lower`` where the interval leaves zero out, else ``noise``."""
        return "noise" if self.holds_zero else "higher" if self.mean > 0 else "lower"


def t_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Student's interval of the mean: right for values that scatter like a normal distribution, however few.

    Raises:
        LabError: no values, one that is not finite, or a level that is no share.

    Example:
        >>> print(t_interval([1.0, 2.0, 3.0]))
        2.000 (-0.484 to 4.484, n = 3)
    """
    array = _checked(values, level)
    if len(array) == 1:
        return Interval(float(array[0]), -math.inf, math.inf, 1, "t", level)
    mean, error = float(array.mean()), float(stats.sem(array))
    half = error * float(stats.t.ppf((1 + level) / 2, len(array) - 1))
    return Interval(mean, mean - half, mean + half, len(array), "t", level)


def bootstrap_interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = 9999, seed: int = 0
) -> Interval:
    """The percentile bootstrap of the mean (`scipy.stats.bootstrap`): it assumes no shape, but needs many values.

    With n values only so many different resamples exist (10 means of 3), and the interval is too narrow.

    Raises:
        LabError: see `t_interval`; fewer than 2 values.
    """
    array = _checked(values, level)
    if len(array) < 2:
        raise LabError(f"{len(array)} value", "resampling one value gives that value", "run at least two seeds")
    found = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(array.mean()), float(found.low), float(found.high), len(array), "bootstrap", level)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], *, level: float = LEVEL, method: str = "t"
) -> Difference:
    """``second`` minus ``first``, seed by seed, over the seeds that both have.

    Args:
        first, second: seed -> value.
        level: see `Interval`.
        method: ``t`` or ``bootstrap``.

    Raises:
        LabError: no seed in common, values that are not finite, an unknown method.

    Example:
        >>> found = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.3, 2: 3.2})
        >>> print(found, found.verdict)
        0.200 (-0.048 to 0.448, n = 3) noise
    """
    if method not in ("t", "bootstrap"):
        raise LabError(f"method={method!r}", "an interval is by t or bootstrap", 'use method="t"')
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        rule = "only values with the same seed make a pair"
        raise LabError(f"seeds {sorted(first)} and {sorted(second)}", rule, "run both with the same seeds")
    values = [second[seed] - first[seed] for seed in seeds]
    interval = (t_interval if method == "t" else bootstrap_interval)(values, level=level)
    return Difference(**vars(interval), effect=_effect(values), p=_p(values))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share, both ends in [0, 1] (Wilson 1927; ``scipy.stats.binomtest``).

    Raises:
        LabError: ``n`` below 1, ``successes`` outside 0..n, or ``confidence`` outside (0, 1).
    """
    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        given = f"successes={successes}, n={n}, confidence={confidence}"
        raise LabError(given, "0 <= successes <= n, n >= 1 and 0 < confidence < 1", "pass counts, not shares")
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _effect(values: Sequence[float]) -> float:
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return mean / spread if spread else math.copysign(math.inf, mean) if mean else 0.0


def _p(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    if not np.std(values):
        return 0.0 if values[0] else 1.0
    return float(stats.ttest_1samp(values, 0).pvalue)


def _checked(values: Sequence[float], level: float) -> np.ndarray:
    array = np.asarray(list(values), dtype=float)
    if not len(array):
        raise LabError("no values", "a mean needs at least one", "check the selection")
    if not np.isfinite(array).all():
        rule = "a run that diverged has no loss to average"
        raise LabError(f"values {array.tolist()}", rule, "leave it out and say so")
    if not 0 < level < 1:
        raise LabError(f"level={level!r}", "a level is a share between 0 and 1", "use level=0.95")
    return array
