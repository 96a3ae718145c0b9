"""Writing what lessons become: notebooks that students open, solution notebooks, and the table of hints."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

from labkit.course.lessons import (
    LANGUAGES,
    SOURCES,
    Lesson,
    build_notebook,
    lesson_paths,
    read_lesson,
    sources_hash,
    stamp,
)
from labkit.errors import LabError
from labkit.files import write_text, writing
from labkit.page.exercises import HINTS_FILE
from labkit.paths import checkout


def student_folder(lang: str) -> Path:
    """``notebooks/`` (English) or ``notebooks/zh/``: committed, without solutions."""
    return checkout() / "notebooks" / ("zh" if lang == "zh" else "")


def solution_folder(lang: str) -> Path:
    """``build/solutions/en`` or ``.../zh``: made when needed, never committed."""
    return checkout() / "build" / "solutions" / lang


def built_files(*, langs: tuple[str, ...] = LANGUAGES, solutions: bool = False) -> dict[Path, str]:
    """Every file that the lessons make, with its text; nothing is written.

    Args:
        langs: which languages.
        solutions: the solution notebooks instead of the student notebooks and the hints.
    """
    lessons = [read_lesson(path) for path in lesson_paths()]
    folder = solution_folder if solutions else student_folder
    files = {
        folder(lang) / f"{lesson.name}.ipynb": build_notebook(lesson, lang, solutions=solutions)
        for lang in langs
        for lesson in lessons
    }
    if not solutions:
        files[HINTS_FILE] = hints_table(lessons)
    return files


def hints_table(lessons: list[Lesson]) -> str:
    """All hints as JSON text: question id, language, hints in order.

    Raises:
        LabError: two lessons hold hints of one question.
    """
    table: dict[str, dict[str, list[str]]] = {}
    for lesson in lessons:
        if twice := sorted(table.keys() & lesson.hints.keys()):
            raise LabError(
                lesson.name, f"hints of {twice[0]} stand in another lesson too", "give the question one home"
            )
        table |= lesson.hints
    return json.dumps(table, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def write(files: dict[Path, str]) -> list[Path]:
    """Write those of ``files`` that differ from what is on disk; returns them."""
    changed = [path for path, text in files.items() if not _same(path, text)]
    for path in changed:
        write_text(path, files[path])
    return changed


def keep_work(files: dict[Path, str]) -> dict[Path, Path]:
    """Copy notebooks that somebody worked in, and that ``files`` are about to replace, to ``build/kept/``.

    Worked in means: a cell was run, added, removed or edited (see `sources_hash`), or a front end has saved the file
    (each adds metadata of its own; Colab writes format 4.0). What is no notebook at all is kept too, and what was built
    before notebooks had that hash. Earlier copies stay.

    Returns:
        Notebook -> where its copy is.
    """
    worked_in = [path for path, text in files.items() if path.suffix == ".ipynb" and _holds_work(path, text)]
    return {path: _copy_aside(path) for path in worked_in}


def stale(files: dict[Path, str]) -> list[str]:
    """What is wrong with the committed files: missing, out of date, or left over from a lesson that is gone."""
    root = checkout()
    wrong = [
        f"{path.relative_to(root)}: {'stale' if path.exists() else 'missing'}"
        for path in files
        if not _same(path, files[path])
    ]
    folders = {path.parent for path in files if path.suffix == ".ipynb"}
    extra = {path for folder in folders for path in folder.glob("*.ipynb")} - files.keys()
    return wrong + [f"{path.relative_to(root)}: no lesson makes it" for path in sorted(extra)]


def stamp_lessons(names: list[str]) -> list[Path]:
    """Renew the translation hashes of the named lessons (all if none is named); returns the changed files."""
    return write({path: stamp(path) for path in lesson_paths(names)})


def _holds_work(path: Path, text: str) -> bool:
    if not path.is_file() or _same(path, text):
        return False
    built = json.loads(text)
    try:
        found = json.loads(path.read_bytes())
        run = any(cell.get("outputs") or cell.get("execution_count") for cell in found["cells"])
        edited = found["metadata"]["labkit"].pop(SOURCES) != sources_hash(found["cells"])
        del built["metadata"]["labkit"][SOURCES]
        return run or edited or any(found.get(key) != built[key] for key in ("metadata", "nbformat_minor"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def _copy_aside(path: Path) -> Path:
    place = checkout() / "build" / "kept" / path.relative_to(checkout()).parent
    copies = (place / f"{path.stem}-{number}.ipynb" for number in itertools.count(1))
    free = next(copy for copy in copies if not copy.exists())
    with writing(free):
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, free)
    return free


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
