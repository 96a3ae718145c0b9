"""Answers that a person marks: written.csv goes out with empty columns and comes back filled in."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from labkit.course.grading.batch import Student
from labkit.course.grading.rubric import Rubric
from labkit.course.grading.tables import read_table, safe, unguarded, write_table
from labkit.errors import LabError

COLUMNS = ("student", "question", "answer_id", "max_points", "points", "comment", "answer")


@dataclass(frozen=True)
class Mark:
    """What a person gave for one answer."""

    points: float
    comment: str = ""


def answer_id(student: str, question: str, answer: str) -> str:
    """Eight hex digits that tie a mark to the very text that was marked."""
    return hashlib.sha256("\0".join((student, question, answer)).encode()).hexdigest()[:8]


def read_marks(path: Path, rubric: Rubric) -> dict[str, Mark]:
    """The marks in a written.csv, by answer id; rows without points are not marked yet.

    Raises:
        LabError: points that are no number, or outside what the question gives; the message names the row.
    """
    marks: dict[str, Mark] = {}
    for number, row in enumerate(read_table(path, COLUMNS) if path.is_file() else [], start=2):
        given = row["points"].strip().replace(",", ".")
        if not given:
            continue
        where = f"{path.name}, row {number} ({row['student']}, {row['question']}): points={row['points']!r}"
        most = rubric.questions[row["question"]].points if row["question"] in rubric.questions else math.inf
        try:
            points = float(given)
        except ValueError:
            raise LabError(where, "points are a number", f"write 0 to {most:g}, or leave it empty") from None
        if not 0 <= points <= most:
            raise LabError(where, f"this question gives 0 to {most:g} points", "mend that row")
        marks[row["answer_id"].strip().lower()] = Mark(points, row["comment"].strip())
    return marks


def apply_marks(students: list[Student], rubric: Rubric, marks: dict[str, Mark]) -> list[tuple[object, ...]]:
    """Put marks on the verdicts they belong to; returns written.csv's rows, marked and unmarked.

    A mark whose answer is not there any more (the student handed in another text) is dropped and flagged.
    """
    rows: list[tuple[object, ...]] = []
    for student in students:
        for id, question in rubric.questions.items():
            lesson = rubric.lesson_of(id)
            verdict = student.verdict(id, lesson)
            if question.kind != "written" or not verdict.answer or verdict.state != "handed in":
                continue
            key = answer_id(student.name, id, verdict.answer)
            mark = marks.get(key)
            rows.append(
                (
                    student.name,
                    id,
                    key,
                    question.points,
                    *((mark.points, mark.comment) if mark else ("", "")),
                    verdict.answer,
                )
            )
            if mark:
                verdict.state, verdict.points = "marked", mark.points
                verdict.en = f"marked by a person: {mark.comment}" if mark.comment else "marked by a person"
                verdict.zh = f"老师已批阅：{mark.comment}" if mark.comment else "老师已批阅"
    return rows


def write_written(path: Path, rows: list[tuple[object, ...]], *, mark: bool) -> None:
    """Write written.csv; what was typed into it before is in ``rows`` already."""
    write_table(path, COLUMNS, rows, mark=mark)


def lost_marks(path: Path, marks: dict[str, Mark], rows: list[tuple[object, ...]]) -> list[tuple[str, str]]:
    """(student, question) of marks whose answer has changed since."""
    current = {row[2] for row in rows}
    kept = read_table(path, COLUMNS) if path.is_file() else []
    gone = [row for row in kept if row["answer_id"].strip().lower() in marks.keys() - current]
    return [(unguarded(safe(row["student"])), row["question"]) for row in gone]
