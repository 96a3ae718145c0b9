"""Hidden checks: what the instructor's folder knows of each question and no student sees.

``instructor/hidden/q02.py`` defines ``HIDDEN``, a `Hidden` for each question of lesson 02. Values come from records or
out of the sandbox; they are compared here, in the grader's own process.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from labkit.course.grading.plain import same
from labkit.errors import LabError
from labkit.page.exercises import Wrong, find_question
from labkit.page.records import normalise


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What a question's answer must be, beyond its visible check.

    Args:
        shape: the type that a recorded value must have (pydantic); nothing else reaches a rule.
        unwrap: from the recorded value to what the visible rule takes (records of right answers may hold more).
        also: a further rule on the recorded value; raises `Wrong`.
        function: the name under which the student's notebook defines it.
        reference: a right implementation: what it returns is what is expected.
        cases: argument tuples that no text and no visible check shows; or a function that makes them, where they are
            tensors: most gradings never need them, and importing torch takes seconds.
        tolerance: relative, of numbers.
        view: of a result, before it is compared (`sorted` where the order is free).
    """

    shape: Any = Any
    unwrap: Callable[[Any], Any] = field(default=lambda value: value)
    also: Callable[[Any], None] | None = None
    function: str = ""
    reference: Callable[..., Any] | None = None
    cases: tuple[tuple[Any, ...], ...] | Callable[[], tuple[tuple[Any, ...], ...]] = ()
    tolerance: float = 1e-6
    view: Callable[[Any], Any] = field(default=lambda value: value)
    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # results of `expected_record`

    def fits(self, value: Any) -> bool:
        """Whether a recorded value has the type that it must have."""
        try:
            TypeAdapter(self.shape).validate_python(value, strict=True)
        except ValidationError:
            return False
        return True

    @functools.cached_property
    def calls(self) -> tuple[tuple[Any, ...], ...]:
        """The arguments of every hidden case."""
        return self.cases() if callable(self.cases) else self.cases

    def expected_record(self, id: str) -> Any:
        """What the record of a right function holds: the visible rule, given the reference."""
        if id not in self.known:
            self.known[id] = normalise(find_question(id).rule(self.reference))
        return self.known[id]

    def agrees(self, found: Any, arguments: tuple[Any, ...]) -> bool:
        """Whether ``found`` is what the reference returns for a case."""
        try:
            return same(self.view(found), self.view(self.reference(*arguments)), self.tolerance)
        except (TypeError, ValueError):  # not a thing that this view can look at
            return False

    def visible_calls(self, id: str) -> list[tuple[Any, ...]]:
        """The arguments with which the visible rule calls a right function."""
        calls: list[tuple[Any, ...]] = []

        def watched(*arguments: Any) -> Any:
            calls.append(tuple(a.clone() if hasattr(a, "clone") else a for a in arguments))
            return self.reference(*arguments)

        find_question(id).rule(watched)
        return calls


def judge_recorded(id: str, hidden: Hidden, value: Any) -> None:
    """Hold a recorded value against the visible rule and the hidden one.

    Raises:
        Wrong: it is wrong, or not of the type that this question records.
        NotAttempted: it holds a placeholder.
    """
    if hidden.reference is not None:
        if not same(value, hidden.expected_record(id), max(hidden.tolerance, 1e-9)):
            raise Wrong("the recorded results are not those of a right function", "记录里的结果不是正确的函数会给出的")
    elif not hidden.fits(value):
        raise Wrong("the recorded value is not of the kind that is asked for", "记录的值不是题目要的那一种")
    else:
        find_question(id).rule(hidden.unwrap(value))
    if hidden.also is not None:
        hidden.also(value)


def load_hidden(folder: Path) -> dict[str, Hidden]:
    """All hidden checks in ``folder``, by question.

    Raises:
        LabError: a file defines no ``HIDDEN``.
    """
    found: dict[str, Hidden] = {}
    for path in sorted(folder.glob("q[0-9][0-9].py")):
        spec = importlib.util.spec_from_file_location(f"labkit_hidden_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not isinstance(getattr(module, "HIDDEN", None), dict):
            raise LabError(str(path), "it must define HIDDEN, question to Hidden", "look at instructor/hidden/q00.py")
        found |= module.HIDDEN
    return found
