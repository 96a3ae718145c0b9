"""One notebook against the rubric: a verdict for each of its questions, and flags on how it was made."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from labkit.course.grading.hidden import Hidden, judge_recorded
from labkit.course.grading.plausible import doubts
from labkit.course.grading.read import CHECKED, MEDDLING, Answer, CodeCell, Notebook, clean
from labkit.course.grading.rubric import Question, Rubric
from labkit.page.exercises import HINTS_FILE, NotAttempted, Wrong

Said = tuple[str, str]
SHOWN = 300  # characters of an answer in feedback

# What a grader finds beside a check's own states. Each costs the question's points.
REASONS: dict[str, Said] = {
    "missing": ("there is no cell with this check in the notebook", "notebook 里没有这道题的检查单元格"),
    "not run": ("the answer cell was not run", "作答的单元格没有运行"),
    "no record": (
        "the cell was run, but its output holds no record: run it again and save with outputs",
        "单元格运行过，但输出里没有记录：请重新运行，并连同输出一起保存",
    ),
    "changed": (
        "the cell was changed after its check, so the record is of another answer: run it again",
        "检查之后又改了单元格，记录对应的是另一个答案：请重新运行",
    ),
    "elsewhere": ("the record stands under a cell that does not ask for it", "记录出现在与这道题无关的单元格下面"),
    "not attempted": ("not attempted", "没有作答"),
    "handed in": ("handed in: a person marks it", "已提交，由老师批阅"),
    "right": ("right", "正确"),
    "lost": ("the notebook could not be read", "无法读取 notebook"),
    "no notebook": ("no notebook of this lesson was handed in", "没有提交这一节的 notebook"),
}


@dataclass
class Verdict:
    """What one question got. ``answer`` is the text of a written answer, ``shown`` a short form of a value."""

    state: str
    points: float = 0.0
    en: str = ""
    zh: str = ""
    shown: str = ""
    answer: str = ""
    fingerprint: str = ""  # of the student's own lines, for comparing submissions

    @classmethod
    def of(cls, reason: str, points: float = 0.0, **more: str) -> Verdict:
        """The verdict for one of `REASONS`."""
        return cls(reason, points, *REASONS[reason], **more)


@dataclass
class Judged:
    """All that grading keeps of one notebook."""

    lesson: str
    lang: str = "en"
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    flags: list[tuple[str, str, str, str]] = field(default_factory=list)  # kind, question or "", English, Chinese
    records: list[tuple[str, str, float]] = field(default_factory=list)  # question, cell hash, seconds

    def flag(self, kind: str, en: str, zh: str, question: str = "") -> None:
        """Note something that an instructor should see."""
        if len(self.flags) < 60:
            self.flags.append((kind, question, en, zh))


@dataclass(frozen=True)
class Release:
    """What was handed out of one lesson: hashes of the cells that are not for changing, and the checks' own lines."""

    given: frozenset[str] = frozenset()
    checks: dict[str, str] = field(default_factory=dict)
    own_lines: dict[str, frozenset[str]] = field(default_factory=dict)  # of answer cells, as handed out


def lesson_of(notebook: Notebook, rubric: Rubric, name: str) -> str | None:
    """The lesson that a notebook is: by the questions in it, and by its file name only if it has none."""
    asked = Counter(int(id[1:].partition("_")[0]) for cell in notebook.cells for id in cell.asked)
    numbers = {int(lesson[:2]): lesson for lesson in rubric.lessons}
    known = [(count, -number) for number, count in asked.items() if number in numbers]
    if known:
        return numbers[-max(known)[1]]
    found = re.search(r"(?<!\d)(\d\d)[_-]", name)
    return numbers.get(int(found[1])) if found else None


def judge_notebook(
    notebook: Notebook, lesson: str, rubric: Rubric, hidden: dict[str, Hidden], release: Release
) -> Judged:
    """Verdicts and flags of one notebook that is known to be ``lesson``'s."""
    judged = Judged(lesson, notebook.lang)
    for kind, en, zh in dict.fromkeys(notebook.wrong):
        judged.flag(kind, en, zh)
    for id, question in rubric.lessons[lesson].items():
        if not notebook.readable:
            judged.verdicts[id] = Verdict.of("lost")
            continue
        judged.verdicts[id] = _judge_question(id, question, notebook, judged, rubric, hidden.get(id, Hidden()), release)
    if notebook.readable:
        _note_structure(notebook, judged, release)
        for kind, en, zh in doubts([answer for cell in notebook.cells for answer in cell.records]):
            judged.flag(kind, en, zh)
        _note_runs(rubric.lessons[lesson], notebook, judged)
    return judged


def _judge_question(
    id: str, question: Question, notebook: Notebook, judged: Judged, rubric: Rubric, hidden: Hidden, release: Release
) -> Verdict:
    cells = [cell for cell in notebook.cells if id in cell.asked]
    records = [(cell, answer) for cell in cells for answer in cell.records if answer.question == id]
    strangers = [
        answer for cell in notebook.cells if cell not in cells for answer in cell.records if answer.question == id
    ]
    if not cells:
        if strangers:
            judged.flag("record elsewhere", *REASONS["elsewhere"], id)
        return Verdict.of("missing")
    if len(cells) > 1:
        many = len(cells)
        judged.flag(
            "duplicate cell",
            f"{many} cells check it; the last record counts",
            f"有 {many} 个单元格检查它，以最后的记录为准",
            id,
        )
    cell, answer = records[-1] if records else (cells[-1], None)
    if strangers:
        judged.flag("record elsewhere", *REASONS["elsewhere"], id)
        if answer is None and rubric.rules.record_from_another_cell == "flag":
            answer = strangers[-1]
    _note_check(id, cell, judged, release)
    verdict = (
        _without_record(cell, bool(strangers))
        if answer is None
        else _from_record(id, question, cell, answer, judged, rubric, hidden)
    )
    if id in release.checks and rubric.rules.edited_check == "zero" and _edited(id, cell, release):
        verdict.points = 0.0
    verdict.fingerprint = _fingerprint(id, cell, release.own_lines.get(id, frozenset()))
    return verdict


def _without_record(cell: CodeCell, strangers: bool) -> Verdict:
    if strangers:
        return Verdict.of("elsewhere")
    if cell.errors:
        said = cell.errors[0]
        return Verdict("error", 0.0, f"the cell stopped with {said}", f"单元格因错误停止：{said}")
    return Verdict.of("no record" if cell.executed else "not run")


def _from_record(
    id: str, question: Question, cell: CodeCell, answer: Answer, judged: Judged, rubric: Rubric, hidden: Hidden
) -> Verdict:
    judged.records.append((id, answer.cell_sha256 or "", answer.seconds))
    changed = answer.cell_sha256 != cell.sha256
    if changed:
        judged.flag("changed after check", *REASONS["changed"], id)
    verdict = _by_value(id, question, answer, judged, hidden)
    if changed and verdict.points and rubric.rules.changed_after_check == "zero":
        return Verdict.of("changed", shown=verdict.shown, answer=verdict.answer)
    if changed and verdict.state == "handed in" and rubric.rules.changed_after_check == "zero":
        verdict.state, (verdict.en, verdict.zh) = "changed", REASONS["changed"]
    return verdict


def _by_value(id: str, question: Question, answer: Answer, judged: Judged, hidden: Hidden) -> Verdict:
    """The verdict that the recorded value deserves, whatever state the record claims."""
    shown, said = clean(repr(answer.value), SHOWN), clean(answer.said or "", 1000)
    if answer.state == "not attempted":
        return Verdict.of("not attempted")
    if answer.state == "error":
        return Verdict("error", 0.0, said or "your code raised an error", said or "你的代码抛出了异常")
    if answer.state == "wrong" and question.kind == "function":
        return Verdict("wrong", 0.0, said or "wrong", said or "错误", shown)
    try:
        judge_recorded(id, hidden, answer.value)
    except NotAttempted:
        return Verdict.of("not attempted")
    except Wrong as wrong:
        if answer.state in ("right", "handed in"):
            what = f'the record says "{answer.state}", its value is not', f"记录写着“{answer.state}”，记录的值却不对"
            judged.flag("record contradicts itself", *what, id)
        elif said and wrong.en.startswith("the recorded value"):
            return Verdict("wrong", 0.0, said, said, shown)
        return Verdict("wrong", 0.0, clean(wrong.en, 1000), clean(wrong.zh, 1000), shown)
    except Exception as error:  # a value that no rule foresaw is that student's problem, not the batch's
        judged.flag(
            "record contradicts itself",
            f"judging its value failed: {type(error).__name__}",
            f"判定记录的值时出错：{type(error).__name__}",
            id,
        )
        return Verdict("wrong", 0.0, "the recorded value cannot be judged", "记录的值无法判定", shown)
    if question.kind == "written":
        return Verdict.of("handed in", answer=clean(answer.value, 6000))
    return Verdict.of("right", question.points, shown=shown)


def _edited(id: str, cell: CodeCell, release: Release) -> bool:
    return release.checks[id] not in {line.strip() for line in cell.source.splitlines()}


def _note_check(id: str, cell: CodeCell, judged: Judged, release: Release) -> None:
    if id in release.checks and _edited(id, cell, release):
        judged.flag(
            "edited check", f"the line {release.checks[id]} was changed", f"{release.checks[id]} 这一行被改过", id
        )


def _note_runs(questions: dict[str, Question], notebook: Notebook, judged: Judged) -> None:
    """A training result without the record that its lesson's training prints: it may have been taken out."""
    left = {answer.question for cell in notebook.cells for answer in cell.records}
    for id, question in questions.items():
        if question.record and judged.verdicts[id].points and question.record not in left:
            said = (
                f"answered without a training run (no record {question.record})",
                f"没有训练记录 {question.record} 就作答",
            )
            judged.flag("implausible", *said, id)


def _note_structure(notebook: Notebook, judged: Judged, release: Release) -> None:
    cells = [cell for cell in notebook.cells if cell.source.strip()]
    unrun = [cell for cell in cells if cell.executed is None]
    if unrun:
        first = "; ".join(_first_line(cell) for cell in unrun[:3])
        judged.flag(
            "not run",
            f"{len(unrun)} of {len(cells)} cells were not run: {first}",
            f"{len(cells)} 个单元格中有 {len(unrun)} 个没有运行：{first}",
        )
    counts = [cell.executed for cell in cells if cell.executed is not None]
    backwards = sum(later <= earlier for earlier, later in itertools.pairwise(counts))
    if backwards:
        judged.flag(
            "out of order",
            f"cells were run out of order ({backwards} steps back)",
            f"单元格没有按顺序运行（往回 {backwards} 次）",
        )
    failed = [cell for cell in cells if cell.errors]
    if failed:
        said = failed[0].errors[0]
        judged.flag(
            "error",
            f"{len(failed)} cells ended with an error; the first: {said}",
            f"{len(failed)} 个单元格以错误结束；第一个：{said}",
        )
    found = {cell.sha256 for cell in cells}
    gone = len(release.given - found)
    if gone:
        judged.flag(
            "given cells",
            f"{gone} of {len(release.given)} given cells are missing or changed",
            f"{len(release.given)} 个给定单元格中有 {gone} 个缺失或被改过",
        )
    if any(MEDDLING.search(cell.source) for cell in cells if cell.sha256 not in release.given):
        judged.flag("meddling", "a cell reaches for the checks or their records", "有单元格在动检查程序或它的记录")


def _first_line(cell: CodeCell) -> str:
    return clean(next(line for line in cell.source.splitlines() if line.strip()).strip(), 60)


def _fingerprint(id: str, cell: CodeCell, handed_out: frozenset[str]) -> str:
    """A hash of the lines that the student wrote, without blanks and comments; empty for few, or for a hint's lines."""
    lines = (re.sub(r"\s+|#.*", "", line) for line in cell.source.splitlines() if line.strip() not in handed_out)
    own = [line for line in lines if line and not CHECKED.match(line)]
    if sum(map(len, own)) < 20 or all(line in _hinted(id) for line in own):
        return ""
    return hashlib.sha256("\n".join(own).encode("utf-8", "replace")).hexdigest()[:16]


@functools.cache
def _hinted(id: str) -> str:
    hints = json.loads(HINTS_FILE.read_text(encoding="utf-8")).get(id, {})
    return re.sub(r"\s+", "", "\n".join(hint for several in hints.values() for hint in several))


def as_plain(judged: Judged) -> dict[str, Any]:
    """``judged`` as JSON holds it."""
    return {
        "lesson": judged.lesson,
        "lang": judged.lang,
        "verdicts": {id: vars(verdict) for id, verdict in judged.verdicts.items()},
        "flags": [list(flag) for flag in judged.flags],
        "records": [list(record) for record in judged.records],
    }
