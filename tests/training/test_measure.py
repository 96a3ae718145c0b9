"""Time and memory: against a sleep, against an allocation, and never one kind of memory under another's name."""

import subprocess
import sys
import time
import types

import pytest

from labkit.training import measure
from labkit.training.measure import Meter, peak_memory


def test_seconds_count_up_inside_and_stand_still_after():
    with Meter() as meter:
        time.sleep(0.02)
        inside = meter.seconds
    assert 0.02 <= inside <= meter.seconds
    done = meter.seconds
    time.sleep(0.01)
    assert meter.seconds == done and meter.tokens_per_s(10) == pytest.approx(10 / done)


def test_an_error_in_the_block_passes_and_is_timed():
    with pytest.raises(KeyError), Meter() as meter:
        raise KeyError
    assert meter.seconds > 0 and meter.peak_bytes


def test_without_cuda_the_peak_is_the_processs_and_says_so(monkeypatch):
    monkeypatch.setattr(measure, "_torch_with_cuda", lambda: None)
    assert set(peak_memory()) == {"process_peak_rss_bytes"}


def test_the_process_peak_is_in_bytes():
    """A fresh process that touches 200 MB must show about that much more than one that does not."""
    small, large = (fresh_peak(f"x = b'1' * {size}") for size in (1, 200_000_000))
    assert 190e6 < large - small < 215e6


def fresh_peak(statement: str) -> int:
    program = f"{statement}\nfrom labkit.training.measure import peak_memory\nprint(*peak_memory().values())"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def test_with_cuda_the_peak_is_the_allocators_and_says_so(monkeypatch):
    calls = []
    cuda = types.SimpleNamespace(
        synchronize=lambda: calls.append("synchronize"),
        reset_peak_memory_stats=lambda: calls.append("reset"),
        max_memory_allocated=lambda: 5,
        max_memory_reserved=lambda: 8,
    )
    monkeypatch.setattr(measure, "_torch_with_cuda", lambda: types.SimpleNamespace(cuda=cuda))
    with Meter() as meter:
        calls.append("work")
    assert meter.peak_bytes == {"cuda_max_allocated_bytes": 5, "cuda_max_reserved_bytes": 8}
    assert calls == ["synchronize", "reset", "work", "synchronize"]  # the GPU's queue is empty at both ends


def test_measuring_loads_no_torch():
    program = (
        "import sys; from labkit.training.measure import Meter as M\nwith M(): pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
