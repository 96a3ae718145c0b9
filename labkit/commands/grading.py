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
from labkit.labels import text


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
    students = grade_all(submissions, arguments, grader.rubric, workers=workers, on_done=_progress("read", "读取"))
    if again:
        from labkit.course.grading.rerun import rerun

        with _pool(engine, workers) as pool:
            rerun(students, grader, pool, on_done=_progress("re-run", "重新运行"))
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
    count, packed, listed = len(made["files"]), folder / "labkit-course.zip", folder / "manifest.json"
    out.print(escape(text(f"{count} files in {packed}", f"{packed} 里有 {count} 个文件")))
    keep = text(
        f"keep {listed}: `labkit grade --manifest` holds submissions against it",
        f"请留好 {listed}：`labkit grade --manifest` 用它核对交上来的作业",
    )
    out.print(escape(keep))


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


def _progress(en: str, zh: str) -> Any:
    what = text(en, zh)

    def say(done: int, of: int) -> None:
        if err.is_terminal:
            err.print(text(f"{what} {done} of {of}", f"{what} {done}/{of}"), end="\r" if done < of else "\n")

    return say


def _print_summary(figures: dict[str, Any], folder: Path) -> None:
    from labkit.course.grading.report import CHINESE

    rows = []
    for id, question in figures["questions"].items():
        states = [f"{count} {text(state, CHINESE[state])}" for state, count in question["states"].items()]
        rows.append((id, f"{question['mean']:.2f} / {question['points']:g}", text(", ", "，").join(states)))
    columns = (text("question", "题目"), text("mean points", "平均分"), text("students by result", "各种结果的人数"))
    print_table("", columns, rows)
    students, notebooks, unmarked = (figures[name] for name in ("students", "notebooks", "unmarked"))
    mean, most = f"{figures['mean_total']:.2f}", f"{figures['most']:g}"
    out.print(
        text(
            f"{students} students, {notebooks} notebooks, mean {mean} of {most} points",
            f"{students} 名学生，{notebooks} 份 notebook，平均 {mean} 分（满分 {most}）",
        )
    )
    if unmarked:
        where = folder / "written.csv"
        waiting = text(
            f"{unmarked} written answers wait in {where}: fill in points, run again",
            f"{where} 里有 {unmarked} 份书面回答待批阅：填上分数，再运行一次",
        )
        out.print(escape(waiting))
    if figures["flags"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in figures["flags"].items())
        out.print(escape(text(f"flags: {counts}", f"标记：{counts}")))
    files = "summary.html, grades.csv, flags.csv, written.csv, feedback/"
    err.print(escape(text(f"report in {folder}: {files}", f"报告在 {folder}：{files}")), soft_wrap=True)
