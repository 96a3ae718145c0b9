"""Times taken in turns, and the interval of their ratio against scipy."""

import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats

from labkit.errors import LabError
from labkit.training.interleaved import programs_time, take_turns, time_ratio


def test_every_step_runs_once_a_round_and_the_first_round_is_not_counted():
    calls = []
    seconds = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3)
    assert calls == list("abcbcacababc")  # each round begins with another step
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(time > 0 for times in seconds.values() for time in times)


def test_a_slow_round_drops_out_of_the_ratio():
    fast = [1.0, 1.0, 10.0, 1.0]
    found = time_ratio([1.5 * second for second in fast], fast)
    assert (found.ratio, found.low, found.high, found.rounds) == (pytest.approx(1.5),) * 3 + (4,)


def test_the_interval_is_students_on_the_logarithms():
    slow, fast = [1.3, 1.5, 1.2, 1.6, 1.4], [1.0, 1.1, 0.9, 1.2, 1.05]
    logs = np.log(np.array(slow) / fast)
    low, high = scipy.stats.t.interval(0.95, 4, loc=logs.mean(), scale=logs.std(ddof=1) / np.sqrt(5))
    found = time_ratio(slow, fast)
    assert (found.low, found.ratio, found.high) == pytest.approx(tuple(np.exp([low, logs.mean(), high])))
    swapped = time_ratio(fast, slow)
    assert (1 / swapped.high, 1 / swapped.ratio) == pytest.approx((found.low, found.ratio))


@pytest.mark.parametrize(("slow", "fast"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [0.0, 1.0])])
def test_times_that_cannot_be_compared(slow, fast):
    with pytest.raises(LabError):
        time_ratio(slow, fast)


@pytest.mark.parametrize(("steps", "rounds"), [({}, 3), ({"a": int}, 0)])
def test_nothing_to_time(steps, rounds):
    with pytest.raises(LabError):
        take_turns(steps, rounds=rounds)


def test_another_clock_can_be_read():
    clock = iter(range(100))
    assert take_turns({"a": list}, rounds=2, clock=lambda: next(clock)) == {"a": [1, 1]}


def test_the_time_of_programs_grows_with_their_work_and_not_with_waiting():
    before = programs_time()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    worked = programs_time() - before
    time.sleep(0.2)
    assert worked > 0
    assert programs_time() - before == worked
