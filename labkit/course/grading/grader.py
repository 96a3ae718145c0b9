"""What a worker does with one file: read it, judge it, keep the result under the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from labkit.course.grading import sources
from labkit.course.grading.hidden import load_hidden
from labkit.course.grading.judge import Release, as_plain, judge_notebook, lesson_of
from labkit.course.grading.read import Notebook, clean, read_notebook
from labkit.course.grading.rubric import Rubric, load_rubric
from labkit.files import read_json, write_text
from labkit.paths import PACKAGE

VERSION = 1  # of what is kept; a change of the judging code changes the key by itself (see `_key`)


class Grader:
    """Reads and judges one job's file. Made once in each worker process."""

    def __init__(self, rubric_path: str, hidden_folder: str, manifest: dict[str, Any], keep: str) -> None:
        handed_out = {entry["lesson"] for entries in manifest["notebooks"].values() for entry in entries}
        self.rubric = load_rubric(Path(rubric_path)).only(handed_out)
        self.hidden = load_hidden(Path(hidden_folder))
        self.releases = {
            (entry["lesson"], lang): Release(
                frozenset(entry["given"]),
                entry["checks"],
                {id: frozenset(own) for id, own in entry["own_lines"].items()},
            )
            for lang, entries in manifest["notebooks"].items()
            for entry in entries
        }
        self.keep = Path(keep)
        self.salt = _key(Path(rubric_path), Path(hidden_folder), manifest)
        self.archives: dict[str, zipfile.ZipFile] = {}

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """``{"notebooks": [...], "notes": [...]}`` of one file; nothing in the file can make this raise."""
        limits, notes, kept = self.rubric.limits, [], []
        try:
            raw = self._bytes(job)
            if job["label"].lower().endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                    inside = sources.notebooks_in(
                        archive,
                        members=limits.archive_members,
                        total=int(limits.archive_mib * 2**20),
                        each=int(limits.notebook_mib * 2**20),
                        notes=notes,
                    )
                    for name, content in inside:
                        if len(kept) >= limits.notebooks_per_student:
                            notes.append(("too much", "too many notebooks", "notebook 太多"))
                            break
                        kept.append(self._judged(name, content))
            else:
                kept.append(self._judged(job["label"], raw))
        except sources.Refused as refused:
            kept.append(self._refused(job["label"], refused.note))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            notes.append(
                ("broken archive", f"{job['label']} cannot be read ({error})", f"{job['label']} 无法读取（{error}）")
            )
        except MemoryError:
            kept.append(
                self._refused(job["label"], ("too large", "takes too much memory to read", "读取所需的内存太多"))
            )
        return {"notebooks": [entry for entry in kept if entry], "notes": [list(note) for note in notes]}

    def _bytes(self, job: dict[str, Any]) -> bytes:
        archive = job["label"].lower().endswith(".zip")
        limit = int((self.rubric.limits.archive_mib if archive else self.rubric.limits.notebook_mib) * 2**20)
        if job["member"] is None:
            return sources.read_file(Path(job["path"]), limit)
        if job["path"] not in self.archives:
            self.archives[job["path"]] = zipfile.ZipFile(job["path"])
        opened = self.archives[job["path"]]
        return sources.read_member(opened, opened.getinfo(job["member"]), limit)

    def raw(self, job: dict[str, Any], name: str) -> bytes:
        """The bytes of the notebook that was called ``name`` when this job was done.

        Raises:
            Refused: it cannot be read now.
        """
        raw = self._bytes(job)
        if not job["label"].lower().endswith(".zip"):
            return raw
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            member = next(info for info in archive.infolist() if sources.member_name(info) == name)
            return sources.read_member(archive, member, int(self.rubric.limits.notebook_mib * 2**20))

    def kept(self, *parts: str | bytes) -> Path:
        """Where the result of work on these parts is kept, under a hash of them and of all that judges them."""
        whole = hashlib.sha256(self.salt)
        for part in parts:
            whole.update((part if isinstance(part, bytes) else part.encode("utf-8", "replace")) + b"\0")
        digest = whole.hexdigest()
        return self.keep / digest[:2] / f"{digest}.json"

    def _judged(self, name: str, raw: bytes) -> dict[str, Any]:
        file = self.kept("judged", name, raw)
        if (judged := read_json(file)) is not None:
            return judged
        judged = self._judge(name, raw)
        write_text(file, json.dumps(judged, ensure_ascii=True), durable=False)
        return judged

    def _judge(self, name: str, raw: bytes) -> dict[str, Any]:
        notebook = read_notebook(raw)
        lesson = lesson_of(notebook, self.rubric, name)
        if lesson is None:
            note = ("unknown notebook", "belongs to no lesson of the rubric", "不属于评分表里的任何一节")
            return {"name": name, "lesson": None, "note": list(note)}
        release = self.releases.get((lesson, notebook.lang)) or self.releases.get((lesson, "en")) or Release()
        judged = judge_notebook(notebook, lesson, self.rubric, self.hidden, release)
        stem = Path(name.replace("\\", "/")).stem
        if stem != lesson:
            judged.flag("renamed", f"the file is named {clean(stem, 80)}", f"文件名是 {clean(stem, 80)}")
        return as_plain(judged) | {"name": name, "sha256": hashlib.sha256(raw).hexdigest()}

    def _refused(self, name: str, note: sources.Note) -> dict[str, Any]:
        """A file that was not read still is somebody's: its lesson gets no points and says why."""
        return unread(name, note, self.rubric)


def unread(name: str, note: sources.Note, rubric: Rubric) -> dict[str, Any]:
    """The result of a file that was not read, and why: if its name says its lesson, that lesson gets no points."""
    notebook = Notebook(wrong=[note], readable=False)
    lesson = lesson_of(notebook, rubric, name)
    if lesson is None:
        return {"name": name, "lesson": None, "note": list(note)}
    return as_plain(judge_notebook(notebook, lesson, rubric, {}, Release())) | {"name": name}


def _key(rubric_path: Path, hidden_folder: Path, manifest: dict[str, Any]) -> bytes:
    """What a kept result depends on besides the notebook: the rubric, every check, what was released."""
    parts = [rubric_path, *sorted(hidden_folder.glob("*.py"))]
    parts += [
        *sorted((PACKAGE / "course" / "grading").glob("*.py")),
        *sorted((PACKAGE / "page" / "questions").glob("*.py")),
    ]
    parts += sorted((PACKAGE / "theory").glob("*.py"))
    digest = hashlib.sha256(f"{VERSION} {importlib.metadata.version('labkit')}".encode())
    for path in parts:
        digest.update(path.read_bytes())
    digest.update(json.dumps(manifest, sort_keys=True).encode())
    return digest.digest()
