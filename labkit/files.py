"""Writing files and folders so that nothing half-written is ever taken for complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.paths import AUTODL_DISK


def _explain(path: Path, error: OSError) -> LabError:
    elsewhere = "" if str(AUTODL_DISK) in str(path) else f" or choose a folder on a larger disk (AutoDL: {AUTODL_DISK})"
    fixes = {
        13: "choose a folder you may write to, or change its permissions",
        28: f"free some space{elsewhere}",
        30: "choose a folder on a writable disk",
        107: "mount that disk again, or choose another folder",
    }
    rule = f"cannot write there ({error.strerror or error})"
    return LabError(str(path), rule, fixes.get(error.errno or 0, "choose another folder"))


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an OSError (disk full, no permission, read-only) inside the block into a LabError about ``path``."""
    try:
        yield
    except OSError as error:
        raise _explain(Path(path), error) from error


def write_text(path: Path | str, text: str, *, durable: bool = True) -> Path:
    """Write ``text`` as UTF-8 by way of a temporary file in the same folder and one rename.

    ``durable`` waits until the disk has it; without, a power cut may leave an empty file (fine for what can be made
    again, and much faster for thousands of files).

    Raises:
        LabError: the folder cannot be made or written to, or the disk is full; an older file at ``path`` is intact.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from the other users of a shared disk
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


def write_json(path: Path | str, value: object) -> Path:
    """Write ``value`` as indented JSON, atomically (see `write_text`)."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any | None:
    """What `write_json` wrote; None if it never did, or if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def flush(path: Path) -> None:
    """Wait until the disk has a file that another library wrote."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; it is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it becomes ``path`` in one rename, else it is removed.

    Raises:
        LabError: ``path`` exists already (finished work is never overwritten), or the disk refuses.
    """
    path = Path(path)
    if path.exists():
        raise LabError(str(path), "this folder exists already and finished work is kept", "name another folder")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
