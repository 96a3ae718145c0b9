"""A whole class: every file is read and judged in a worker process, results are kept, and students put together."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.course.grading import sources
from labkit.course.grading.hidden import load_hidden
from labkit.course.grading.judge import Judged, Release, Verdict, as_plain, judge_notebook, lesson_of
from labkit.course.grading.read import clean, read_notebook
from labkit.course.grading.rubric import Rubric, load_rubric
from labkit.course.grading.workers import Lost, run_jobs
from labkit.files import write_text

KEPT = ".kept"  # folder of finished results inside the report's folder
VERSION = 1  # of what is kept; a change of the judging code changes the key by itself (see `_key`)


@dataclass
class Student:
    """All that was found of one student, ready for the report."""

    name: str
    lessons: dict[str, Judged] = field(default_factory=dict)
    flags: list[tuple[str, str, str, str, str]] = field(
        default_factory=list
    )  # lesson, kind, question, English, Chinese

    @property
    def lang(self) -> str:
        """The language of most of the notebooks, English if it is a draw."""
        chinese = sum(judged.lang == "zh" for judged in self.lessons.values())
        return "zh" if 2 * chinese > len(self.lessons) else "en"

    def verdict(self, id: str, lesson: str) -> Verdict:
        """The verdict on a question; one of "no notebook" if there is none."""
        judged = self.lessons.get(lesson)
        return judged.verdicts[id] if judged and id in judged.verdicts else Verdict.of("no notebook")

    def total(self, rubric: Rubric) -> float:
        """Points of all questions."""
        return sum(self.verdict(id, rubric.lesson_of(id)).points for id in rubric.questions)


class Grader:
    """Reads and judges one job's file. Made once in each worker process."""

    def __init__(self, rubric_path: str, hidden_folder: str, manifest: dict[str, Any], keep: str) -> None:
        self.rubric = load_rubric(Path(rubric_path))
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

    def _judged(self, name: str, raw: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(self.salt + name.encode("utf-8", "replace") + b"\0" + raw).hexdigest()
        file = self.keep / digest[:2] / f"{digest}.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            pass
        judged = self._judge(name, raw)
        write_text(file, json.dumps(judged, ensure_ascii=True))
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
        from labkit.course.grading.read import Notebook

        notebook = Notebook(wrong=[note], readable=False)
        lesson = lesson_of(notebook, self.rubric, name)
        if lesson is None:
            return {"name": name, "lesson": None, "note": list(note)}
        return as_plain(judge_notebook(notebook, lesson, self.rubric, {}, Release())) | {"name": name}


def grade(
    submissions: Path, *, rubric_path: Path, hidden_folder: Path, manifest: dict[str, Any], keep: Path, workers: int,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> list[Student]:  # fmt: skip
    """Every student of ``submissions``, by name.

    Args:
        submissions: folder or zip.
        rubric_path, hidden_folder: the instructor's.
        manifest: from `labkit.course.release.make_manifest`.
        keep: folder for finished results; a file whose result is there is not judged again.
        workers: processes.
        on_done: told how many files are done, of how many.

    Raises:
        LabError: nothing to grade, or a broken rubric.
    """
    rubric = load_rubric(rubric_path)
    found = sources.find(submissions)
    results: list[Any] = [None] * len(found.jobs)
    limits = rubric.limits
    arguments = (str(rubric_path), str(hidden_folder), manifest, str(keep))
    jobs = run_jobs(
        found.jobs,
        Grader,
        arguments,
        workers=workers,
        seconds=limits.seconds_per_file,
        memory_gib=limits.worker_memory_gib,
    )
    for done, (place, result) in enumerate(jobs, start=1):
        results[place] = result
        on_done(done, len(found.jobs))
    students: dict[str, Student] = {name: Student(name) for name in sorted(found.notes)}
    for name, notes in found.notes.items():
        students[name].flags += [("", kind, "", en, zh) for kind, en, zh in notes]
    by_student: dict[str, list[dict[str, Any]]] = {name: [] for name in students}
    for job, result in zip(found.jobs, results, strict=True):
        by_student[job["student"]] += _entries(job, result, students[job["student"]], rubric)
    for name, entries in by_student.items():
        _put_together(students[name], entries, rubric)
    return list(students.values())


def _entries(job: dict[str, Any], result: Any, student: Student, rubric: Rubric) -> list[dict[str, Any]]:
    if isinstance(result, Lost):
        note = ("gave up", f"{job['label']}: {result}", f"{job['label']}：读取超时，或耗尽内存")
        from labkit.course.grading.read import Notebook

        notebook = Notebook(wrong=[note], readable=False)
        lesson = lesson_of(notebook, rubric, job["label"])
        if lesson is None:
            student.flags.append(("", note[0], "", note[1], note[2]))
            return []
        return [as_plain(judge_notebook(notebook, lesson, rubric, {}, Release())) | {"name": job["label"]}]
    student.flags += [("", kind, "", en, zh) for kind, en, zh in result["notes"]]
    return result["notebooks"]


def _put_together(student: Student, entries: list[dict[str, Any]], rubric: Rubric) -> None:
    """One notebook a lesson: of several, the one with the most points (ties: the first name)."""
    by_lesson: dict[str, list[dict[str, Any]]] = {}
    for entry in entries[: rubric.limits.notebooks_per_student]:
        if entry["lesson"] is None:
            kind, en, zh = entry["note"]
            student.flags.append(
                ("", kind, "", f"{clean(entry['name'], 80)}: {en}", f"{clean(entry['name'], 80)}：{zh}")
            )
        else:
            by_lesson.setdefault(entry["lesson"], []).append(entry)
    for lesson, several in sorted(by_lesson.items()):
        points = [sum(verdict["points"] for verdict in entry["verdicts"].values()) for entry in several]
        best = max(range(len(several)), key=lambda place: (points[place], -place))
        if len(several) > 1:
            named = ", ".join(clean(entry["name"], 60) for entry in several[:4])
            en, zh = (
                f"{len(several)} notebooks of this lesson ({named}): the best counts",
                f"这一节有 {len(several)} 个 notebook（{named}），以最好的为准",
            )
            student.flags.append((lesson, "duplicate notebook", "", en, zh))
        judged = _from_plain(several[best])
        student.lessons[lesson] = judged
        student.flags += [(lesson, kind, question, en, zh) for kind, question, en, zh in judged.flags]


def _from_plain(entry: dict[str, Any]) -> Judged:
    return Judged(
        entry["lesson"],
        entry["lang"],
        {id: Verdict(**verdict) for id, verdict in entry["verdicts"].items()},
        [tuple(flag) for flag in entry["flags"]],
        [tuple(record) for record in entry["records"]],
    )


def _key(rubric_path: Path, hidden_folder: Path, manifest: dict[str, Any]) -> bytes:
    """What a kept result depends on besides the notebook: the rubric, every check, what was released."""
    from labkit.paths import PACKAGE

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
