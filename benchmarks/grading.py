"""How long `labkit grade` takes for a class: 300 students with every lesson, executed notebooks with real outputs.

    labkit run && python benchmarks/grading.py

The notebooks are those of ``build/executed/en`` (figures included); each student's copy differs in its records, so that
nothing is found among kept results. Grading runs as a user would run it, in a process of its own. Times depend on the
machine and on what else it does: the ratio to reading the same files with ``json`` alone, measured before and after in
the same run, depends less.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labkit.paths import checkout

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


def grade(folder: Path, out: Path) -> float:
    """Seconds of the whole command, its start included."""
    started = time.monotonic()
    command = [sys.executable, "-m", "labkit.cli", "grade", str(folder), "--out", str(out), "--workers", str(WORKERS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    """Print the figures as JSON."""
    executed = sorted((checkout() / "build" / "executed" / "en").glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place, "in"), Path(place, "out")
        n_bytes = hand_in(executed, folder)
        before = only_reading(folder)
        first = grade(folder, out)
        again = grade(folder, out)
        after = only_reading(folder)
    reading = (before + after) / 2
    figures = {
        "students": STUDENTS,
        "lessons": len(executed),
        "notebooks": STUDENTS * len(executed),
        "mib": round(n_bytes / 2**20),
        "workers": WORKERS,
        "seconds": round(first, 1),
        "seconds_again": round(again, 1),
        "seconds_json_alone": round(reading, 1),
        "ratio_to_json_alone": round(first / reading, 2),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
