"""Rules that a program can check in an answer: "exactly three bullets", "in Chinese", "as JSON with these keys".

Every rule looks at the form of an answer, never at its truth. White space around the answer is ignored, and an
empty answer breaks every rule. The idea of verifiable instructions: Zhou et al. 2023, arXiv:2311.07911 (IFEval).

A new rule is one function under ``@rule(kind, argument=check)`` that returns what is wrong, or ``None``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from labkit.errors import LabError

CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
# A full stop ends a sentence only before white space, a closing quote or the end: "42.195 km" is one number.
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)」]*(?=\s|$)|[。！？]+[”’）」]*")
QUOTES = {'"': '"', "“": "”", "「": "」"}


@dataclass(frozen=True)
class Constraint:
    """One rule with its arguments, e.g. ``Constraint("bullets", {"count": 3})``; made by `parse`."""

    kind: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of the data files: ``{"kind": "bullets", "count": 3}``."""
        return {"kind": self.kind, **self.args}


class Checkable(Protocol):
    """Anything with an id and constraints, such as `labkit.training.data.Example`."""

    @property
    def id(self) -> str: ...

    @property
    def constraints(self) -> Sequence[Constraint]: ...


@dataclass(frozen=True)
class _Rule:
    arguments: Mapping[str, Callable[[Any], bool]]
    broken: Callable[..., str | None]  # (text, **args) -> what is wrong


_RULES: dict[str, _Rule] = {}


def rule(kind: str, **arguments: Callable[[Any], bool]) -> Callable:
    """Register the decorated checker under ``kind``; ``arguments`` maps each argument to a test of its value."""

    def register(broken: Callable[..., str | None]) -> Callable[..., str | None]:
        _RULES[kind] = _Rule(arguments, broken)
        return broken

    return register


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_text, value)) and len(set(value)) == len(value)


def _language(value: Any) -> bool:
    return value in ("en", "zh")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _differs(found: int, asked: int) -> str | None:
    return None if found == asked else f"{found} found, {asked} asked"


def sentences(text: str) -> int:
    """How many sentences ``text`` has; an unfinished one at its end counts as well."""
    ends = list(SENTENCE_END.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(rest.strip())


def language_of(text: str) -> str | None:
    """What ``text`` is written in, by the share of Chinese characters among them and the words in Latin letters.

    "zh" from a half up, "en" to a tenth at most, None between the two or where there is neither.
    """
    chinese, latin = len(CJK.findall(text)), len(LATIN_WORD.findall(text))
    if chinese + latin == 0:
        return None
    share = chinese / (chinese + latin)
    return "zh" if share >= 0.5 else "en" if share <= 0.1 else None


def _has(word: str, text: str) -> bool:
    """Whole words in English ("tea" is not in "team"), parts of the text in Chinese; capitals do not matter."""
    pattern = re.escape(word)
    if not CJK.search(word):
        pattern = rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
    return re.search(pattern, text, re.IGNORECASE) is not None


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


@rule("json_keys", keys=_texts)
def _json_keys(text: str, *, keys: list[str]) -> str | None:
    try:
        value = json.loads(text, object_pairs_hook=_unique_object)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"
    if not isinstance(value, dict):
        return "the JSON value is no object"
    if set(value) != set(keys):
        return f"keys {sorted(value)} found, {sorted(keys)} asked"
    return None if all(map(_text, value.values())) else "a value is empty or no string"


@rule("bullets", count=_count)
def _bullets(text: str, *, count: int) -> str | None:
    if other := [line for line in _lines(text) if not re.match(r"- \S", line)]:
        return f"a line is no bullet: {other[0]!r}"
    return _differs(len(_lines(text)), count)


@rule("numbered", count=_count)
def _numbered(text: str, *, count: int) -> str | None:
    for place, line in enumerate(_lines(text), start=1):
        if not re.match(rf"{place}\. ?\S", line):
            return f"line {place} does not start with '{place}. ': {line!r}"
    return _differs(len(_lines(text)), count)


@rule("language", language=_language)
def _in_language(text: str, *, language: str) -> str | None:
    found = language_of(text)
    return None if found == language else f"{found or 'mixed'} found, {language} asked"


@rule("max_words", count=_count)
def _max_words(text: str, *, count: int) -> str | None:
    found = len(text.split())
    return None if found <= count else f"{found} words found, {count} allowed"


@rule("max_chars", count=_count)
def _max_chars(text: str, *, count: int) -> str | None:
    found = len("".join(text.split()))  # punctuation counts, white space does not
    return None if found <= count else f"{found} characters found, {count} allowed"


@rule("sentences", count=_count)
def _sentences(text: str, *, count: int) -> str | None:
    return _differs(sentences(text), count)


@rule("starts_with", text=_text)
def _starts_with(answer: str, *, text: str) -> str | None:
    return None if answer.startswith(text.strip()) else f"the answer does not start with {text!r}"


@rule("ends_with", text=_text)
def _ends_with(answer: str, *, text: str) -> str | None:
    return None if answer.endswith(text.strip()) else f"the answer does not end with {text!r}"


@rule("contains", words=_texts)
def _contains(text: str, *, words: list[str]) -> str | None:
    missing = [word for word in words if not _has(word, text)]
    return f"missing {', '.join(missing)}" if missing else None


@rule("avoids", words=_texts)
def _avoids(text: str, *, words: list[str]) -> str | None:
    used = [word for word in words if _has(word, text)]
    return f"forbidden {', '.join(used)}" if used else None


@rule("uppercase")
def _uppercase(text: str) -> str | None:
    return None if text.isupper() else "not all letters are capitals"


@rule("comma_list", count=_count)
def _comma_list(text: str, *, count: int) -> str | None:
    items = re.split(r"[,，、]", text.rstrip(".。"))
    if len(text.splitlines()) > 1 or any(SENTENCE_END.search(item) for item in items):
        return "more than one line or sentence"
    if not all(item.strip() for item in items):
        return "an item is empty"
    return _differs(len(items), count)


@rule("yes_no")
def _yes_no(text: str) -> str | None:
    return None if text in ("Yes.", "No.", "是。", "不是。") else "neither Yes. nor No. (是。 nor 不是。)"


@rule("title_line")
def _title_line(text: str) -> str | None:
    lines = _lines(text)
    if not re.match(r"(Title: |标题：\s*)\S", lines[0]):
        return f"the first line is no title: {lines[0]!r}"
    return None if len(lines) > 1 else "no text after the title"


@rule("quoted")
def _quoted(text: str) -> str | None:
    close = QUOTES.get(text[0])
    inner = text[1:-1]
    if close is None or not text.endswith(close) or not inner.strip():
        return "the answer is not wrapped in quotation marks"
    return "a quotation mark inside" if text[0] in inner or close in inner else None


@rule("paragraphs", count=_count)
def _paragraphs(text: str, *, count: int) -> str | None:
    return _differs(len(re.split(r"\n[ \t]*(?:\n[ \t]*)+", text)), count)


KINDS: tuple[str, ...] = tuple(_RULES)


def parse(raw: object) -> Constraint:
    """A checked `Constraint` from its JSON object.

    Example:
        >>> parse({"kind": "bullets", "count": 3}).args
        {'count': 3}

    Raises:
        LabError: not an object, an unknown kind, or an argument that is missing, unknown or of a wrong value.
    """
    given = f"constraint {json.dumps(raw, ensure_ascii=False, default=repr)}"
    if not isinstance(raw, dict) or not isinstance(raw.get("kind"), str):
        raise LabError(given, 'a constraint is an object with a "kind"', 'write {"kind": "bullets", "count": 3}')
    args = {name: value for name, value in raw.items() if name != "kind"}
    if raw["kind"] not in _RULES:
        raise LabError(given, "this kind is unknown", f"use one of {', '.join(KINDS)}")
    tests = _RULES[raw["kind"]].arguments
    if set(args) != set(tests):
        wanted = ", ".join(tests) or "no arguments"
        raise LabError(given, f"{raw['kind']} takes exactly: {wanted}", "add or remove arguments")
    for name, test in tests.items():
        if not test(args[name]):
            fix = "counts are whole numbers from 1, texts not empty, lists without repeats, languages en or zh"
            raise LabError(given, f"{name}={args[name]!r} is not a valid value", fix)
    return Constraint(raw["kind"], args)


def _broken(constraint: Constraint, text: str) -> str | None:
    text = text.strip()
    return _RULES[constraint.kind].broken(text, **constraint.args) if text else "empty answer"


def follows(constraint: Constraint, text: str) -> bool:
    """Whether ``text`` obeys ``constraint``."""
    return _broken(constraint, text) is None


def violations(constraints: Iterable[Constraint], text: str) -> list[str]:
    """One short reason for each broken rule, e.g. ``["bullets: 2 found, 3 asked"]``; empty if all hold."""
    reasons = ((constraint.kind, _broken(constraint, text)) for constraint in constraints)
    return [f"{kind}: {reason}" for kind, reason in reasons if reason]


def rate(examples: Sequence[Checkable], texts: Sequence[str]) -> float:
    """Share in [0, 1] of the examples *all* of whose constraints hold in the text at the same place.

    Raises:
        LabError: no examples, not one text for each, or an example without constraints (nothing to check).
    """
    if not examples or len(examples) != len(texts):
        given = f"{len(examples)} examples and {len(texts)} texts"
        raise LabError(given, "the rate needs examples and one text for each", "generate one answer for each example")
    for example in examples:
        if not example.constraints:
            fix = "measure the rate on rows with constraints, such as the book's held-out set"
            raise LabError(f"example {example.id}", "it has no constraints, so there is nothing to check", fix)
    kept = sum(not violations(example.constraints, text) for example, text in zip(examples, texts, strict=True))
    return kept / len(examples)
