"""Re-running notebooks in the sandbox, and comparing what came out here, outside it.

A re-run can take points away and explain why; it gives none, unless the rubric says so. What it can and cannot show
stands in docs/instructors.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from labkit.course.grading.batch import Student
from labkit.course.grading.grader import Grader
from labkit.course.grading.hidden import Hidden
from labkit.course.grading.judge import Judged, Verdict
from labkit.course.grading.plain import decode, encode
from labkit.course.grading.read import clean
from labkit.course.grading.rubric import RerunLimits, Rubric
from labkit.course.grading.sandbox import Outcome, run_inside
from labkit.errors import LabError
from labkit.files import read_json, write_text
from labkit.page.exercises import NotAttempted, Wrong, find_question

IN_FLIGHT = 32  # notebooks handed over and not finished: their texts are in memory


@dataclass(frozen=True)
class Task:
    """One notebook to run: whose, of which lesson, and where its bytes are."""

    student: Student
    lesson: str
    job: dict[str, Any]
    name: str


class _Raised(Exception):
    """The student's function raised inside the sandbox."""


def rerun(
    students: list[Student],
    grader: Grader,
    pool: Executor,
    *,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Run every student's notebook of every lesson, and put the findings on the verdicts.

    Args:
        students: as graded; changed in place.
        grader: the one that graded them.
        pool: where sandboxes run: threads of this process, or a Ray cluster whose nodes all have bubblewrap.
        on_done: told how many notebooks are done, of how many.

    Raises:
        LabError: there is no sandbox on this machine.
    """
    rubric = grader.rubric
    calls = {lesson: _calls(lesson, rubric, grader.hidden) for lesson in rubric.lessons}
    tasks = [
        Task(student, lesson, *student.places[lesson])
        for student in students
        for lesson, judged in sorted(student.lessons.items())
        if any(verdict.state != "lost" for verdict in judged.verdicts.values())
    ]
    waiting: dict[Future, tuple[Task, Path]] = {}
    done, proven = 0, False

    def finish(task: Task, found: dict[str, Any]) -> None:
        nonlocal done
        _apply(task, found, rubric, grader.hidden)
        on_done(done := done + 1, len(tasks))

    def collect(at_most: int) -> None:
        while len(waiting) > at_most:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                task, file = waiting.pop(future)
                found = _read_report(future.result())
                write_text(file, json.dumps(found))
                finish(task, found)

    for task in tasks:
        raw = grader.raw(task.job, task.name)
        file = grader.kept("re-run", task.lesson, raw)
        if (found := read_json(file)) is not None:
            finish(task, found)
            continue
        if not proven:
            prove_sandbox(rubric.rerun)
            proven = True
        job = {"notebook": raw.decode("utf-8", "replace"), "calls": calls[task.lesson]}
        waiting[pool.submit(run_inside, job, rubric.rerun)] = (task, file)
        collect(IN_FLIGHT)
    collect(0)


def prove_sandbox(limits: RerunLimits) -> None:
    """Run a notebook that cannot fail: a sandbox that does not work must not cost students their points.

    Raises:
        LabError: there is no sandbox on this machine, or Python does not run in it.
    """
    cell = nbformat.v4.new_code_cell("def double(x):\n    return 2 * x")
    text = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
    found = _read_report(
        run_inside({"notebook": text, "calls": {"q": {"function": "double", "inputs": [[21]]}}}, limits)
    )
    if found["answers"].get("q") != [{"ok": 42}]:
        said = f"a plain notebook does not run in the sandbox ({found['ended']})"
        raise LabError("--rerun", said, "see that others may read this Python's folders, or raise the rubric's limits")


def _calls(lesson: str, rubric: Rubric, hidden: dict[str, Hidden]) -> dict[str, Any]:
    """Question to function name and inputs: the visible check's and the hidden ones; never a result."""
    found = {}
    for id, question in rubric.lessons[lesson].items():
        if question.kind == "function" and id in hidden:
            inputs = [*hidden[id].visible_calls(id), *hidden[id].calls]
            encoded = [[encode(argument) for argument in arguments] for arguments in inputs]
            found[id] = {"function": hidden[id].function, "inputs": encoded}
    return found


def _read_report(outcome: Outcome) -> dict[str, Any]:
    """The report as plain data of known types: it comes out of a sandbox with hostile code."""
    empty = {"cells": [], "answers": {}, "ended": outcome.stopped or "it ended without a report"}
    try:
        found = json.loads(outcome.report)
    except (ValueError, RecursionError):
        return empty
    if outcome.stopped or not isinstance(found, dict):
        return empty
    cells = [cell for cell in found.get("cells", []) if isinstance(cell, dict)]
    answers = {id: several for id, several in found.get("answers", {}).items() if isinstance(several, list)}
    ended, widget = found.get("ended"), found.get("widget_error")
    return {
        "cells": [{"error": clean(str(cell["error"]), 300) if cell.get("error") else None} for cell in cells],
        "answers": answers,
        "ended": clean(str(ended), 300) if ended else None,
        "widget_error": clean(str(widget), 300) if widget else None,
    }


def _apply(task: Task, found: dict[str, Any], rubric: Rubric, hidden: dict[str, Hidden]) -> None:
    judged = task.student.lessons[task.lesson]

    def flag(kind: str, en: str, zh: str, question: str = "") -> None:
        task.student.flags.append((task.lesson, kind, question, en, zh))

    if found["ended"]:
        flag("re-run ended", f"the re-run stopped: {found['ended']}", f"重新运行时中断：{found['ended']}")
    errors = [cell["error"] for cell in found["cells"] if cell["error"]]
    if errors:
        flag(
            "re-run error",
            f"{len(errors)} cells failed; the first: {errors[0]}",
            f"{len(errors)} 个单元格出错；第一个：{errors[0]}",
        )
    if found.get("widget_error"):
        flag("re-run error", f"in a widget: {found['widget_error']}", f"控件里：{found['widget_error']}")
    for id, question in rubric.lessons[task.lesson].items():
        if question.kind != "function" or id not in hidden:
            continue
        verdict = judge_answers(id, hidden[id], found["answers"].get(id), question.points)
        _settle(id, judged, verdict, rubric, flag)


def _settle(id: str, judged: Judged, verdict: Verdict, rubric: Rubric, flag: Callable[..., None]) -> None:
    recorded = judged.verdicts[id]
    if verdict.state == "right":
        if recorded.state != "right":
            flag("re-run is right", f'recorded as "{recorded.state}"', f"记录的是“{recorded.state}”", id)
            if rubric.rules.rerun_may_raise:
                recorded.state, recorded.points, recorded.en, recorded.zh = (
                    "right",
                    verdict.points,
                    verdict.en,
                    verdict.zh,
                )
    elif recorded.state == "right":
        flag("re-run disagrees", f"recorded as right, but: {verdict.en}", f"记录的是正确，但是：{verdict.zh}", id)
        verdict.fingerprint = recorded.fingerprint
        judged.verdicts[id] = verdict


def judge_answers(id: str, hidden: Hidden, answers: list[Any] | None, points: float) -> Verdict:
    """The verdict on what a function returned inside: the visible check first, for its explanations; then hidden cases.

    Args:
        id: the question.
        hidden: its hidden check.
        answers: one ``{"ok": …}`` or ``{"raised": …}`` for each call, in the order of the visible and hidden inputs.
        points: of a right answer.
    """
    visible = hidden.visible_calls(id)
    if answers is None or len(answers) != len(visible) + len(hidden.calls):
        return Verdict("wrong", 0.0, "in the re-run the function gave no results", "重新运行时，函数没有给出结果")
    try:
        values = [_value(item) for item in answers]
    except _Raised as raised:
        return Verdict(
            "error", 0.0, f"in the re-run your function raised {raised}", f"重新运行时，函数抛出了异常 {raised}"
        )
    except ValueError:
        return Verdict("wrong", 0.0, "the function's results are not plain values", "函数返回的不是普通的值")
    replay = iter(values)
    try:
        find_question(id).rule(lambda *_: next(replay))
    except NotAttempted:
        return Verdict.of("not attempted")
    except Wrong as wrong:
        return Verdict("wrong", 0.0, clean(wrong.en, 1000), clean(wrong.zh, 1000))
    except Exception as error:
        said = clean(f"{type(error).__name__}: {error}", 300)
        return Verdict("wrong", 0.0, f"its result cannot be judged ({said})", f"结果无法判定（{said}）")
    for number, arguments in enumerate(hidden.calls, start=1):
        if not hidden.agrees(values[len(visible) + number - 1], arguments):
            of = f"{number} of {len(hidden.calls)}"
            return Verdict(
                "wrong",
                0.0,
                f"it fails hidden case {of}",
                f"没有通过第 {number} 个隐藏用例（共 {len(hidden.calls)} 个）",
            )
    return Verdict.of("right", points)


def _value(item: Any) -> Any:
    if not isinstance(item, dict):
        raise ValueError("not an answer")
    if "raised" in item:
        raise _Raised(clean(str(item["raised"]), 300))
    return decode(item.get("ok"))
