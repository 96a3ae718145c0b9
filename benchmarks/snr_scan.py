"""Lesson 07's SNR of one matrix against a plain SVD in torch: time, memory of a process, and how far the values differ.

    python benchmarks/snr_scan.py     # writes data/measurements/snr_scan.json; a minute
    python benchmarks/snr_scan.py --quick     # a small matrix, 2 rounds, nothing written

Ours squares the matrix (float64 Gram matrix, then its eigenvalues); the SVD runs in the float32 of the matrix and, for
equal precision, in float64. They take turns; a ratio is of processor time, within each round. Memory is the peak of a
new process that does one of them, less what it had before: imports and the matrix.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import torch

from labkit.console import QuickFlag, run_script
from labkit.theory.spectrum import judge, singular_values, snr
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.record import write_measurement

SHAPES, ROUNDS, STARTS = ((576, 1536), (1024, 3072)), 10, 3
QUICK_SHAPES, QUICK_ROUNDS, QUICK_STARTS = ((24, 64),), 2, 1
CHILD = r"""
import sys, torch, scipy.linalg
from pathlib import Path
from labkit.theory.spectrum import judge, snr
from labkit.training.measure import peak_rss_bytes
torch.set_num_threads(1)
n, m, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
matrix = torch.randn(n, m, generator=torch.Generator().manual_seed(0))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports: begin anew
before = peak_rss_bytes()
if how == "ours":
    snr(matrix)
else:
    judge(torch.linalg.svdvals(matrix.to(getattr(torch, how))).double().numpy(), (n, m))
print(peak_rss_bytes() - before)
"""


def peak_bytes(shape: tuple[int, int], how: str, starts: int) -> int:
    """Median growth of the resident set to its peak while a new process does ``how``; Linux only."""
    command = [sys.executable, "-c", CHILD, *map(str, shape), how]
    peaks = [int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(starts)]
    return int(statistics.median(peaks))


def compare(shape: tuple[int, int], *, rounds: int, starts: int) -> dict[str, Any]:
    """One shape; ratios are ours by the SVD's: above 1 ours takes longer."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    def svd(dtype: torch.dtype) -> Any:
        return torch.linalg.svdvals(matrix.to(dtype)).double().numpy()

    dtypes = {"svd float32": torch.float32, "svd float64": torch.float64}
    steps = {"ours": lambda: snr(matrix)} | {
        name: lambda d=dtype: judge(svd(d), shape) for name, dtype in dtypes.items()
    }
    seconds = take_turns(steps, rounds=rounds, clock=time.process_time)
    found: dict[str, Any] = {"shape": list(shape), "ours_bytes": peak_bytes(shape, "ours", starts)}
    ours, score = singular_values(matrix), snr(matrix).snr
    for name, dtype in dtypes.items():
        values = svd(dtype)
        found[name] = {
            "time": asdict(time_ratio(seconds["ours"], seconds[name])),
            "bytes": peak_bytes(shape, name.removeprefix("svd "), starts),
            "max_difference_by_largest": float(abs(ours - values).max() / values[0]),
            "snr_difference": abs(score - judge(values, shape).snr) / score,
        }
    return found


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Compare every shape."""
    shapes = QUICK_SHAPES if quick else SHAPES
    rounds, starts = (QUICK_ROUNDS, QUICK_STARTS) if quick else (ROUNDS, STARTS)
    rows = [compare(shape, rounds=rounds, starts=starts) for shape in shapes]
    return {"rounds": rounds, "starts": starts, "rows": rows}


def main(*, quick: QuickFlag = False) -> None:
    """Print and write the table."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the BLAS of scipy, which is loaded later, here and in new processes
    torch.set_num_threads(1)
    findings = measure(quick=quick)
    for row in findings["rows"]:
        print(row)
    if not quick:
        note = "processor time of one thread"
        write_measurement("benchmarks/snr_scan.py", findings, note=note)


if __name__ == "__main__":
    run_script(main, __doc__)
