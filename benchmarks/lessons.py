"""Time and memory of every lesson in the tiny profile on this machine, as lesson 00 shows them.

    python benchmarks/lessons.py     # writes data/measurements/lessons_tiny.json; four minutes

The English solutions run one after the other; where one fails, the file stays as it was.
"""

from __future__ import annotations

from labkit.console import run_script
from labkit.course.execute import run_notebook, solution_notebooks
from labkit.files import write_json
from labkit.paths import checkout
from labkit.training.record import provenance


def main() -> None:
    """Execute the English solutions one after the other and write what they took."""
    path = checkout() / "data" / "measurements" / "lessons_tiny.json"
    report = {
        **provenance("benchmarks/lessons.py"),
        "lessons": [],
    }
    if not path.exists():
        write_json(path, report)  # lesson 00 shows this very file, so there must be one before the first run
    results = [run_notebook(notebook, lang="en", profile="tiny") for notebook in solution_notebooks([], "en")]
    if failed := [result.lesson for result in results if not result.ok]:
        raise SystemExit(f"not updated: {', '.join(failed)} failed")
    lessons = [{"lesson": r.lesson, "seconds": r.seconds, "peak_rss_bytes": r.peak_rss_bytes} for r in results]
    write_json(path, report | {"lessons": lessons})


if __name__ == "__main__":
    run_script(main, __doc__)
