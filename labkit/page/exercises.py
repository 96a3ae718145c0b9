"""check, hint, predict and reveal: an exercise answers at once and leaves a record; so does a training run."""

from __future__ import annotations

import contextlib
import functools
import html
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.labels import language, text
from labkit.page.records import make_record, shell

HINTS_FILE = Path(__file__).with_name("hints.json")  # built from the lessons by `labkit build`
CURVE_POINTS = 64  # of a loss curve in a record
COLOURS = {
    "right": "#009E73",
    "wrong": "#D55E00",
    "error": "#D55E00",
    "not attempted": "#777777",
    "handed in": "#0072B2",
    "predicted": "#0072B2",
}

_questions: dict[str, Question] = {}
_hints_shown: dict[str, int] = {}
_predictions: dict[str, tuple[float, str]] = {}


class Wrong(Exception):
    """A rule found the answer wrong, and says why in both languages."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.en, self.zh = en, zh


class NotAttempted(Exception):
    """The placeholder of the exercise is still in place."""


@dataclass(frozen=True)
class Question:
    """One exercise: its id (``q1_2`` is lesson 01's second) and the rule that judges a value.

    The rule returns what the record shall keep (None: the value itself), or raises `Wrong` or `NotAttempted`.
    A ``written`` answer that its rule accepts is handed in, never right: a person marks it.
    """

    id: str
    rule: Callable[[Any], Any]
    written: bool = False


def question(id: str, *, written: bool = False) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register the decorated rule as the visible check of question ``id``; ``written``: a person marks the answer."""

    def register(rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
        _questions[id] = Question(id, rule, written)
        return rule

    return register


def attempted(value: object) -> Any:
    """``value``, unless it is a placeholder (``...`` or None).

    Raises:
        NotAttempted: it is one, or a container that holds one.
    """
    if value is None or value is ... or (isinstance(value, str) and not value.strip()):
        raise NotAttempted
    if isinstance(value, list | tuple) and any(item is ... or item is None for item in value):
        raise NotAttempted
    return value


def must_be_function(value: object, name: str) -> None:
    """Check that ``value`` is a function, the one that the exercise calls ``name``.

    Raises:
        Wrong: it cannot be called: most likely its result was passed.
    """
    if not callable(value):
        raise Wrong(
            f"a function is asked for: pass {name} itself, without ()", f"这里要函数本身：写 {name}，不要加括号"
        )


def judge(id: str, value: object) -> tuple[str, str, Any]:
    """State, message and recorded value of ``value`` as the answer to question ``id``; nothing is printed.

    States: ``right``, ``wrong``, ``not attempted``, ``error`` when the student's code raised, and ``handed in`` for a
    written answer, which a person marks. What the student's code writes to stderr goes to stdout: graders and test
    tools take stderr for a failure.
    """
    asked = find_question(id)
    try:
        with contextlib.redirect_stderr(sys.stdout):
            kept = asked.rule(attempted(value))
    except NotAttempted:
        return "not attempted", text("not attempted yet", "还没有作答"), None
    except Wrong as wrong:
        return "wrong", text(wrong.en, wrong.zh), value
    except (Exception, SystemExit) as error:  # whatever the student's function raises is an answer, not a crash
        said = f"{type(error).__name__}: {error}"
        return "error", text(f"your code raised {said}", f"你的代码抛出了异常 {said}"), said
    kept = value if kept is None else kept
    if asked.written:
        return "handed in", text("handed in: a person marks what it says", "已提交，内容由老师批阅"), kept
    return "right", text("right", "正确"), kept


def check(id: str, value: object) -> None:
    """Say whether ``value`` answers question ``id``, and print the record that a grader reads.

    Args:
        id: e.g. ``"q1_1"``.
        value: the answer: a number, a text, a tuple of them, or the function that the exercise asks for.

    Raises:
        LabError: there is no such question.
    """
    state, message, kept = judge(id, value)
    record = make_record(id, state, kept, said=message if state in ("wrong", "error") else None)
    if record.said is not None:
        message += text(f'  A hint: hint("{id}")', f'  需要提示：hint("{id}")')
    _display(id, state, message, record.line())


def hint(id: str, grade: int | None = None) -> None:
    """Show the next hint of question ``id``: first where to look, then the key step, then almost the answer.

    Raises:
        LabError: no such question, or no such grade.
    """
    hints = _hints().get(id, {}).get(language())
    if not hints:
        find_question(id)
        raise LabError(f"hint({id!r})", "this question has no hints", "ask a fellow student, or your instructor")
    grade = grade or min(_hints_shown.get(id, 0) + 1, len(hints))
    if not 1 <= grade <= len(hints):
        raise LabError(f"grade={grade}", f"{id} has {len(hints)} hints", f"try grade={len(hints)}")
    _hints_shown[id] = grade
    print(text(f"Hint {grade} of {len(hints)}: ", f"提示 {grade}/{len(hints)}：") + hints[grade - 1])


def predict(id: str, value: object, *, unit: str = "") -> None:
    """Keep a number that the student typed before running anything; `reveal` comes back to it.

    Args:
        id: e.g. ``"p1_1"``.
        value: the guess, or the placeholder ``...``.
        unit: what it is counted in, e.g. ``"GB"``.
    """
    if value is None or value is ...:
        _predictions.pop(id, None)
        message = text(
            "no prediction typed yet: a guess now makes the number stick later",
            "还没有写下预测：先猜一个数，后面的结果才记得住",
        )
        return _display(id, "not attempted", message, make_record(id, "not attempted", None).line())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LabError(f"predict({id!r}, {value!r})", "a prediction is a number", f"type one, e.g. predict({id!r}, 12)")
    _predictions[id] = (float(value), unit)
    message = text(f"your prediction: {value:g} {unit}", f"你的预测：{value:g} {unit}")
    _display(id, "predicted", message, make_record(id, "predicted", value).line())


def record_run(id: str, losses: Sequence[float], *, seconds: float, peak_memory: dict[str, int]) -> None:
    """Print the record of a training run, for a grader: its loss curve and what the training took.

    Args:
        id: e.g. ``"r4_1"``: lesson 04's first run.
        losses: of the optimizer steps, in their order; a long curve is thinned to `CURVE_POINTS` of them.
        seconds: of training, over all sessions in which it went on.
        peak_memory: bytes by name, over the same sessions (see `labkit.training.measure.peak_memory`).
    """
    stride = -(-len(losses) // CURVE_POINTS) or 1
    thinned = [float(loss) for loss in losses[::stride]]
    value = {"steps": len(losses), "losses": thinned, "seconds": seconds, "peak_memory": peak_memory}
    print(make_record(id, "ran", value).line())


def reveal(id: str, value: float) -> None:
    """Set the number that came out beside the one that the student predicted."""
    if id not in _predictions:
        print(text(f"It is {value:,.4g}. (You typed no prediction.)", f"结果是 {value:,.4g}。（你没有写下预测。）"))
        return
    guess, unit = _predictions[id]
    ratio = f"{guess / value:.2f}" if value else "–"
    print(
        text(
            f"You predicted {guess:,.4g} {unit}; it is {value:,.4g} {unit}: your number is {ratio} times the real one.",
            f"你预测 {guess:,.4g} {unit}，结果是 {value:,.4g} {unit}：你的数是实际值的 {ratio} 倍。",
        )
    )


def find_question(id: str) -> Question:
    """The question of that id; the module of its lesson (``labkit.page.questions.q01``) is loaded when first needed."""
    lesson = str(id).removeprefix("q").partition("_")[0]
    if id not in _questions and lesson.isdecimal():
        name = f"labkit.page.questions.q{int(lesson):02d}"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name != name:
                raise
    if id not in _questions:
        known = ", ".join(sorted(_questions)) or "none loaded yet"
        raise LabError(f"question {id!r}", f"no such question (known: {known})", "copy the id from the exercise's text")
    return _questions[id]


@functools.cache
def _hints() -> dict[str, dict[str, list[str]]]:
    return json.loads(HINTS_FILE.read_text(encoding="utf-8"))


def _display(id: str, state: str, message: str, record: str) -> None:
    plain = f"[{id}] {message}\n{record}"
    running = shell()
    if running is None:
        print(plain)
        return
    from IPython.display import display

    rich = (
        f'<div style="border-left:4px solid {COLOURS[state]};padding:.3em .8em;margin:.3em 0">'
        f"<b>{html.escape(id)}</b> {html.escape(message)}"
        f'<details><summary style="color:#777;font-size:85%">{text("record", "记录")}</summary>'
        f'<code style="font-size:80%;overflow-wrap:anywhere">{html.escape(record)}</code></details></div>'
    )
    display({"text/html": rich, "text/plain": plain}, raw=True)
