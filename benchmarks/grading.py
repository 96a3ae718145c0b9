"""How long `labkit grade` takes for a class: 300 students with every lesson, executed notebooks with real outputs.

    labkit run && python benchmarks/grading.py     # writes data/measurements/grading.json; about a minute

The notebooks are those of ``build/executed/en`` (figures included); each student's copy differs in its records, so that
nothing is found among kept results. Grading runs as a user would run it, in a process of its own. Seconds on the clock
depend on what else the machine does; ``cpu_seconds`` (of all processes together) and the ratio to reading the same
files with ``json`` alone, measured before and after in the same run, depend less.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labkit.console import run_script
from labkit.errors import LabError
from labkit.paths import checkout
from labkit.training.record import write_measurement

STUDENTS, WORKERS = 300, 2


def hand_in(executed: list[Path], folder: Path) -> int:
    """Write every student's notebooks; returns their bytes."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in executed}
    total = 0
    for number in range(STUDENTS):
        for name, text in texts.items():
            own = re.sub(r'\\"seconds\\": [\d.]+', f'\\\\"seconds\\\\": {1 + number / 1000:.3f}', text)
            path = folder / f"student{number:03d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(own, encoding="utf-8")
            total += path.stat().st_size
    return total


def only_reading(folder: Path) -> float:
    """Seconds to read and parse the same files in one process: what no grader can do without."""
    started = time.monotonic()
    for path in sorted(folder.rglob("*.ipynb")):
        json.loads(path.read_bytes())
    return time.monotonic() - started


def grade(folder: Path, out: Path) -> tuple[float, float]:
    """Seconds of the whole command, its start included: on the clock, and of all its processes on a CPU."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "labkit.cli", "grade", str(folder), "--out", str(out), "--workers", str(WORKERS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu_seconds


def main() -> None:
    """Print the figures as JSON and keep them."""
    place = checkout() / "build" / "executed" / "en"
    if not (executed := sorted(place.glob("*.ipynb"))):
        raise LabError(str(place), "there are no executed notebooks to hand in", "start `labkit run` first")
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary, "in"), Path(temporary, "out")
        n_bytes = hand_in(executed, folder)
        before = only_reading(folder)
        first, cpu_seconds = grade(folder, out)
        again, cpu_seconds_again = grade(folder, out)
        after = only_reading(folder)
    reading = (before + after) / 2
    figures = {
        "students": STUDENTS,
        "lessons": len(executed),
        "notebooks": STUDENTS * len(executed),
        "mib": round(n_bytes / 2**20),
        "workers": WORKERS,
        "seconds": round(first, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "seconds_again": round(again, 1),
        "cpu_seconds_again": round(cpu_seconds_again, 1),
        "seconds_json_alone": round(reading, 1),
        "ratio_to_json_alone": round(first / reading, 2),
    }
    print(json.dumps(figures, indent=2))
    write_measurement("benchmarks/grading.py", figures)


if __name__ == "__main__":
    run_script(main, __doc__)
