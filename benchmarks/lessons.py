"""Time and memory of every lesson in the tiny profile on this machine, as lesson 00 shows them.

python benchmarks/lessons.py     # writes data/measurements/lessons_tiny.json
"""

from __future__ import annotations

import datetime

from labkit.course.execute import run_notebook, solution_notebooks
from labkit.files import write_json
from labkit.paths import checkout
from labkit.training.record import hardware, versions


def main() -> None:
    """Execute the English solutions one after the other and write what they took."""
    results = [run_notebook(path, lang="en", profile="tiny") for path in solution_notebooks([], "en")]
    failed = [result.lesson for result in results if not result.ok]
    if failed:
        raise SystemExit(f"nothing written: {', '.join(failed)} failed")
    machine = hardware()
    write_json(
        checkout() / "data" / "measurements" / "lessons_tiny.json",
        {
            "made_by": "benchmarks/lessons.py",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": f"{machine['cores']} CPU cores of an {machine['cpu']}",
            "versions": versions(),
            "lessons": [
                {"lesson": r.lesson, "seconds": r.seconds, "peak_rss_bytes": r.peak_rss_bytes} for r in results
            ],
        },
    )


if __name__ == "__main__":
    main()
