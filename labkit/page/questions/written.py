"""Written answers: the check sees only that an answer is there and long enough; a person marks what it says."""

from __future__ import annotations

import re
from typing import Any

from labkit.page.exercises import Wrong

MIN_CHARACTERS, MIN_SENTENCES = 80, 3


def explanation(value: Any) -> None:
    """A text of at least three sentences and 80 characters (a Chinese character counts twice).

    Raises:
        Wrong: it is no text, or shorter.
    """
    if not isinstance(value, str):
        raise Wrong("a text is asked for", "这里要一段文字")
    length = len(value.strip()) + len(re.findall(r"[\u4e00-\u9fff]", value))  # a Chinese character says about two
    sentences = len(re.findall(r"[.!?。！？]+(?=\s|$|[^\d\s])", value.strip() + "\n"))
    if length < MIN_CHARACTERS or sentences < MIN_SENTENCES:
        raise Wrong(
            f"three full sentences are asked for; I count {sentences}, {len(value.strip())} characters",
            f"需要三句完整的话；现在数到 {sentences} 句、{len(value.strip())} 个字符",
        )
