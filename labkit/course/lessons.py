"""One lesson source (jupytext percent, two languages) becomes English, Chinese and solution notebooks.

The rules of a source, checked when it is read:

- A Markdown cell is tagged ``en`` or ``zh``. Each ``en`` cell is followed by its ``zh`` cell, which also carries
  ``of-<hash>``: the hash of the English text that it translates. Edit the English, and the build fails until the
  Chinese has been looked at again (gettext calls such a text fuzzy).
- In a code cell, the lines from ``### BEGIN SOLUTION`` to ``### END SOLUTION`` (nbgrader's spelling) are what students
  write themselves; a code cell tagged ``solution`` exists in the solution notebooks only.
- A Markdown pair tagged ``hint-q1_1`` holds the hints of a question, split by lines of ``---``. Hints are in no
  notebook; they go to the table that `labkit.page.exercises.hint` reads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from labkit.course.setup_cell import setup_cell
from labkit.errors import LabError
from labkit.labels import LANGUAGES
from labkit.paths import checkout

SOURCES = "sources"  # where a built notebook's metadata has its `sources_hash`
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
PLACEHOLDER = {"en": "# your code here", "zh": "# 在这里写你的代码"}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Cell:
    """One cell of a source. ``prose`` holds both languages of a Markdown pair; ``code`` is empty for those."""

    number: int
    code: str = ""
    prose: dict[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()

    @property
    def hint_of(self) -> str | None:
        """The question whose hints this pair holds."""
        return next((tag.removeprefix("hint-") for tag in self.tags if tag.startswith("hint-")), None)


@dataclass(frozen=True)
class Lesson:
    """A lesson source, read and checked. ``name`` is the file's stem, e.g. ``01_memory``."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def hints(self) -> dict[str, dict[str, list[str]]]:
        """Question id to language to its hints, weakest first."""
        pairs = {cell.hint_of: cell.prose for cell in self.cells if cell.hint_of}
        return {id: {lang: _split_hints(prose[lang]) for lang in LANGUAGES} for id, prose in pairs.items()}


def translation_hash(english: str) -> str:
    """What a Chinese cell's ``of-`` tag must say: 8 hex digits of the English text's SHA-256."""
    return hashlib.sha256(english.strip().encode()).hexdigest()[:8]


def lesson_paths(names: list[str] | None = None) -> list[Path]:
    """The sources in ``lessons/``, in order; ``names`` (``01``, ``01_memory``) picks some.

    Raises:
        LabError: a name fits no lesson.
    """
    paths = sorted((checkout() / "lessons").glob("[0-9][0-9]_*.py"))
    if not names:
        return paths
    chosen = []
    for name in names:
        fits = [path for path in paths if name in (path.stem, path.stem[:2], path.name)]
        if not fits:
            known = ", ".join(path.stem for path in paths)
            raise LabError(
                f"lesson {name!r}", f"there is no such lesson (there are: {known})", "use its number, e.g. 01"
            )
        chosen += fits
    return chosen


def read_lesson(path: Path, *, check_translations: bool = True) -> Lesson:
    """Read and check one source.

    Raises:
        LabError: a rule of the module's docstring is broken; the message names the file and the cell.
    """
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    cells: list[Cell] = []
    waiting: str | None = None  # the English text whose Chinese must come next
    for number, raw in enumerate(notebook.cells, start=1):
        where, tags = f"{path.name}, cell {number}", frozenset(raw.metadata.get("tags", ()))
        if waiting is not None and not (raw.cell_type == "markdown" and "zh" in tags):
            raise LabError(where, "the English cell before it has no Chinese twin", 'add a cell tagged "zh" after it')
        if raw.cell_type == "code":
            _check_regions(raw.source, where)
            cells.append(Cell(number, code=raw.source, tags=tags))
        elif raw.cell_type == "markdown" and "en" in tags:
            waiting = raw.source
        elif raw.cell_type == "markdown" and "zh" in tags:
            if waiting is None:
                raise LabError(where, "this Chinese cell follows no English one", 'put the cell tagged "en" before it')
            if check_translations:
                _check_hash(waiting, tags, where)
            cells.append(Cell(number, prose={"en": waiting, "zh": raw.source}, tags=_common(tags)))
            waiting = None
        else:
            raise LabError(where, "a Markdown cell says its language", 'tag it "en" or "zh"')
    if waiting is not None:
        raise LabError(path.name, "the last English cell has no Chinese twin", 'add a cell tagged "zh" after it')
    return Lesson(path.stem, tuple(cells))


def build_notebook(lesson: Lesson, lang: str, *, solutions: bool) -> str:
    """The notebook of ``lesson`` as JSON text: no outputs, the same bytes every time.

    Args:
        lesson: from `read_lesson`.
        lang: ``en`` or ``zh``.
        solutions: keep the reference solutions (for CI), or replace them by a placeholder (for students).
    """
    number = lesson.name.partition("_")[0]
    built = []
    for cell in lesson.cells:
        source = _source(cell, lang, solutions=solutions)
        if source is None:
            continue
        make = nbformat.v4.new_markdown_cell if cell.prose else nbformat.v4.new_code_cell
        kept = sorted(cell.tags - {"solution"})
        built.append(make(source, id=f"{number}-{cell.number:03d}", metadata={"tags": kept} if kept else {}))
        if len(built) == 1:
            built.append(nbformat.v4.new_code_cell(setup_cell(lang), id=f"{number}-setup"))
    ours = {"lesson": lesson.name, "lang": lang, SOURCES: sources_hash(built)}
    notebook = nbformat.v4.new_notebook(cells=built, metadata=METADATA | {"labkit": ours})
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4) + "\n"


def sources_hash(cells: Sequence[Mapping[str, Any]]) -> str:
    """16 hex digits that stand for the kinds and texts of a notebook's cells, in their order.

    Stands in the metadata of a built notebook; where it no longer fits the cells, somebody has edited them.
    """
    texts = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]  # a file may hold a text as its lines
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def stamp(path: Path) -> str:
    """The text of the source at ``path`` with every ``of-`` tag set to its English cell's hash.

    For a translator who has just gone through the Chinese cells; it vouches for all of them.
    """
    lesson = read_lesson(path, check_translations=False)
    hashes = iter(translation_hash(cell.prose["en"]) for cell in lesson.cells if cell.prose)

    def renew(header: re.Match[str]) -> str:
        tags = [tag for tag in re.findall(r'"([^"]+)"', header[2]) if not tag.startswith("of-")]
        quoted = ", ".join(f'"{tag}"' for tag in [*tags, f"of-{next(hashes)}"])
        return f"{header[1]}[{quoted}]"

    return re.sub(r'^(# %% \[markdown\] tags=)(\["zh"[^\]]*\])', renew, path.read_text(encoding="utf-8"), flags=re.M)


def _source(cell: Cell, lang: str, *, solutions: bool) -> str | None:
    if cell.prose:
        return None if cell.hint_of else cell.prose[lang]
    if solutions:
        return "\n".join(line for line in cell.code.split("\n") if line.strip() not in (BEGIN, END))
    return None if "solution" in cell.tags else _without_solutions(cell.code, PLACEHOLDER[lang])


def _without_solutions(code: str, placeholder: str) -> str:
    kept, inside = [], False
    for line in code.split("\n"):
        if line.strip() == BEGIN:
            inside = True
            kept.append(line.replace(BEGIN, placeholder))
        elif line.strip() == END:
            inside = False
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def _check_regions(code: str, where: str) -> None:
    marks = [line.strip() for line in code.split("\n") if line.strip() in (BEGIN, END)]
    if marks != [BEGIN, END] * (len(marks) // 2):
        raise LabError(where, f"{BEGIN} and {END} must come in pairs", "add the missing marker")


def _check_hash(english: str, tags: frozenset[str], where: str) -> None:
    wanted = f"of-{translation_hash(english)}"
    if wanted not in tags:
        found = next((tag for tag in tags if tag.startswith("of-")), "no hash")
        rule = f"the Chinese was written for another English text ({found})"
        raise LabError(
            where, rule, f"bring the Chinese up to date, then tag it {wanted} (or run `labkit build --stamp`)"
        )


def _common(tags: frozenset[str]) -> frozenset[str]:
    return frozenset(tag for tag in tags if tag not in LANGUAGES and not tag.startswith("of-"))


def _split_hints(prose: str) -> list[str]:
    return [part.strip() for part in re.split(r"^---$", prose, flags=re.M) if part.strip()]
