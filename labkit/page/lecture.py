"""The lecture's ledger: each claim, the value recomputed or measured here, and a verdict that follows from comparing.

The claims and all prose are in ``lecture.toml``; the values come from `labkit.page.lecture_values`. A verdict is typed
only where a claim has nothing that can be computed, and then beside its source.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.page.lecture_values import GIVERS, run_of
from labkit.page.verdicts import VERDICTS, Says, Value, judge

PUBLISHED = "published"  # for values that no code of this book gives


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One value that a claim is held against.

    Attributes:
        value: number or truth value.
        en, zh: under which convention, or which part of the claim.
        given_by: the function of labkit or the stored run that gave it; "published" for a quoted one.
        judged: False for a convention that the claim itself rules out.
        agrees: whether the value is what the claim says.
    """

    value: Value
    en: str
    zh: str
    given_by: str
    judged: bool
    agrees: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One claim with its verdict.

    Attributes:
        quote, en: the lecture's words, and what they say in English.
        place: the heading of the lecture under which they stand, in both languages.
        says: see `Says`; None where nothing can be compared.
        computed: whether the verdict follows from the readings.
        source: what the readings or the verdict rest on, in both languages.
        note: a remark in both languages; often empty.
    """

    id: str
    topic: str
    lessons: tuple[str, ...]
    place: dict[str, str]
    quote: str
    en: str
    says: dict[str, Any] | None
    unit: str
    readings: tuple[Reading, ...]
    verdict: str
    computed: bool
    source: dict[str, str]
    note: dict[str, str]


def ledger(*, topic: str | None = None, lesson: str | None = None) -> list[Row]:
    """The rows of the ledger in the lecture's order, all or those of a topic or of a lesson ("01").

    Raises:
        LabError: an unknown topic, or a lesson without claims.
    """
    raw = claims_file()
    lessons = sorted({number for claim in raw["claims"] for number in claim["lessons"]})
    _known("topic", topic, list(raw["topics"]))
    _known("lesson", lesson, lessons)
    chosen = [
        claim
        for claim in raw["claims"]
        if topic in (None, claim["topic"]) and (lesson is None or lesson in claim["lessons"])
    ]
    if not chosen:
        raise LabError(f"topic={topic!r}, lesson={lesson!r}", "no claim has both", "leave one of them out")
    return [_row(claim["id"]) for claim in chosen]


@cache
def claims_file() -> dict[str, Any]:
    """``lecture.toml`` as it is; do not change it in place."""
    return tomllib.loads(files("labkit.page").joinpath("lecture.toml").read_text(encoding="utf-8"))


def _known(name: str, value: str | None, allowed: list[str]) -> None:
    if value is not None and value not in allowed:
        raise LabError(f"{name}={value!r}", f"the ledger has the {name}s {', '.join(allowed)}", "use one of them")


@cache
def _row(id: str) -> Row:
    raw = claims_file()
    claim = next(claim for claim in raw["claims"] if claim["id"] == id)
    says = Says(**claim["says"]) if "says" in claim else None
    if (says is None) == ("verdict" not in claim) or claim.get("verdict", VERDICTS[0]) not in VERDICTS:
        rule = "a claim has either something to compare or a typed verdict"
        raise LabError(f"claim {id}", rule, f"use one of {', '.join(VERDICTS)}")
    readings = tuple(_reading(says, given) for given in claim.get("readings", ())) if says else ()
    judged = [reading.value for reading in readings if reading.judged]
    return Row(
        id=id,
        topic=claim["topic"],
        lessons=tuple(claim["lessons"]),
        place=raw["places"][claim["place"]],
        quote=claim["quote"],
        en=claim["en"],
        says=claim.get("says"),
        unit=claim.get("unit", ""),
        readings=readings,
        verdict=judge(says, judged, parts=claim.get("parts", False)) if says else claim["verdict"],
        computed=says is not None,
        source={"en": claim["source"], "zh": claim["source_zh"]},
        note={"en": claim.get("note_en", ""), "zh": claim.get("note_zh", "")},
    )


def _reading(says: Says, given: dict[str, Any]) -> Reading:
    function, origin = GIVERS[given["give"]]
    value = function(**given.get("with", {}))
    if origin.startswith("data/measurements/"):
        origin += f" ({run_of(origin.removeprefix('data/measurements/'))})"
    return Reading(
        value=value,
        en=given["en"],
        zh=given["zh"],
        given_by=origin or PUBLISHED,
        judged=not given.get("compare", False),
        agrees=says.agrees(value),
    )


# --- what a reader sees ----------------------------------------------------------------------------------------------

NAMES = {
    "right": "正确",
    "right in one convention": "在一种口径下正确",
    "imprecise": "不准确",
    "wrong": "错误",
    "no source found": "没有找到出处",
}


def columns() -> tuple[str, ...]:
    """The heads of `cells`, in the student's language."""
    return (
        text("the lecture", "讲义"),
        text("recomputed, measured or published (✓ agrees)", "重算、实测或已发表的值（✓ 相符）"),
        text("verdict", "结论"),
        text("source", "依据"),
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row as text for a table with `columns`; a cell may hold several lines."""
    quote = re.sub(r"\*\*|\$", "", row.quote)  # bold type and formulas of the lecture's page
    claim = text(f"{row.en}\n“{quote}”", f"“{quote}”") + "\n§ " + text(row.place["en"], row.place["zh"])
    values = [_value_line(reading, row.unit) for reading in row.readings]
    note = text(row.note["en"], row.note["zh"])
    origins = ", ".join(dict.fromkeys(reading.given_by for reading in row.readings if reading.given_by != PUBLISHED))
    found = "\n".join(filter(None, (*values, note, origins)))
    return claim, found or "–", text(row.verdict, NAMES[row.verdict]), text(row.source["en"], row.source["zh"])


def _value_line(reading: Reading, unit: str) -> str:
    mark = ("✓" if reading.agrees else "✗") if reading.judged else text("for comparison:", "供对照：")
    colon = text(": ", "：")
    return f"{mark} {text(reading.en, reading.zh)}{colon}{_shown(reading.value, unit)}"


def _shown(value: Value, unit: str) -> str:
    if isinstance(value, bool):
        return text("yes", "是") if value else text("no", "否")
    figure = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    units = {"times": "倍", "bytes": "字节", "bits": "比特", "parameters": "个参数", "points": "分"}
    unit = text(unit, units.get(unit, unit))
    return f"{figure} {unit}".rstrip()


def summary(rows: Sequence[Row]) -> str:
    """How many rows have each verdict, in the student's language."""
    counts = {name: sum(row.verdict == name for row in rows) for name in VERDICTS}
    parts = [f"{text(name, NAMES[name])} {count}" for name, count in counts.items() if count]
    computed = sum(row.computed for row in rows)
    ending = text(f"; {computed} of {len(rows)} computed", f"；{len(rows)} 条中 {computed} 条由计算得出")
    return text(", ", "，").join(parts) + ending


def show_claims(lesson: str | None = None, *, topic: str | None = None) -> None:
    """Display rows of the ledger as a table, and as plain text where no HTML is shown.

    Raises:
        LabError: see `ledger`.
    """
    from IPython.display import display

    rows = ledger(lesson=lesson, topic=topic)
    display({"text/html": html_table(rows), "text/plain": plain_table(rows)}, raw=True)


def plain_table(rows: Sequence[Row]) -> str:
    """The rows as lines of text: verdict, claim, values, source."""
    blocks = []
    for row in rows:
        claim, found, verdict, source = (cell.replace("\n", "\n    ") for cell in cells(row))
        blocks.append(f"[{verdict}] {claim}\n    {found}\n    {source}")
    return "\n".join([*blocks, summary(rows)])


def html_table(rows: Sequence[Row]) -> str:
    """The rows as an HTML table that scrolls sideways where the page is narrow."""
    from html import escape

    style = "text-align:left;vertical-align:top;padding:.4em .6em;white-space:normal;overflow-wrap:break-word"
    heads = "".join(f'<th scope="col" style="{style}">{escape(head)}</th>' for head in columns())
    body = []
    for row in rows:
        tds = (re.sub(r"(?<=\w)\.(?=[a-zA-Z])", ".<wbr>", escape(cell)).replace("\n", "<br>") for cell in cells(row))
        body.append("<tr>" + "".join(f'<td style="{style}">{td}</td>' for td in tds) + "</tr>")
    caption = escape(summary(rows))
    return (
        '<div class="labkit-lecture" style="overflow-x:auto"><table style="border-collapse:collapse">'
        f'<caption style="text-align:left">{caption}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
