"""SIGKILL at any moment: the continued run ends with the same bytes as one that nobody touched."""

import multiprocessing
import random
import signal
import time

import pytest

from labkit.training.resume import state_folder
from labkit.training.run import run_sft
from labkit.training.saves import checkpoints
from tests.training.outcomes import result

MOMENTS = 20
HEAVY = ["labkit.training.run", "labkit.training.loading", "torch", "datasets", "transformers", "trl", "peft"]


@pytest.fixture(scope="module")
def start(profile, weights, rows):
    """``start(out)``: a process that runs or continues the run into ``out``; the libraries are loaded once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)

    def one(out):
        options = {"weights": weights, "rows": (rows, rows[:3]), "bar": False, "steps": 10, "resume": True}
        process = context.Process(target=run_sft, args=(profile, out), kwargs=options)
        process.start()
        return process

    return one


def finished(process):
    process.join(timeout=300)
    return process.exitcode == 0


def test_a_run_killed_at_any_of_20_moments_ends_as_if_nothing_had_happened(start, tmp_path):
    assert finished(start(tmp_path / "warm"))
    began = time.monotonic()
    assert finished(start(tmp_path / "whole"))
    whole, seconds = result(tmp_path / "whole"), time.monotonic() - began
    moments, caught, killed = random.Random(7), 0, 0
    for number in range(MOMENTS):
        out = tmp_path / f"run{number}"
        process = start(out)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        caught += bool(checkpoints(state_folder(out)))
        assert finished(start(out)), f"moment {number}"
        assert result(out) == whole, f"moment {number}"
    assert killed > MOMENTS / 2
    assert caught > 0  # some were killed between the first checkpoint and the end
    names = {"warm", "whole", *(f"run{number}" for number in range(MOMENTS))}
    assert {path.name for path in tmp_path.iterdir()} == names
