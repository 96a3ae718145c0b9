"""Read and check the topics of the instruction set (``data/instructions/material``)."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.training.constraints import language_of, sentences

LANGUAGES = ("en", "zh")
HELDOUT_ONE_IN = 7  # topics


@dataclass(frozen=True)
class Topic:
    """One topic in one language: the raw TOML entries of that language under plain names."""

    id: str
    language: str
    name: str
    summary: str
    points: tuple[str, ...]
    keywords: tuple[str, ...]
    attributes: dict[str, str]
    yesno: tuple[tuple[str, bool], ...]
    question: str
    answer: str

    @property
    def bare_name(self) -> str:
        """The name without its article: "the Moon" -> "Moon"."""
        return re.sub(r"^(the|an?) ", "", self.name)

    @property
    def title(self) -> str:
        """The name as a title: "a comet" -> "Comet", but "The Moon"."""
        title = re.sub(r"^an? ", "", self.name)
        return title[0].upper() + title[1:]


def need(held: bool, where: str, rule: str) -> None:
    if not held:
        raise LabError(where, rule, "mend this topic in data/instructions/material")


def _sentence(text: object, language: str, where: str, longest: int) -> None:
    need(isinstance(text, str) and bool(text.strip()), where, "a sentence is missing or empty")
    need(text == text.strip() and "\n" not in text and '"' not in text, where, f"no quotes or loose space: {text!r}")
    need(sentences(text) == 1 and text[-1] in ".!?。！？", where, f"not one whole sentence: {text!r}")
    # A Chinese sentence may hold a formula or a name in Latin letters, so only its being Chinese at all is asked.
    need(language_of(text) == language, where, f"not written in {language}: {text!r}")
    length = len(text.split()) if language == "en" else len(text)
    need(length <= longest, where, f"{length} words or characters, at most {longest}: {text!r}")


def _texts(raw: dict[str, Any], name: str, kind: type, where: str) -> dict[str, Any]:
    value = raw.get(name)
    held = isinstance(value, dict) and set(value) == set(LANGUAGES) and all(isinstance(v, kind) for v in value.values())
    need(held, where, f"{name} must hold a {kind.__name__} for en and one for zh")
    return value


def _word_list(words: list[Any], count: int, where: str, name: str) -> None:
    held = len(words) == count == len(set(words)) and all(isinstance(w, str) and w.strip() == w != "" for w in words)
    need(held, where, f"{name} must be {count} different texts: {words!r}")


def _validate(raw: dict[str, Any], where: str) -> None:
    fields = {"id", "name", "summary", "points", "keywords", "attributes", "yesno", "question", "answer"}
    need(set(raw) == fields, where, f"fields missing or unknown: {sorted(set(raw) ^ fields)}")
    need(isinstance(raw["id"], str) and re.fullmatch(r"[a-z0-9-]+", raw["id"]) is not None, where, "the id is no slug")
    kinds = {"name": str, "summary": str, "question": str, "answer": str, "points": list, "keywords": list}
    for name, kind in {**kinds, "attributes": dict}.items():
        _texts(raw, name, kind, where)
    for language in LANGUAGES:
        _validate_language(raw, language, f"{where} [{language}]")
    held = isinstance(raw["yesno"], list) and all(isinstance(item, dict) for item in raw["yesno"])
    need(held and len(raw["yesno"]) == 3, where, "yesno must hold three questions")
    for item in raw["yesno"]:
        need(set(item) == {*LANGUAGES, "answer"} and isinstance(item["answer"], bool), where, f"bad yesno: {item!r}")
        for language in LANGUAGES:
            _question(item[language], language, where)
    need({item["answer"] for item in raw["yesno"]} == {True, False}, where, "yesno needs both answers")


def _question(text: object, language: str, where: str) -> None:
    _sentence(text, language, where, {"en": 20, "zh": 36}[language])
    need(text[-1] == {"en": "?", "zh": "？"}[language], where, f"no question: {text!r}")


def _validate_language(raw: dict[str, Any], language: str, where: str) -> None:
    longest = {"en": 24, "zh": 44}[language]
    name = raw["name"][language]
    need(bool(name.strip()) and name == name.strip(), where, "the name is empty or has loose space")
    for text in (raw["summary"][language], raw["answer"][language]):
        _sentence(text, language, where, longest)
    _word_list(raw["points"][language], 5, where, "points")
    _word_list(raw["keywords"][language], 5, where, "keywords")
    for text in raw["points"][language]:
        _sentence(text, language, where, {"en": 16, "zh": 30}[language])
    for word in raw["keywords"][language]:
        need(not set(word) & set(',，、."。'), where, f"a keyword holds punctuation: {word!r}")
    attributes = raw["attributes"][language]
    need(3 <= len(attributes) <= 4, where, "attributes must have 3 or 4 keys")
    need(all(isinstance(v, str) and v.strip() == v != "" for v in attributes.values()), where, "an attribute is empty")
    _question(raw["question"][language], language, where)


def _in_language(raw: dict[str, Any], language: str) -> Topic:
    plain = {name: raw[name][language] for name in ("name", "summary", "attributes", "question", "answer")}
    lists = {name: tuple(raw[name][language]) for name in ("points", "keywords")}
    yesno = tuple((item[language], item["answer"]) for item in raw["yesno"])
    return Topic(id=raw["id"], language=language, yesno=yesno, **plain, **lists)


def toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabError(str(path), f"cannot be read as TOML ({error})", "mend the file") from None


def read_topics(folder: Path) -> dict[str, list[dict[str, Topic]]]:
    """Every topic of every file, both languages: {"train": [{"en": Topic, "zh": Topic}, ...], "heldout": [...]}.

    Raises:
        LabError: naming file and topic where the material breaks its schema, or an id or a name occurs twice.
    """
    topics, seen = [], set()
    for path in sorted(folder.glob("*.toml")):
        for place, raw in enumerate(toml(path).get("topic", []), start=1):
            where = f"{path.name}, topic {raw.get('id', f'number {place}')!r}"
            _validate(raw, where)
            marks = {raw["id"], raw["name"]["en"].lower(), raw["name"]["zh"]}
            need(not marks & seen, where, f"another topic has {sorted(marks & seen)} too")
            seen |= marks
            order = (path.name, hashlib.sha256(raw["id"].encode()).hexdigest())
            topics.append((order, {language: _in_language(raw, language) for language in LANGUAGES}))
    need(bool(topics), str(folder), "there are no topics here")
    ordered = [topic for _, topic in sorted(topics, key=lambda pair: pair[0])]
    heldout = ordered[HELDOUT_ONE_IN // 2 :: HELDOUT_ONE_IN]
    return {"train": [topic for topic in ordered if topic not in heldout], "heldout": heldout}
