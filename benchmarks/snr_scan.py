"""Lesson 07's SNR of one matrix against a plain SVD in torch: time, memory of a process, and how far the values differ.

    python benchmarks/snr_scan.py     # writes data/measurements/snr_scan.json; a minute; --quick: small, 2 rounds

Ours squares the matrix (float64 Gram matrix, then its eigenvalues); the SVD runs in the float32 of the matrix and, for
equal precision, in float64. They take turns; a ratio is taken within each round. Memory is the peak of a new process
that does one of them, less what it had before: imports and the matrix.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from labkit.files import write_json
from labkit.paths import checkout
from labkit.theory.spectrum import judge, singular_values, snr
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.record import provenance

SHAPES, ROUNDS, STARTS = ((576, 1536), (1024, 3072)), 10, 3
QUICK_SHAPES, QUICK_ROUNDS, QUICK_STARTS = ((24, 64),), 2, 1
CHILD = r"""
import re, sys, torch, scipy.linalg
from pathlib import Path
from labkit.theory.spectrum import judge, snr
torch.set_num_threads(1)
n, m, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
matrix = torch.randn(n, m, generator=torch.Generator().manual_seed(0))
memory = lambda key: int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports: begin anew
before = memory("VmRSS")
if how == "ours":
    snr(matrix)
else:
    judge(torch.linalg.svdvals(matrix.to(getattr(torch, how))).double().numpy(), (n, m))
print(memory("VmHWM") - before)
"""


def peak_bytes(shape: tuple[int, int], how: str, starts: int) -> int:
    """Median growth of the resident set to its peak while a new process does ``how``; Linux only.

    Not ``ru_maxrss``: that of a new process begins at the peak of the one that started it.
    """
    command = [sys.executable, "-c", CHILD, *map(str, shape), how]
    peaks = [int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(starts)]
    return int(statistics.median(peaks)) * 1024


def compare(shape: tuple[int, int], *, rounds: int, starts: int) -> dict[str, Any]:
    """One shape; ratios are ours by the SVD's: above 1 ours takes longer."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    def by_svd(dtype: torch.dtype) -> Any:
        return judge(torch.linalg.svdvals(matrix.to(dtype)).double().numpy(), shape)

    dtypes = {"svd float32": torch.float32, "svd float64": torch.float64}
    steps = {"ours": lambda: snr(matrix)} | {name: lambda d=dtype: by_svd(d) for name, dtype in dtypes.items()}
    seconds = take_turns(steps, rounds=rounds)
    found: dict[str, Any] = {"shape": list(shape), "ours_bytes": peak_bytes(shape, "ours", starts)}
    ours, score = singular_values(matrix), snr(matrix).snr
    for name, dtype in dtypes.items():
        values = torch.linalg.svdvals(matrix.to(dtype)).double().numpy()
        found[name] = {
            "time": asdict(time_ratio(seconds["ours"], seconds[name])),
            "bytes": peak_bytes(shape, name.removeprefix("svd "), starts),
            "max_difference_by_largest": float(abs(ours - values).max() / values[0]),
            "snr_difference": abs(score - judge(values, shape).snr) / score,
        }
    return found


def main() -> None:
    """Compare every shape, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a small matrix, 2 rounds")
    parser.add_argument("--out", type=Path, default=checkout() / "data" / "measurements" / "snr_scan.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shapes = QUICK_SHAPES if given.quick else SHAPES
    rounds, starts = (QUICK_ROUNDS, QUICK_STARTS) if given.quick else (ROUNDS, STARTS)
    rows = [compare(shape, rounds=rounds, starts=starts) for shape in shapes]
    for row in rows:
        print(row)
    note = "one thread; other programs were running, so only the ratios count"
    report = provenance("benchmarks/snr_scan.py", note=note) | {"rounds": rounds, "starts": starts, "rows": rows}
    write_json(given.out, report)


if __name__ == "__main__":
    main()
