"""Calls a student's function inside the student's own kernel and prints what it returned, as plain data.

The student's code shares this process and may change anything here. That gains nothing: no expected value is known
here, so the only line that helps is one with the right results for inputs that came in just now.
"""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from labkit.course.grading.inside import MARK
from labkit.course.grading.plain import decode, encode


def answer(function: Any, inputs: str) -> None:
    """Print one line with the result of each call, ``{"ok": value}`` or ``{"raised": text}``."""
    results = []
    for arguments in json.loads(inputs):
        if not callable(function):
            results.append({"raised": "no function of that name"})
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                returned = function(*[decode(argument) for argument in arguments])
            results.append({"ok": encode(returned)})
        except (Exception, SystemExit) as error:
            results.append({"raised": f"{type(error).__name__}: {error}"[:300]})
    print("\n" + MARK + json.dumps(results))
