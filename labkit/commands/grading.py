"""Commands of an instructor: grade, release."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from labkit.console import JsonFlag, err, escape, out, print_json, print_table
from labkit.errors import LabError


def grade(
    submissions: Annotated[Path, typer.Argument(help="Folder of notebooks or of students' folders, or a zip.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for grades, feedback, flags and the summary.")],
    again: Annotated[bool, typer.Option("--rerun", help="Also execute each notebook in a sandbox (tiny).")] = False,
    rubric: Annotated[Path | None, typer.Option(help="Points and rules; default instructor/rubric.toml.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Of the release handed out; default: this checkout's.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; default: one a core.")] = os.cpu_count() or 1,
    engine: Annotated[str, typer.Option(help="Where re-runs run: local, or ray (a running cluster).")] = "local",
    as_json: JsonFlag = False,
) -> None:
    """Grade executed notebooks as data; nothing of a submission is executed outside a sandbox."""
    from labkit.course.grading.batch import KEPT
    from labkit.course.grading.batch import grade as grade_all
    from labkit.course.grading.grader import Grader
    from labkit.course.grading.report import write_report
    from labkit.course.grading.rubric import instructor_folder
    from labkit.course.grading.similar import note_similar
    from labkit.course.release import read_manifest

    _outside(folder, submissions)
    rubric = rubric or instructor_folder() / "rubric.toml"
    arguments = (str(rubric), str(rubric.parent / "hidden"), read_manifest(manifest), str(folder / KEPT))
    grader = Grader(*arguments)
    if again:
        from labkit.course.grading.sandbox import starter

        starter()  # no sandbox, no re-run: said before the work begins
    students = grade_all(submissions, arguments, grader.rubric, workers=workers, on_done=_progress("read"))
    if again:
        from labkit.course.grading.rerun import rerun

        with _pool(engine, workers) as pool:
            rerun(students, grader, pool, on_done=_progress("re-run"))
    note_similar(students, grader.rubric)
    figures = write_report(students, grader.rubric, folder)
    if as_json:
        print_json(figures)
    else:
        _print_summary(figures, folder)


def release(
    folder: Annotated[Path, typer.Option("--out", help="Folder for labkit-course.zip and manifest.json.")],
    as_json: JsonFlag = False,
) -> None:
    """Make the student download: both languages, no solutions, nothing of the instructor's."""
    from labkit.course.release import release as make

    made = make(folder)
    if as_json:
        print_json(made)
        return
    out.print(f"{len(made['files'])} files in {escape(str(folder / 'labkit-course.zip'))}")
    out.print(f"keep {escape(str(folder / 'manifest.json'))}: `labkit grade --manifest` holds submissions against it")


def _outside(folder: Path, submissions: Path) -> None:
    if submissions.is_dir() and folder.resolve().is_relative_to(submissions.resolve()):
        raise LabError(str(folder), "the report would lie among the submissions", "name a folder outside them")


@contextlib.contextmanager
def _pool(engine: str, workers: int) -> Iterator[Executor]:
    """Threads here, each watching a sandbox; or the executor of a Ray cluster, whose nodes all need bubblewrap."""
    if engine not in ("local", "ray"):
        raise LabError(f"engine={engine!r}", "an engine is one of local, ray", "use --engine local")
    if engine == "local":
        with ThreadPoolExecutor(workers) as threads:
            yield threads
        return
    from labkit.training.engines import engine as cluster

    with cluster(engine, use_gpus=False) as executor:
        yield executor


def _progress(what: str) -> Any:
    def say(done: int, of: int) -> None:
        if err.is_terminal:
            err.print(f"{what} {done} of {of}", end="\r" if done < of else "\n")

    return say


def _print_summary(figures: dict[str, Any], folder: Path) -> None:
    rows = []
    for id, question in figures["questions"].items():
        states = ", ".join(f"{count} {state}" for state, count in question["states"].items())
        rows.append((id, f"{question['mean']:.2f} / {question['points']:g}", states))
    print_table("", ("question", "mean points", "students by result"), rows)
    mean = f"mean {figures['mean_total']:.2f} of {figures['most']:g} points"
    out.print(f"{figures['students']} students, {figures['notebooks']} notebooks, {mean}")
    if figures["unmarked"]:
        where = escape(str(folder / "written.csv"))
        out.print(f"{figures['unmarked']} written answers wait in {where}: fill in points, run again")
    if figures["flags"]:
        out.print("flags: " + escape(", ".join(f"{count} {kind}" for kind, count in figures["flags"].items())))
    files = "summary.html, grades.csv, flags.csv, written.csv, feedback/"
    err.print(f"report in {escape(str(folder))}: {files}", soft_wrap=True)
