"""Time and peak memory of a block of code; GPU memory and process memory never share a name."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType


def reset_peak() -> None:
    """Start a new GPU peak; a process's peak cannot be reset."""
    torch = _torch_with_cuda()
    if torch:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """The peak so far, in bytes, under a name that says what was measured.

    Returns:
        With CUDA: ``cuda_max_allocated_bytes`` (tensors), ``cuda_max_reserved_bytes`` (what the allocator took from the
        GPU; the CUDA context comes on top). Without: ``process_peak_rss_bytes``, the largest resident memory of the
        whole process *since it started*, libraries and loading included; empty on Windows, which has no such call.
    """
    torch = _torch_with_cuda()
    if torch:
        return {
            "cuda_max_allocated_bytes": torch.cuda.max_memory_allocated(),
            "cuda_max_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    peak = peak_rss_bytes()
    return {} if peak is None else {"process_peak_rss_bytes": peak}


def peak_rss_bytes() -> int | None:
    """The largest resident memory of this process since it started; None on Windows.

    A benchmark's child says this itself: what the parent hears by ``os.wait4`` begins at the parent's own peak.
    """
    try:  # on Linux getrusage would count the parent too: its peak survives fork and exec
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on the BSDs
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Meter:
    """Measures a block: ``with Meter() as meter: ...``, then ``meter.seconds`` and ``meter.peak_bytes``.

    Attributes:
        seconds: wall-clock time; with CUDA the GPU's queued work is awaited first. It counts up inside the block.
        peak_bytes: see `peak_memory`; with CUDA it is reset when the block begins.
    """

    def __init__(self) -> None:
        self.peak_bytes: dict[str, int] = {}
        self._seconds: float | None = None

    def __enter__(self) -> Meter:
        reset_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        torch = _torch_with_cuda()
        if torch and error is None:
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._start
        self.peak_bytes = peak_memory()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start if self._seconds is None else self._seconds

    def tokens_per_s(self, tokens: int) -> float:
        """``tokens`` divided by the block's seconds."""
        return tokens / self.seconds


def _torch_with_cuda():
    """torch, if it is loaded already and sees a GPU; measuring never loads it."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None
