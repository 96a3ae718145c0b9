"""Intervals against textbook numbers, scipy's own tests, and how often they hold the truth."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from labkit.errors import LabError
from labkit.theory.intervals import bootstrap_interval, paired_difference, t_interval, wilson_interval


def test_a_textbook_interval():
    found = t_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t(0.975, 2 degrees of freedom), standard deviation 1
    assert (found.mean, found.n, found.method) == (2.0, 3, "t")
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert found.half_width == pytest.approx(half, abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_agrees_with_scipys_confidence_interval(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    ours = t_interval(values, level=0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_95_of_100_intervals_hold_the_mean():
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    held = [found.low <= 0 <= found.high for found in map(t_interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_a_bootstrap_of_three_seeds_is_too_narrow_and_of_forty_is_not():
    generator = np.random.default_rng(0)

    def coverage(n, times):
        draws = generator.normal(size=(times, n))
        found = [bootstrap_interval(row, resamples=400) for row in draws]
        return np.mean([one.low <= 0 <= one.high for one in found])

    assert coverage(3, 300) < 0.85
    assert coverage(40, 300) > 0.90


def test_a_bootstrap_gives_the_same_interval_every_time_and_holds_the_mean():
    values = [1.0, 4.0, 2.0, 5.0, 3.5]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    found = bootstrap_interval(values)
    assert min(values) < found.low < statistics.mean(values) < found.high < max(values)


def test_one_seed_has_no_interval():
    found = t_interval([2.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert "n = 1: no interval" in str(found)
    assert paired_difference({0: 1.0}, {0: 5.0}).verdict == "noise"


def test_a_paired_difference_is_scipys_paired_t_test():
    generator = np.random.default_rng(1)
    first = dict(enumerate(generator.normal(5, 1, 6)))
    second = {seed: value + 0.2 + 0.05 * generator.normal() for seed, value in first.items()}
    found = paired_difference(first, second)
    theirs = stats.ttest_rel(list(second.values()), list(first.values()))
    ends = theirs.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((ends.low, ends.high, theirs.pvalue))
    assert found.verdict == "higher"
    assert paired_difference(second, first).verdict == "lower"
    differences = [second[seed] - first[seed] for seed in first]
    assert found.effect == pytest.approx(statistics.mean(differences) / statistics.stdev(differences))


def test_pairing_sees_what_two_means_hide():
    first = {seed: float(seed) for seed in range(5)}
    second = {seed: value + 0.1 for seed, value in first.items()}
    assert paired_difference(first, second).verdict == "higher"
    a, b = t_interval(list(first.values())), t_interval(list(second.values()))
    assert a.high > b.low  # the intervals of the means overlap


def test_only_seeds_of_both_count():
    found = paired_difference({0: 1.0, 1: 2.0, 9: 7.0}, {1: 3.0, 0: 1.5, 4: 0.0})
    assert (found.n, found.mean) == (2, 0.75)


def test_equal_differences_need_no_spread():
    same = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (same.effect, same.p, same.verdict) == (0.0, 1.0, "noise")
    more = paired_difference({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0})
    assert (more.effect, more.verdict) == (math.inf, "higher")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([]), "no values"),
        (lambda: t_interval([1.0, math.nan]), "diverged"),
        (lambda: t_interval([1.0, 2.0], level=95), "level=95"),
        (lambda: bootstrap_interval([1.0]), "two seeds"),
        (lambda: paired_difference({0: 1.0}, {1: 1.0}), "same seed"),
        (lambda: paired_difference({0: 1.0}, {0: 1.0}, method="z"), "bootstrap"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(LabError, match=message):
        call()


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 200), (37, 200), (200, 200)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_interval_is_wilsons_formula(k, n, confidence):
    z, p = statistics.NormalDist().inv_cdf((1 + confidence) / 2), k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson_interval(k, n, confidence)
    scale = 1 + z * z / n
    assert (low, high) == pytest.approx(((centre - half) / scale, (centre + half) / scale), abs=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)]
)
def test_wilson_interval_refuses(k, n, confidence):
    with pytest.raises(LabError):
        wilson_interval(k, n, confidence)
