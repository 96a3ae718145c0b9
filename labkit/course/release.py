"""The student download, and a manifest of what was handed out that `labkit grade` holds submissions against."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import nbformat

from labkit import __version__
from labkit.course.build import built_files, stale, student_folder
from labkit.course.lessons import BEGIN, LANGUAGES, PLACEHOLDER
from labkit.errors import LabError
from labkit.files import write_json, writing
from labkit.page.records import cell_hash
from labkit.paths import checkout

CHECK = re.compile(r"""^(?:labkit\.)?check\(["'](q\d+_\d+)["'].*$""", flags=re.M)
CHANGED = re.compile(r"\.\.\.|^\s*(?:labkit\.)?predict\(|" + "|".join(PLACEHOLDER.values()), flags=re.M)
FIXED_DATE = (2026, 1, 1, 0, 0, 0)  # a zip keeps times; the same book must give the same bytes
FOLDERS = ("labkit", "data", "docs", "notebooks", "scripts")
FILES = ("README.md", "README.zh.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml")
MANIFEST = "manifest.json"


def make_manifest() -> dict[str, Any]:
    """Hashes of every notebook that students get, and of its code cells. Nothing is written."""
    texts = built_files()
    found: dict[str, Any] = {"labkit": __version__, "notebooks": {}}
    for lang in LANGUAGES:
        paths = sorted(path for path in texts if path.parent == student_folder(lang))
        found["notebooks"][lang] = [_entry(path.stem, texts[path]) for path in paths]
    return found


def _entry(lesson: str, text: str) -> dict[str, Any]:
    sources = [cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "code"]
    checks, own_lines, given = {}, {}, []
    for source in sources:
        asked = CHECK.findall(source)
        for id in asked:
            checks[id] = next(line.strip() for line in source.splitlines() if (m := CHECK.match(line)) and m[1] == id)
            own_lines[id] = sorted({line.strip() for line in source.splitlines() if line.strip()})
        if not asked and not CHANGED.search(source):
            given.append(cell_hash(source))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"lesson": lesson, "sha256": digest, "given": given, "checks": checks, "own_lines": own_lines}


def read_manifest(path: Path | None) -> dict[str, Any]:
    """The manifest of a release, or of the checkout if ``path`` is None.

    Raises:
        LabError: the file is no manifest.
    """
    if path is None:
        return make_manifest()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        fits = all(_is_entry(entry) for entries in found["notebooks"].values() for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise LabError(str(path), "this is no release manifest", "name the manifest.json of `labkit release`")
    return found


def _is_entry(entry: Any) -> bool:
    kinds = {"lesson": str, "given": list, "checks": dict, "own_lines": dict}
    return all(isinstance(entry[key], kind) for key, kind in kinds.items())


def release(out: Path) -> dict[str, Any]:
    """Write ``labkit-course.zip`` and ``manifest.json`` into ``out``; returns the manifest with the file list.

    Raises:
        LabError: a built notebook is stale, a solution would be in the download, or ``out`` cannot be written to.
    """
    if wrong := stale(built_files()):
        raise LabError(f"{len(wrong)} built files", "they do not fit the lessons", "run `labkit build` first")
    files = student_files()
    manifest = make_manifest()
    manifest["files"] = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    archive = out / "labkit-course.zip"
    with writing(archive):
        out.mkdir(parents=True, exist_ok=True)
        partial = archive.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, raw in files.items():
                info = zipfile.ZipInfo(f"labkit-course/{name}", FIXED_DATE)
                info.external_attr = 0o644 << 16
                packed.writestr(info, raw, zipfile.ZIP_DEFLATED)
        partial.replace(archive)
    write_json(out / MANIFEST, manifest)
    return manifest


def student_files() -> dict[str, bytes]:
    """Name to bytes of everything that students get: both languages, the package, its data; no solution, no grader.

    Raises:
        LabError: one of them holds a solution.
    """
    root = checkout()
    paths = [root / name for name in FILES]
    paths += [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    kept = [name for name in names if not _cache(name)]
    files = {name: (root / name).read_bytes() for name in kept}
    leaks = [name for name, raw in files.items() if BEGIN.encode() in raw and name not in ALLOWED]
    if leaks:
        raise LabError(
            leaks[0], "it holds a solution", "take the file out of the release, or the solution out of the file"
        )
    return files


ALLOWED = {"labkit/course/lessons.py", "scripts/check_lecture_quotes.py"}  # they name the marker, they hold no solution


def _cache(name: str) -> bool:
    parts = name.split("/")
    return any(part == "__pycache__" or part.startswith(".") or part.endswith(".egg-info") for part in parts)
