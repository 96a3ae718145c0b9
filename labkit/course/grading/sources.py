"""Which files were handed in, by whom: folders, per-student folders, and zips as course systems export them.

Nothing is extracted to disk. Links are never followed; members of a zip with absolute or ``..`` paths are named and
left alone.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from labkit.course.grading.read import clean
from labkit.errors import LabError

MAX_DEPTH, MAX_ENTRIES = 6, 2000
IGNORED = {"__MACOSX", ".ipynb_checkpoints", ".git", "__pycache__"}
Note = tuple[str, str, str]  # kind, English, Chinese

# How course systems name what they export. Moodle: a folder a student. Canvas and Blackboard: everything in one folder.
MOODLE = re.compile(r"^(?P<who>.+_\d+)_assignsubmission_file_?$")
CANVAS = re.compile(r"^(?P<name>.+?)(?:_LATE)?_(?P<user>\d+)_\d+_(?P<file>.+)$")
BLACKBOARD = re.compile(r"^.+?_(?P<who>[^_]+)_attempt_[\d-]+_(?P<file>.+)$")


class Refused(Exception):
    """A file or member that is not read, and why, in both languages."""

    def __init__(self, kind: str, en: str, zh: str) -> None:
        super().__init__(en)
        self.note: Note = (kind, en, zh)


@dataclass
class Found:
    """What lies in a submissions folder: jobs for the workers, and notes on what was left alone, by student."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, list[Note]] = field(default_factory=dict)

    def add(self, student: str, path: Path, label: str, member: str | None = None) -> None:
        """One file to read."""
        self.notes.setdefault(student, [])
        self.jobs.append({"student": student, "path": str(path), "label": label, "member": member})

    def note(self, student: str, kind: str, en: str, zh: str) -> None:
        """Something that was left alone."""
        kept = self.notes.setdefault(student, [])
        if len(kept) < 20:
            kept.append((kind, en, zh))


def find(submissions: Path) -> Found:
    """Every file to read under ``submissions``, a folder or a zip, in a fixed order.

    Raises:
        LabError: there is nothing there, or the zip is broken.
    """
    found = Found()
    if submissions.is_dir():
        _from_folder(submissions, found)
    elif submissions.is_file():
        _from_zip(submissions, found)
    else:
        raise LabError(str(submissions), "there is no such folder or zip", "name the folder that holds the submissions")
    if not found.notes:
        raise LabError(str(submissions), "there are no notebooks here", "expected <student>/02_lora.ipynb, or a zip")
    return found


def owner(name: str) -> str:
    """The student whose a file at the top of an export is, from its name."""
    for pattern in (CANVAS, BLACKBOARD):
        if fits := pattern.match(name):
            return f"{fits['name']}_{fits['user']}" if pattern is CANVAS else fits["who"]
    stem = re.sub(r"\.(ipynb|zip)$", "", name, flags=re.I)
    rest = re.sub(r"(?<!\d)\d\d_[a-z0-9]+(?:_[a-z0-9]+)*", "", stem, count=1)  # the lesson's name
    if rest == stem:
        return stem
    other = re.sub(r"^\d\d_(start_here|memory|lora|nf4|qlora_sft|rank_alpha|dora|spectrum)[_-]?", "", stem)
    return (other if other != stem else rest).strip(" _-.") or stem


def readable(name: str | bytes) -> str:
    """A file name as text: bytes that are no text are spelled out, so that two names never become one."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _student_folder(name: str) -> str:
    fits = MOODLE.match(name)
    return fits["who"] if fits else name


def _from_folder(folder: Path, found: Found) -> None:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = readable(entry.name)
        if entry.name in IGNORED or entry.name.startswith("."):
            continue
        if entry.is_symlink():
            found.note(_student_folder(name), *_link(name))
        elif entry.is_dir(follow_symlinks=False):
            _from_student(Path(entry.path), _student_folder(name), found)
        elif name.lower().endswith((".ipynb", ".zip")):
            found.add(owner(name), Path(entry.path), name)


def _from_student(folder: Path, student: str, found: Found) -> None:
    found.notes.setdefault(student, [])
    seen = 0
    for where, folders, names in os.walk(folder, followlinks=False):
        depth = len(Path(where).relative_to(folder).parts)
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        folders[:] = (
            sorted(name for name in folders if name not in IGNORED and name not in links) if depth < MAX_DEPTH else []
        )
        for name in sorted(links):
            found.note(student, *_link(readable(name)))
        for name in sorted(names):
            seen += 1
            path = Path(where, name)
            if seen > MAX_ENTRIES:
                found.note(student, "too much", f"more than {MAX_ENTRIES} files", f"超过 {MAX_ENTRIES} 个文件")
                return
            if name.startswith(".") or not name.lower().endswith((".ipynb", ".zip")):
                continue
            if path.is_symlink():
                found.note(student, *_link(readable(name)))
            else:
                found.add(student, path, readable(os.path.relpath(path, folder)))


def _from_zip(path: Path, found: Found) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LabError(str(path), f"this zip cannot be read ({error})", "export it again") from None
    named = sorted(((member_name(member), member) for member in members), key=lambda pair: pair[0])
    files = [(name, member) for name, member in named if not member.is_dir()]
    tops = {name.split("/")[0] for name, _ in files}
    strip = len(tops) == 1 and all(name.count("/") >= 2 for name, _ in files if name.endswith(".ipynb"))
    for name, member in files:
        parts = PurePosixPath(name).parts[1:] if strip else PurePosixPath(name).parts
        if not parts or IGNORED & set(parts) or parts[-1].startswith("."):
            continue
        student = clean(_student_folder(parts[0]) if len(parts) > 1 else owner(parts[0]), 200)
        try:
            check_member(name, member)
        except Refused as refused:
            found.note(student if not name.startswith(("/", "..")) else "(outside)", *refused.note)
            continue
        if name.lower().endswith((".ipynb", ".zip")):
            found.add(student, path, clean("/".join(parts[1:]) or parts[0], 200), member.filename)


def member_name(member: zipfile.ZipInfo) -> str:
    """A member's name. Zips made on Chinese Windows hold GBK without saying so; the format's default is cp437."""
    if member.flag_bits & 0x800:
        return clean(member.filename, 400)
    try:
        raw = member.filename.encode("cp437")
    except UnicodeEncodeError:
        return clean(member.filename, 400)
    for encoding in ("utf-8", "gbk"):
        try:
            return clean(raw.decode(encoding), 400)
        except UnicodeDecodeError:
            continue
    return clean(member.filename, 400)


def check_member(name: str, member: zipfile.ZipInfo) -> None:
    """Refuse a member that is not a plain file inside its archive.

    Raises:
        Refused: an absolute path, ``..``, a drive letter, a link or device, or an encrypted member.
    """
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"^[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise Refused(
            "unsafe path",
            f"a path that leads out of the archive: {clean(name, 80)}",
            f"路径指向压缩包之外：{clean(name, 80)}",
        )
    mode = member.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Refused(*_link(name))
    if member.flag_bits & 0x1:
        raise Refused("encrypted", f"an encrypted file: {clean(name, 80)}", f"加密的文件：{clean(name, 80)}")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of a member, at most ``limit`` of them, whatever size it declares.

    Raises:
        Refused: it is larger, or broken.
    """
    if member.file_size > limit:
        raise _too_large(member.file_size, limit)
    try:
        with archive.open(member) as file:
            raw = file.read(limit + 1)
    except Exception as error:  # zlib, lzma, CRC, truncated, unsupported: all are a broken file of that student
        raise Refused(
            "broken archive", f"cannot be unpacked ({type(error).__name__})", f"无法解压（{type(error).__name__}）"
        ) from None
    if len(raw) > limit:
        raise _too_large(len(raw), limit)
    return raw


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, at most ``limit`` of them; a link, a pipe or a device is never opened for reading.

    Raises:
        Refused: it is larger or not a regular file, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise Refused("unreadable", f"cannot be opened ({error.strerror})", f"打不开（{error.strerror}）") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("unreadable", "not a regular file", "不是普通文件")
        if found.st_size > limit:
            raise _too_large(found.st_size, limit)
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise _too_large(len(raw), limit)
    return raw


def notebooks_in(
    archive: zipfile.ZipFile, *, members: int, total: int, each: int, notes: list[Note]
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the notebooks in a student's zip; what is refused goes to ``notes``.

    Args:
        archive: open.
        members: entries at most.
        total: bytes of all notebooks together at most.
        each: bytes of one notebook at most.
        notes: is appended to.
    """
    infos = archive.infolist()
    if len(infos) > members:
        notes.append(("too much", f"{len(infos)} files in one zip", f"一个压缩包里有 {len(infos)} 个文件"))
        return
    for name, member in sorted(((member_name(info), info) for info in infos), key=lambda pair: pair[0]):
        parts = set(PurePosixPath(name).parts)
        if member.is_dir() or IGNORED & parts:
            continue
        try:
            check_member(name, member)
            if name.lower().endswith(".zip"):
                raise Refused(
                    "nested archive", f"a zip within a zip: {clean(name, 80)}", f"压缩包里还有压缩包：{clean(name, 80)}"
                )
            if not name.lower().endswith(".ipynb"):
                continue
            raw = read_member(archive, member, min(each, total))
        except Refused as refused:
            notes.append(refused.note)
            continue
        total -= len(raw)
        yield name, raw


def _link(name: str) -> Note:
    return "link", f"a link, which is not followed: {clean(name, 80)}", f"符号链接，不会跟随：{clean(name, 80)}"


def _too_large(size: int, limit: int) -> Refused:
    big, most = f"{size / 2**20:.0f}", f"{limit / 2**20:.0f}"
    return Refused(
        "too large",
        f"{big} MiB, and at most {most} MiB are read: clear the outputs of your own experiments",
        f"有 {big} MiB，最多只读 {most} MiB：请清除自己做试验的输出",
    )
