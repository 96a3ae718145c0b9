"""Results files: one JSON object a line, only ever appended to, whole again after a program was killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import writing

Row = dict[str, Any]


def read_rows(path: Path | str) -> list[Row]:
    """The rows of a results file, oldest first; of several with one ``id`` (a trial run again) only the last.

    A last line without its line break is what a killed program left behind: it is left out.

    Raises:
        LabError: no such file, or a line that is not a JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        rule = f"the results cannot be read ({error.strerror})"
        raise LabError(str(path), rule, "name a file that `labkit sweep` wrote") from error
    rows: dict[Any, Row] = {}
    for number, line in enumerate(lines[:-1], 1):
        if line.strip():
            row = _parsed(path, number, line)
            key = row.get("id", number)
            rows.pop(key, None)
            rows[key] = row
    return list(rows.values())


def _parsed(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        rule = f"this line is not a JSON object ({error})"
        raise LabError(f"{path}, line {number}", rule, "repair or delete this line; the others are whole") from error
    return row


def append_row(path: Path | str, row: Row) -> None:
    """Add one row; it is on the disk when this returns. Hold `locked` around it.

    Raises:
        LabError: the disk is full or refuses; the file is then as it was.
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    with writing(path), open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) != len(line):
                raise OSError(28, os.strerror(28))
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def repair(path: Path | str) -> int:
    """Cut off a last line that was not written to its end; returns how many bytes went. Hold `locked` around it."""
    path = Path(path)
    if not path.exists():
        return 0
    with writing(path), open(path, "r+b") as file:
        whole = file.read()
        torn = len(whole) - (whole.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(file.fileno(), len(whole) - torn)
            os.fsync(file.fileno())
    return torn


@contextlib.contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Keep the file to this process; the lock falls with the process, however it ends.

    Raises:
        LabError: another process has it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            rule = "another sweep is writing into this file"
            raise LabError(str(path), rule, "wait for it, or name another file with --out") from error
    try:
        yield
    finally:
        lock.release()
