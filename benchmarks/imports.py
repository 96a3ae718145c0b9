"""How long it takes until `labkit` is there: the import, and the command's help, beside an empty Python and ipywidgets.

    python benchmarks/imports.py     # writes data/measurements/imports.json; a minute
    python benchmarks/imports.py --quick     # 2 rounds, nothing written

Each measurement is the processor time of a new process; the four take turns. A ratio is taken within each round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from labkit.console import QuickFlag, run_script
from labkit.training.interleaved import programs_time, take_turns, time_ratio
from labkit.training.record import write_measurement

STARTS = {
    "empty Python": ["-c", "pass"],
    "import labkit": ["-c", "import labkit"],
    "import ipywidgets": ["-c", "import ipywidgets"],
    "labkit --help": ["-m", "labkit.cli", "--help"],
}
ROUNDS, QUICK_ROUNDS = 10, 2


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Start each several times: seconds, and how many times those of an empty Python."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    steps = {name: partial(start, [sys.executable, *arguments]) for name, arguments in STARTS.items()}
    seconds = take_turns(steps, rounds=rounds, clock=programs_time)
    empty = seconds["empty Python"]
    rows = {
        name: {
            "median_cpu_seconds": round(statistics.median(times), 4),
            "by_empty_python": asdict(time_ratio(times, empty)),
        }
        for name, times in seconds.items()
    }
    return {"rounds": rounds, "starts": rows}


def main(*, quick: QuickFlag = False) -> None:
    """Measure, print and write."""
    found = measure(quick=quick)
    for name, row in found["starts"].items():
        print(
            f"{name:18} {row['median_cpu_seconds']:.3f} s, {row['by_empty_python']['ratio']:.2f} times an empty Python"
        )
    if not quick:
        write_measurement("benchmarks/imports.py", found, note="processor time")


if __name__ == "__main__":
    run_script(main, __doc__)
