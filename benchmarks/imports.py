"""How long it takes until `labkit` is there: the import, and the command's help, beside an empty Python and ipywidgets.

    python benchmarks/imports.py     # writes data/measurements/imports.json; a minute

Each measurement is a new process; the four take turns. A ratio is taken within each round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import asdict
from functools import partial

from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.record import write_measurement

STARTS = {
    "empty Python": ["-c", "pass"],
    "import labkit": ["-c", "import labkit"],
    "import ipywidgets": ["-c", "import ipywidgets"],
    "labkit --help": ["-m", "labkit.cli", "--help"],
}
ROUNDS = 10


def main() -> None:
    """Start each several times, print and write seconds and ratios."""
    start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    steps = {name: partial(start, [sys.executable, *arguments]) for name, arguments in STARTS.items()}
    seconds = take_turns(steps, rounds=ROUNDS)
    empty = seconds["empty Python"]
    rows = {
        name: {
            "median_seconds": round(statistics.median(times), 4),
            "by_empty_python": asdict(time_ratio(times, empty)),
        }
        for name, times in seconds.items()
    }
    for name, row in rows.items():
        print(f"{name:18} {row['median_seconds']:.3f} s, {row['by_empty_python']['ratio']:.2f} times an empty Python")
    note = "other programs were running, so the ratios count"
    write_measurement("benchmarks/imports.py", {"rounds": ROUNDS, "starts": rows}, note=note)


if __name__ == "__main__":
    main()
