"""One job that hangs, dies or eats memory is lost; the others are done, by another worker if need be."""

import time

import pytest

from labkit.course.grading.workers import THREAD_VARIABLES, Lost, run_jobs
from tests.course.grading.handlers import broken_handler, make_handler


def done(jobs, *, workers=2, seconds=3.0, memory_gib=2.0, make=make_handler, arguments=("hello",)):
    named = [{"name": str(place), "do": what} for place, what in enumerate(jobs)]
    return dict(run_jobs(named, make, arguments, workers=workers, seconds=seconds, memory_gib=memory_gib))


def test_every_job_has_a_result_at_its_place():
    assert done(["work"] * 7) == {place: f"hello {place}" for place in range(7)}
    assert done([]) == {}


def test_a_job_that_hangs_or_dies_costs_only_itself():
    started = time.monotonic()
    results = done(["work", "hang", "work", "die", "eat", "work"])
    assert {place for place, result in results.items() if isinstance(result, Lost)} == {1, 3, 4}
    assert "too long" in str(results[1])
    assert "ended the process" in str(results[3])
    assert [results[place] for place in (0, 2, 5)] == ["hello 0", "hello 2", "hello 5"]
    assert time.monotonic() - started < 120


def test_a_worker_computes_with_one_thread(monkeypatch):
    """With torch's own choice, two workers on two cores took several times as long for a class."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert done(["count threads"], seconds=60, memory_gib=8) == {0: 1}


def test_workers_that_cannot_start_are_an_error_and_not_a_loop():
    with pytest.raises(RuntimeError, match="did not start"):
        done(["work"], make=broken_handler, arguments=())
