"""Submissions that resemble each other more than chance: rare answers in common, the same records, the same prose.

Right answers of one line are alike by nature, and hints give them away. So an answer counts only if hardly anyone else
gave it; and what comes out is a reason to look, never a verdict.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable

from labkit.course.grading.batch import Student
from labkit.course.grading.rubric import Rubric

RARE = 3  # an answer that at most so many students gave is rare
SKETCH = 64  # smallest phrase hashes kept of a written answer
LEAST_PHRASES = 12
MOST_PARTNERS = 3  # named in the flags of one student


def note_similar(students: list[Student], rubric: Rubric) -> None:
    """Flag pairs of students with rare answers, records or prose in common."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for pair, many in _shared(_answers(student) for student in students).items():
        if many >= rubric.rules.rare_answers_shared:
            found[pair].append((f"{many} rare answers in common", f"有 {many} 个少见的答案相同"))
    for pair, many in _shared(_records(student) for student in students).items():
        if many >= 2:
            found[pair].append(
                (
                    f"{many} records with the same cell and the same milliseconds",
                    f"有 {many} 条记录的单元格和毫秒数完全相同",
                )
            )
    for pair, (id, share) in _prose(students, rubric.rules.written_overlap).items():
        found[pair].append((f"{share:.0%} of the phrases of {id} in common", f"{id} 有 {share:.0%} 的短语相同"))
    partners: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for (one, other), reasons in sorted(found.items()):
        en, zh = "; ".join(reason[0] for reason in reasons), "；".join(reason[1] for reason in reasons)
        partners[one].append((other, en, zh))
        partners[other].append((one, en, zh))
    for student in students:
        _flag(student, sorted(partners[student.name], key=lambda partner: (-len(partner[1]), partner[0])))


def _flag(student: Student, partners: list[tuple[str, str, str]]) -> None:
    """The partners with most in common; a text that went round the whole class is one line, not a line for each."""
    for name, en, zh in partners[:MOST_PARTNERS]:
        student.flags.append(("", "similar", "", f"like {name}: {en}", f"与 {name} 相似：{zh}"))
    if (more := len(partners) - MOST_PARTNERS) > 0:
        student.flags.append(("", "similar", "", f"and like {more} others", f"另有 {more} 人相似"))


def _answers(student: Student) -> tuple[str, set]:
    kept = {
        (id, verdict.fingerprint)
        for judged in student.lessons.values()
        for id, verdict in judged.verdicts.items()
        if verdict.fingerprint
    }
    return student.name, kept


def _records(student: Student) -> tuple[str, set]:
    return student.name, {
        tuple(record) for judged in student.lessons.values() for record in judged.records if record[1]
    }


def _shared(holders: Iterable[tuple[str, set]]) -> dict[tuple[str, str], int]:
    """How many rare things two students share."""
    by_thing: dict[object, list[str]] = defaultdict(list)
    for name, things in holders:
        for thing in things:
            by_thing[thing].append(name)
    shared: dict[tuple[str, str], int] = defaultdict(int)
    for names in by_thing.values():
        if 2 <= len(names) <= RARE:
            for pair in itertools.combinations(sorted(names), 2):
                shared[pair] += 1
    return shared


def _prose(students: list[Student], overlap: float) -> dict[tuple[str, str], tuple[str, float]]:
    found: dict[tuple[str, str], tuple[str, float]] = {}
    sketches: dict[str, list[tuple[str, frozenset[int]]]] = defaultdict(list)
    for student in students:
        for judged in student.lessons.values():
            for id, verdict in judged.verdicts.items():
                if verdict.answer and len(phrases := _phrases(verdict.answer)) >= LEAST_PHRASES:
                    sketches[id].append((student.name, frozenset(sorted(phrases)[:SKETCH])))
    for id, several in sketches.items():
        for (one, mine), (other, theirs) in itertools.combinations(several, 2):
            share = len(mine & theirs) / len(mine | theirs)
            pair = (min(one, other), max(one, other))
            if share >= overlap and share > found.get(pair, ("", 0.0))[1]:
                found[pair] = (id, share)
    return found


def _phrases(text: str) -> set[int]:
    """Hashes of all runs of eight letters or Chinese characters, case and punctuation aside."""
    plain = re.sub(r"\W+", "", text.lower())
    return {zlib.crc32(plain[place : place + 8].encode()) for place in range(len(plain) - 7)}
