"""What labkit says to a student, in the student's language; of its errors, only those about fetching a model are."""

from __future__ import annotations

import os

from labkit.errors import LabError

LANGUAGES = ("en", "zh")


def language() -> str:
    """``en`` or ``zh``, from ``LABKIT_LANG`` (a notebook's setup cell sets it); English without it.

    Raises:
        LabError: ``LABKIT_LANG`` is something else.
    """
    lang = os.environ.get("LABKIT_LANG", "").strip() or "en"
    if lang not in LANGUAGES:
        raise LabError(f"LABKIT_LANG={lang!r}", "the book speaks en and zh", "set LABKIT_LANG=en or LABKIT_LANG=zh")
    return lang


def text(en: str, zh: str) -> str:
    """The one of two wordings that fits `language`."""
    return zh if language() == "zh" else en
