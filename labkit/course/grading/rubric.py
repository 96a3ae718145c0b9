"""The rubric: points, rules and limits in one TOML file, checked when it is read."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from labkit.errors import LabError
from labkit.files import writing
from labkit.paths import checkout

Effect = Literal["zero", "flag"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
FILE = "rubric.toml"


class Part(BaseModel):
    """A table of the rubric: unknown keys are errors, because a mistyped rule would otherwise be no rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(Part):
    """What one submission may cost the grader. MiB are 2**20 bytes, GiB 2**30."""

    notebook_mib: Positive = 40
    archive_mib: Positive = 200
    notebooks_per_student: Count = 64
    archive_members: Count = 20_000
    seconds_per_file: Positive = 20
    worker_memory_gib: Positive = 6


class RerunLimits(Part):
    """What one re-run may take inside the sandbox."""

    notebook_seconds: Positive = 300
    cell_seconds: Positive = 120
    cpu_seconds: Positive = 600
    memory_gib: Positive = 6
    processes: Count = 200
    disk_mib: Positive = 256
    report_mib: Positive = 4


class Rules(Part):
    """What costs the question's points (``zero``) and what is only reported (``flag``)."""

    changed_after_check: Effect = "zero"
    record_from_another_cell: Effect = "zero"
    edited_check: Effect = "flag"
    rerun_may_raise: bool = False  # a function that is right in the re-run counts, whatever the record says
    rare_answers_shared: Count = 3  # so many answers shared with one other student, and with hardly anyone else
    written_overlap: Annotated[float, Field(gt=0, le=1)] = 0.6  # of the phrases of two written answers


class Question(Part):
    """One exercise: what it is worth and what kind of answer it has.

    ``value`` (typed or computed), ``function`` (its hidden cases run in a re-run), ``run`` (a training result that
    another machine does not repeat) or ``written`` (a person marks it). ``record`` names the record that a training run
    prints: an answer without it is flagged.
    """

    points: Annotated[float, Field(ge=0, le=1000)]
    kind: Literal["value", "function", "run", "written"]
    record: Annotated[str, Field(pattern=r"^r\d+_\d+$")] | None = None


class Rubric(Part):
    """The whole file. ``lessons`` maps a lesson's name to its questions."""

    course: str = "labkit"
    byte_order_mark: bool = False  # Excel needs it to read UTF-8; most other programs stumble over it
    limits: Limits = Limits()
    rerun: RerunLimits = RerunLimits()
    rules: Rules = Rules()
    lessons: dict[str, dict[str, Question]]

    @model_validator(mode="after")
    def _ids_fit_their_lessons(self) -> Rubric:
        if not any(self.lessons.values()):
            raise ValueError("no lesson has a question")
        for lesson, questions in self.lessons.items():
            if not lesson[:2].isdecimal() or lesson[2:3] != "_":
                raise ValueError(f"lessons.{lesson}: a lesson is named like 02_lora")
            wrong = [id for id in questions if not id.startswith(f"q{int(lesson[:2])}_")]
            if wrong:
                raise ValueError(f"lessons.{lesson}.{wrong[0]}: its questions are named q{int(lesson[:2])}_1, …")
        return self

    @property
    def questions(self) -> dict[str, Question]:
        """All questions, in the order of lessons and numbers."""
        return {
            id: questions[id]
            for _, questions in sorted(self.lessons.items())
            for id in sorted(questions, key=lambda id: int(id.partition("_")[2] or 0))
        }

    @property
    def total(self) -> float:
        """Points of a perfect submission."""
        return sum(question.points for question in self.questions.values())

    def only(self, lessons: Iterable[str]) -> Rubric:
        """This rubric without the lessons that were not handed out: nobody can have points there.

        Raises:
            LabError: none is left.
        """
        handed_out = set(lessons)
        left = {lesson: questions for lesson, questions in self.lessons.items() if lesson in handed_out}
        if not left:
            given = f"lessons {', '.join(sorted(handed_out)) or 'none'}"
            raise LabError(given, "the rubric has no questions for them", "add them to instructor/rubric.toml")
        return self.model_copy(update={"lessons": left})

    def lesson_of(self, id: str) -> str:
        """The lesson that asks question ``id``."""
        return next(lesson for lesson, questions in self.lessons.items() if id in questions)


def instructor_folder() -> Path:
    """``instructor/`` of the checkout: rubric and hidden checks, which no student gets.

    Raises:
        LabError: this is not an instructor's checkout.
    """
    folder = checkout() / "instructor"
    if not folder.is_dir():
        raise LabError(str(folder), "there is no instructor's folder here", "grade in the course's full checkout")
    return folder


def load_rubric(path: Path) -> Rubric:
    """Read and check a rubric.

    Raises:
        LabError: no such file, not TOML, or a value that breaks a rule; the message names file, key and value.
    """
    with writing(path):
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    if text is None:
        raise LabError(
            str(path), "there is no such rubric", "name one with --rubric, or restore instructor/rubric.toml"
        )
    try:
        return Rubric.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LabError(str(path), f"this is not TOML ({error})", "mend that line") from None
    except ValidationError as error:
        raise LabError(str(path), _first_of(error), "mend that key; instructor/rubric.toml shows each one") from None


def _first_of(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    first = found[0]
    place = ".".join(map(str, first["loc"])) or "the file"
    given = "" if isinstance(first["input"], dict) else f", given {first['input']!r}"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{place}: {first['msg'].removeprefix('Value error, ')}{given}{more}"
