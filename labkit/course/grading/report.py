"""What grading writes: grades.csv, flags.csv, written.csv, a feedback page for each student, and a summary.

The pages hold no script and load nothing; whatever a student wrote is escaped, and a policy in the page forbids the
rest.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from labkit.course.grading.batch import Student
from labkit.course.grading.rubric import Rubric
from labkit.course.grading.tables import write_table
from labkit.course.grading.written import apply_marks, lost_marks, read_marks, write_written
from labkit.files import write_text

PRIVATE = {
    "similar",
    "several machines",
    "implausible",
    "meddling",
}  # for the instructor's eyes; a student is asked, not told
ORDER = ("right", "marked", "handed in", "wrong", "error", "not attempted", "changed", "elsewhere", "no record",
         "not run", "missing", "lost", "no notebook")  # fmt: skip
CHINESE = {"right": "正确", "marked": "已批阅", "handed in": "待批阅", "wrong": "错误", "error": "抛出异常",
           "not attempted": "未作答", "changed": "检查后改过", "elsewhere": "记录错位", "no record": "没有记录",
           "not run": "没有运行", "missing": "没有单元格", "lost": "无法读取", "no notebook": "没有提交"}  # fmt: skip


def write_report(students: list[Student], rubric: Rubric, folder: Path) -> dict[str, Any]:
    """Write every file of the report into ``folder``; returns the summary's figures.

    Marks typed into an older ``written.csv`` in that folder count, and stay in it.

    Raises:
        LabError: a mark is not one that the rubric allows, or the folder cannot be written to.
    """
    marks = read_marks(folder / "written.csv", rubric)
    rows = apply_marks(students, rubric, marks)
    by_name = {student.name: student for student in students}
    for name, id in lost_marks(folder / "written.csv", marks, rows):
        if name in by_name:
            said = "it was marked, then another answer came: mark it again", "批阅之后又交了新的答案，请重新批阅"
            by_name[name].flags.append((rubric.lesson_of(id), "mark lost", id, *said))
    bom = rubric.byte_order_mark
    write_table(folder / "grades.csv", ("student", *rubric.questions, "total"), _grades(students, rubric), mark=bom)
    write_table(folder / "flags.csv", ("student", "lesson", "flag", "question", "detail"), _flags(students), mark=bom)
    write_written(folder / "written.csv", rows, mark=bom)
    pages = page_names([student.name for student in students])
    template = _environment().get_template("feedback.html.j2")
    for student in students:
        write_text(folder / "feedback" / pages[student.name], template.render(_feedback(student, rubric)))
    figures = summary(students, rubric)
    page = _environment().get_template("summary.html.j2")
    write_text(folder / "summary.html", page.render(figures | {"pages": pages, "rubric": rubric, "order": ORDER}))
    return figures


def _grades(students: list[Student], rubric: Rubric) -> list[list[object]]:
    rows = []
    for student in students:
        verdicts = {id: student.verdict(id, rubric.lesson_of(id)) for id in rubric.questions}
        points = [verdict.points if verdict.state != "handed in" else "" for verdict in verdicts.values()]
        rows.append([student.name, *points, student.total(rubric)])
    return rows


def _flags(students: list[Student]) -> list[tuple[str, ...]]:
    return [
        (student.name, lesson, kind, question, en)
        for student in students
        for lesson, kind, question, en, _ in sorted(student.flags)
    ]


def page_names(names: list[str]) -> dict[str, str]:
    """Student to the name of the feedback page: the name itself where every file system takes it, else with a hash."""
    pages: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.@ -]", "_", name).strip(" .")[:80]
        reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", plain)
        if plain != name or reserved or not plain or plain.casefold() in taken:
            plain = f"{plain or 'student'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
        taken.add(plain.casefold())
        pages[name] = f"{plain}.html"
    return pages


def _feedback(student: Student, rubric: Rubric) -> dict[str, Any]:
    zh = student.lang == "zh"
    lessons = []
    for lesson, questions in sorted(rubric.lessons.items()):
        rows = []
        for id, question in questions.items():
            verdict = student.verdict(id, lesson)
            said = verdict.zh if zh else verdict.en
            label = CHINESE[verdict.state] if zh else verdict.state
            shown = verdict.answer or verdict.shown
            rows.append({"id": id, "state": verdict.state, "label": label, "said": said, "shown": shown,
                         "points": f"{verdict.points:g}", "most": f"{question.points:g}"})  # fmt: skip
        notes = [(kind, question, zh_said if zh else en) for where, kind, question, en, zh_said in sorted(student.flags)
                 if where == lesson and kind not in PRIVATE]  # fmt: skip
        lessons.append({"name": lesson, "rows": rows, "notes": notes})
    general = [(kind, zh_said if zh else en) for where, kind, _, en, zh_said in sorted(student.flags)
               if not where and kind not in PRIVATE]  # fmt: skip
    total, most = f"{student.total(rubric):g}", f"{rubric.total:g}"
    waiting = sum(row["state"] == "handed in" for lesson in lessons for row in lesson["rows"])
    return {"student": student.name, "zh": zh, "lessons": lessons, "general": general, "total": total, "most": most,
            "waiting": waiting, "course": rubric.course}  # fmt: skip


def summary(students: list[Student], rubric: Rubric) -> dict[str, Any]:
    """Figures of the class: states and mean points by question, the distribution of totals, flags by kind."""
    questions = {}
    for id, question in rubric.questions.items():
        verdicts = [student.verdict(id, rubric.lesson_of(id)) for student in students]
        states = Counter(verdict.state for verdict in verdicts)
        mean = sum(verdict.points for verdict in verdicts) / len(students)
        questions[id] = {
            "lesson": rubric.lesson_of(id),
            "points": question.points,
            "mean": round(mean, 3),
            "states": {state: states[state] for state in ORDER if states[state]},
        }
    totals = [student.total(rubric) for student in students]
    kinds = Counter(kind for student in students for _, kind, *_ in student.flags)
    tenths = Counter(min(int(10 * total / rubric.total), 9) if rubric.total else 0 for total in totals)
    return {
        "students": len(students),
        "notebooks": sum(len(student.lessons) for student in students),
        "most": rubric.total,
        "mean_total": round(sum(totals) / len(totals), 3),
        "totals": {f"{10 * tenth}-{10 * tenth + 10} %": tenths[tenth] for tenth in range(10)},
        "unmarked": sum(question["states"].get("handed in", 0) for question in questions.values()),
        "questions": questions,
        "flags": dict(sorted(kinds.items())),
        "flagged": {student.name: len(student.flags) for student in students if student.flags},
    }


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("pages")), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
