"""A whole class: files go to worker processes, results come back, and each student is put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.course.grading import sources
from labkit.course.grading.grader import Grader, unread
from labkit.course.grading.judge import Judged, Verdict
from labkit.course.grading.read import clean
from labkit.course.grading.rubric import Rubric
from labkit.course.grading.workers import Lost, run_jobs

KEPT = ".kept"  # folder of finished results inside the report's folder


@dataclass
class Student:
    """All that was found of one student, ready for the report."""

    name: str
    lessons: dict[str, Judged] = field(default_factory=dict)
    flags: list[tuple[str, str, str, str, str]] = field(
        default_factory=list
    )  # lesson, kind, question, English, Chinese
    places: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)  # lesson to its job and its file's name

    @property
    def lang(self) -> str:
        """The language of most of the notebooks, English if it is a draw."""
        chinese = sum(judged.lang == "zh" for judged in self.lessons.values())
        return "zh" if 2 * chinese > len(self.lessons) else "en"

    def verdict(self, id: str, lesson: str) -> Verdict:
        """The verdict on a question; one of "no notebook" if there is none."""
        judged = self.lessons.get(lesson)
        return judged.verdicts[id] if judged and id in judged.verdicts else Verdict.of("no notebook")

    def total(self, rubric: Rubric) -> float:
        """Points of all questions."""
        return sum(self.verdict(id, rubric.lesson_of(id)).points for id in rubric.questions)


def grade(
    submissions: Path,
    arguments: tuple[Any, ...],
    rubric: Rubric,
    *,
    workers: int,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> list[Student]:
    """Every student of ``submissions``, by name.

    Args:
        submissions: folder or zip.
        arguments: of `Grader`: paths of rubric and hidden checks, manifest, folder for finished results; a file whose
            result is there is not judged again.
        rubric: what that path holds.
        workers: processes.
        on_done: told how many files are done, of how many.

    Raises:
        LabError: nothing to grade.
    """
    found = sources.find(submissions)
    results: list[Any] = [None] * len(found.jobs)
    limits = {"seconds": rubric.limits.seconds_per_file, "memory_gib": rubric.limits.worker_memory_gib}
    jobs = run_jobs(found.jobs, Grader, arguments, workers=workers, **limits)
    for done, (place, result) in enumerate(jobs, start=1):
        results[place] = result
        on_done(done, len(found.jobs))
    students: dict[str, Student] = {name: Student(name) for name in sorted(found.notes)}
    for name, notes in found.notes.items():
        students[name].flags += [("", kind, "", en, zh) for kind, en, zh in notes]
    by_student: dict[str, list[dict[str, Any]]] = {name: [] for name in students}
    for job, result in zip(found.jobs, results, strict=True):
        by_student[job["student"]] += _entries(job, result, students[job["student"]], rubric)
    for name, entries in by_student.items():
        _put_together(students[name], entries, rubric)
    return list(students.values())


def _entries(job: dict[str, Any], result: Any, student: Student, rubric: Rubric) -> list[dict[str, Any]]:
    """The notebooks that a job found, each with its job; what was left alone is flagged."""
    if isinstance(result, Lost):
        note = ("gave up", f"{clean(job['label'], 80)}: {result}", f"{clean(job['label'], 80)}：读取超时，或耗尽内存")
        return [unread(job["label"], note, rubric) | {"job": job}]
    student.flags += [("", kind, "", en, zh) for kind, en, zh in result["notes"]]
    return [entry | {"job": job} for entry in result["notebooks"]]


def _put_together(student: Student, entries: list[dict[str, Any]], rubric: Rubric) -> None:
    """One notebook a lesson: of several, the one with the most points (ties: the first name)."""
    by_lesson: dict[str, list[dict[str, Any]]] = {}
    for entry in entries[: rubric.limits.notebooks_per_student]:
        if entry["lesson"] is None:
            kind, en, zh = entry["note"]
            student.flags.append(
                ("", kind, "", f"{clean(entry['name'], 80)}: {en}", f"{clean(entry['name'], 80)}：{zh}")
            )
        else:
            by_lesson.setdefault(entry["lesson"], []).append(entry)
    for lesson, several in sorted(by_lesson.items()):
        points = [sum(verdict["points"] for verdict in entry["verdicts"].values()) for entry in several]
        best = max(range(len(several)), key=lambda place: (points[place], -place))
        if len(several) > 1:
            named = ", ".join(clean(entry["name"], 60) for entry in several[:4])
            en, zh = (
                f"{len(several)} notebooks of this lesson ({named}): the best counts",
                f"这一节有 {len(several)} 个 notebook（{named}），以最好的为准",
            )
            student.flags.append((lesson, "duplicate notebook", "", en, zh))
        judged = _from_plain(several[best])
        student.lessons[lesson] = judged
        student.places[lesson] = (several[best]["job"], several[best]["name"])
        student.flags += [(lesson, kind, question, en, zh) for kind, question, en, zh in judged.flags]


def _from_plain(entry: dict[str, Any]) -> Judged:
    return Judged(
        entry["lesson"],
        entry["lang"],
        {id: Verdict(**verdict) for id, verdict in entry["verdicts"].items()},
        [tuple(flag) for flag in entry["flags"]],
        [tuple(record) for record in entry["records"]],
    )
