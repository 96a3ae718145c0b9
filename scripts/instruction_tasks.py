"""The tasks of the instruction set: each turns a topic into the slots of a wording, a reference answer and its rules.

A task is one function under ``@task(name)``: (topic in the language of the instruction, the same topic in the other
language, rng) -> (slots, response, constraints), or None where the topic has nothing fitting.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from instruction_topics import LANGUAGES, Topic

from labkit.training.constraints import follows, parse

NUMBERS = {"en": ["zero", "one", "two", "three", "four", "five"], "zh": list("零一两三四五")}
LIMITS = {"en": (6, 8, 10, 12, 15, 18, 20, 25), "zh": (10, 12, 15, 18, 20, 25, 30, 35, 40)}
# Openings that leave the number of sentences as it is, then openings that are sentences of their own.
OPENINGS = {
    "en": ("In short:", "Here is a fact:", "Simply put:", "What many people know:"),
    "zh": ("简单来说，", "大家都知道，", "总的来说，", "说起来，"),
}
GREETINGS = {
    "en": ("Good question!", "Of course!", "Let me explain.", "Sure!"),
    "zh": ("没问题！", "这个问题问得好！", "我来说明一下。", "当然可以！"),
}
ENDINGS = {
    "en": ("That is all.", "I hope this helps.", "Now you know!", "Thanks for asking!", "Easy to remember, right?"),
    "zh": ("就是这样。", "希望对你有帮助。", "现在你知道了吧！", "谢谢你的提问！", "很好记吧？"),
}

Slots = dict[str, str]
Built = tuple[Slots, str, list[dict[str, Any]]] | None
Build = Callable[[Topic, Topic, random.Random], Built]


@dataclass(frozen=True)
class Task:
    build: Build
    languages: tuple[str, ...]  # of the instruction
    weight: int  # how many times as often as others


TASKS: dict[str, Task] = {}


def task(name: str, *languages: str, weight: int = 1) -> Callable[[Build], Build]:
    """Register the decorated function as the task ``name``."""

    def register(build: Build) -> Build:
        TASKS[name] = Task(build, languages or LANGUAGES, weight)
        return build

    return register


def _quoted_words(words: Sequence[str], language: str) -> str:
    if language == "zh":
        marked = [f"“{word}”" for word in words]
        return marked[0] if len(marked) == 1 else "、".join(marked[:-1]) + "和" + marked[-1]
    marked = [f'"{word}"' for word in words]
    return marked[0] if len(marked) == 1 else ", ".join(marked[:-1]) + " and " + marked[-1]


def _join(parts: Sequence[str], language: str) -> str:
    return (" " if language == "en" else "").join(parts)


def _number(count: int, language: str) -> Slots:
    plural = "" if count == 1 else "s"
    word = NUMBERS[language][count]
    return {"n": str(count), "number": word, "sentences": f"{word} sentence{plural}"}


def _some(items: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """``count`` of the items in their written order: the author put them in an order that reads well."""
    return [items[place] for place in sorted(rng.sample(range(len(items)), count))]


def _text(topic: Topic, count: int, rng: random.Random) -> str:
    """``count`` sentences on the topic: the summary, then points."""
    return _join([topic.summary, *_some(topic.points, count - 1, rng)], topic.language)


def _bulleted(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


@task("json_keys", weight=2)
def _json_keys(t: Topic, other: Topic, rng: random.Random) -> Built:
    keys = _some(list(t.attributes), rng.randint(2, len(t.attributes)), rng)
    response = json.dumps({key: t.attributes[key] for key in keys}, ensure_ascii=False)
    return {"keys": _quoted_words(keys, t.language)}, response, [{"kind": "json_keys", "keys": keys}]


@task("bullets")
def _bullets(t: Topic, other: Topic, rng: random.Random) -> Built:
    count = rng.randint(2, 4)
    return _number(count, t.language), _bulleted(_some(t.points, count, rng)), [{"kind": "bullets", "count": count}]


@task("bullets_language")
def _bullets_language(t: Topic, other: Topic, rng: random.Random) -> Built:
    count = rng.randint(2, 3)
    rules = [{"kind": "bullets", "count": count}, {"kind": "language", "language": other.language}]
    return _number(count, t.language), _bulleted(_some(other.points, count, rng)), rules


@task("numbered", weight=2)
def _numbered(t: Topic, other: Topic, rng: random.Random) -> Built:
    count = rng.randint(2, 4)
    lines = [f"{place}. {line}" for place, line in enumerate(_some(t.points, count, rng), start=1)]
    return _number(count, t.language), "\n".join(lines), [{"kind": "numbered", "count": count}]


@task("language_question")
def _language_question(t: Topic, other: Topic, rng: random.Random) -> Built:
    return {"question": t.question}, other.answer, [{"kind": "language", "language": other.language}]


@task("language_about")
def _language_about(t: Topic, other: Topic, rng: random.Random) -> Built:
    return {}, other.summary, [{"kind": "language", "language": other.language}]


def _limited(t: Topic, response: str, rng: random.Random) -> tuple[Slots, str, list[dict[str, Any]]]:
    kind = {"en": "max_words", "zh": "max_chars"}[t.language]
    fitting = [n for n in LIMITS[t.language] if follows(parse({"kind": kind, "count": n}), response)]
    limit = rng.choice(fitting[:3])
    return {"limit": str(limit), "question": t.question}, response, [{"kind": kind, "count": limit}]


@task("limit_question")
def _limit_question(t: Topic, other: Topic, rng: random.Random) -> Built:
    return _limited(t, t.answer, rng)


@task("limit_about")
def _limit_about(t: Topic, other: Topic, rng: random.Random) -> Built:
    return _limited(t, t.summary, rng)


@task("sentences")
def _sentences(t: Topic, other: Topic, rng: random.Random) -> Built:
    count = rng.randint(1, 3)
    return _number(count, t.language), _text(t, count, rng), [{"kind": "sentences", "count": count}]


@task("sentences_language")
def _sentences_language(t: Topic, other: Topic, rng: random.Random) -> Built:
    count = rng.randint(1, 2)
    rules = [{"kind": "sentences", "count": count}, {"kind": "language", "language": other.language}]
    return _number(count, t.language), _text(other, count, rng), rules


@task("sentences_starts_with")
def _sentences_starts_with(t: Topic, other: Topic, rng: random.Random) -> Built:
    count, phrase = rng.randint(1, 2), rng.choice(OPENINGS[t.language])
    response = _join([phrase, _text(t, count, rng)], t.language)
    rules = [{"kind": "sentences", "count": count}, {"kind": "starts_with", "text": phrase}]
    return {"phrase": phrase, **_number(count, t.language)}, response, rules


@task("starts_with")
def _starts_with(t: Topic, other: Topic, rng: random.Random) -> Built:
    phrase = rng.choice(OPENINGS[t.language] + GREETINGS[t.language])
    response = _join([phrase, _text(t, 1, rng)], t.language)
    return {"phrase": phrase}, response, [{"kind": "starts_with", "text": phrase}]


@task("ends_with")
def _ends_with(t: Topic, other: Topic, rng: random.Random) -> Built:
    phrase = rng.choice(ENDINGS[t.language])
    response = _join([_text(t, rng.randint(1, 2), rng), phrase], t.language)
    return {"phrase": phrase}, response, [{"kind": "ends_with", "text": phrase}]


def _word_slots(words: Sequence[str], language: str) -> Slots:
    if language == "en":
        return {"words": _quoted_words(words, "en"), "wordword": "word" if len(words) == 1 else "words"}
    measure = "这个词" if len(words) == 1 else f"这{NUMBERS['zh'][len(words)]}个词"
    return {"words": _quoted_words(words, "zh"), "wordword": measure}


@task("contains", weight=2)
def _contains(t: Topic, other: Topic, rng: random.Random) -> Built:
    homes = {w: [s for s in t.points if follows(parse({"kind": "contains", "words": [w]}), s)] for w in t.keywords}
    usable = [word for word in t.keywords if homes[word]]
    if not usable:
        return None
    words = _some(usable, min(len(usable), rng.randint(1, 2)), rng)
    chosen = {rng.choice(homes[word]) for word in words}
    response = _join([t.summary, *(point for point in t.points if point in chosen)], t.language)
    return _word_slots(words, t.language), response, [{"kind": "contains", "words": words}]


@task("avoids")
def _avoids(t: Topic, other: Topic, rng: random.Random) -> Built:
    # Its first letters: where "China" is forbidden, "Chinese" should not stand in the reference either.
    stems = {word: word.lower()[:4] for word in t.keywords}
    usable = [word for word in t.keywords if stems[word] not in f"{t.name} {t.summary}".lower()]
    if not usable:
        return None
    words = _some(usable, min(len(usable), rng.randint(1, 2)), rng)
    free = [s for s in t.points if not any(stems[word] in s.lower() for word in words)]
    response = _join([t.summary, *_some(free, min(len(free), rng.randint(0, 1)), rng)], t.language)
    return _word_slots(words, t.language), response, [{"kind": "avoids", "words": words}]


def _hints(t: Topic, rng: random.Random) -> tuple[Slots, list[str], dict[str, Any]] | None:
    """Points that do not give the topic away by any word of its name."""
    stems = [w.rstrip("s") for w in t.bare_name.lower().split()] if t.language == "en" else [t.name]
    free = [point for point in t.points if not any(stem in point.lower() for stem in stems)]
    longest = {"en": 16, "zh": 4}[t.language]  # "the invention of paper" is nothing to forbid
    if len(free) < 2 or len(t.bare_name) > longest:
        return None
    count = rng.randint(2, min(3, len(free)))
    slots = {**_word_slots([t.bare_name], t.language), **_number(count, t.language)}
    return slots, _some(free, count, rng), {"kind": "avoids", "words": [t.bare_name]}


@task("riddle")
def _riddle(t: Topic, other: Topic, rng: random.Random) -> Built:
    hints = _hints(t, rng)
    if hints is None:
        return None
    slots, lines, rule = hints
    return slots, _join(lines, t.language), [rule]


@task("bullets_riddle")
def _bullets_riddle(t: Topic, other: Topic, rng: random.Random) -> Built:
    hints = _hints(t, rng)
    if hints is None:
        return None
    slots, lines, rule = hints
    return slots, _bulleted(lines), [{"kind": "bullets", "count": len(lines)}, rule]


@task("uppercase", "en")
def _uppercase(t: Topic, other: Topic, rng: random.Random) -> Built:
    return {"question": t.question}, t.answer.upper(), [{"kind": "uppercase"}]


@task("comma_list", weight=2)
def _comma_list(t: Topic, other: Topic, rng: random.Random) -> Built:
    words = rng.sample(t.keywords, rng.randint(3, 5))
    response = (", " if t.language == "en" else "、").join(words)
    return _number(len(words), t.language), response, [{"kind": "comma_list", "count": len(words)}]


@task("uppercase_comma_list", "en")
def _uppercase_comma_list(t: Topic, other: Topic, rng: random.Random) -> Built:
    slots, response, rules = _comma_list(t, other, rng)
    return slots, response.upper(), [{"kind": "uppercase"}, *rules]


def _verdict(t: Topic, language: str, rng: random.Random) -> tuple[Slots, str]:
    # Draw the answer first: most topics have two questions of one answer and one of the other.
    wanted = rng.random() < 0.5
    question = rng.choice([question for question, answer in t.yesno if answer == wanted])
    return {"question": question}, {"en": ("No.", "Yes."), "zh": ("不是。", "是。")}[language][wanted]


@task("yes_no")
def _yes_no(t: Topic, other: Topic, rng: random.Random) -> Built:
    slots, response = _verdict(t, t.language, rng)
    question = slots["question"]
    if t.language == "zh" and "是" not in question and question.endswith("吗？"):
        slots["question"] = question.removesuffix("吗？") + "，是不是？"  # else 是。 and 不是。 are no natural answers
    return slots, response, [{"kind": "yes_no"}]


@task("yes_no_language")
def _yes_no_language(t: Topic, other: Topic, rng: random.Random) -> Built:
    slots, response = _verdict(t, other.language, rng)
    return slots, response, [{"kind": "yes_no"}, {"kind": "language", "language": other.language}]


def _titled(t: Topic, rng: random.Random) -> str:
    return f"{ {'en': 'Title: ', 'zh': '标题：'}[t.language] }{t.title}\n{_text(t, rng.randint(1, 2), rng)}"


@task("title_line")
def _title_line(t: Topic, other: Topic, rng: random.Random) -> Built:
    return {}, _titled(t, rng), [{"kind": "title_line"}]


@task("title_line_ends_with")
def _title_line_ends_with(t: Topic, other: Topic, rng: random.Random) -> Built:
    phrase = rng.choice(ENDINGS[t.language])
    response = _join([_titled(t, rng), phrase], t.language)
    return {"phrase": phrase}, response, [{"kind": "title_line"}, {"kind": "ends_with", "text": phrase}]


def _in_quotes(text: str, language: str) -> str:
    return f'"{text}"' if language == "en" else f"「{text}」"


@task("quoted")
def _quoted(t: Topic, other: Topic, rng: random.Random) -> Built:
    return {}, _in_quotes(_text(t, rng.randint(1, 2), rng), t.language), [{"kind": "quoted"}]


@task("quoted_sentences")
def _quoted_sentences(t: Topic, other: Topic, rng: random.Random) -> Built:
    count = rng.randint(1, 2)
    rules = [{"kind": "quoted"}, {"kind": "sentences", "count": count}]
    return _number(count, t.language), _in_quotes(_text(t, count, rng), t.language), rules


@task("paragraphs", weight=2)
def _paragraphs(t: Topic, other: Topic, rng: random.Random) -> Built:
    count = rng.randint(2, 3)
    points = _some(t.points, count - 1 + (count == 2), rng)
    parts = [t.summary, _join(points, t.language)] if count == 2 else [t.summary, *points]
    return _number(count, t.language), "\n\n".join(parts), [{"kind": "paragraphs", "count": count}]
