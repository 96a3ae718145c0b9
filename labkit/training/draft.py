"""The folder of a run while it is being made: refused early where it could not be finished, published in one rename."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.files import flush, writing
from labkit.training.processes import is_first

BROKEN_OFF = "broken-off"  # where a replaced run goes until it is removed
SPARE_BYTES = 64 * 2**20  # record, samples, the file system's own needs


def destination(out: Path | str) -> Path:
    """``out`` as an absolute path; a symbolic link stands for the folder that it names, whether that exists or not.

    Raises:
        LabError: it is the current folder, or a disk's root: a run takes the place of its folder at the end.
    """
    out = Path(os.path.abspath(out))
    out = out.resolve() if out.is_symlink() else out
    if os.path.ismount(out) or (out.is_dir() and out.samefile(Path.cwd())):
        rule = "a run takes the place of this folder, and that of the current folder or a disk cannot be taken"
        raise LabError(str(out), rule, f"name a folder in it, e.g. {out / 'run'}")
    return out


@dataclass
class Draft:
    """A run in the making: its ``folder``, and whether that already holds something worth keeping."""

    folder: Path
    keep: bool = False  # from when the trained weights and a record are in it


@contextlib.contextmanager
def draft_folder(out: Path | str, *, needed_bytes: int, replace: bool = False) -> Iterator[Draft]:
    """A folder beside ``out`` that becomes ``out`` at the end, or earlier if an error comes after ``keep`` was set.

    Args:
        out: the folder to be.
        needed_bytes: what the run will write on that disk at most, beside small files.
        replace: ``out`` holds a run that broke off, and this one takes its place.

    Raises:
        LabError: ``out`` holds something already, cannot be written, or has too little room: before anything is run.
    """
    if not is_first():  # of several processes: what this one writes, nobody needs
        with tempfile.TemporaryDirectory() as folder:
            yield Draft(Path(folder))
        return
    out = Path(out)
    if out.exists() and not replace and (not out.is_dir() or any(out.iterdir())):
        raise LabError(str(out), "this holds something already and finished work is kept", "name another folder")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_drafts(out)
        draft = Draft(Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.")))
    try:
        _check_room(out, needed_bytes + SPARE_BYTES)
        yield draft
    except BaseException:
        if draft.keep:
            _publish(draft, out, replace=replace)
        raise
    else:
        _publish(draft, out, replace=replace)
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)


def _remove_left_drafts(out: Path) -> None:
    """A run that was killed could not remove its draft; nothing in it is worth keeping (checkpoints are elsewhere)."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*"):
        if path.is_dir() and re.fullmatch(r"[a-z0-9_]{8}", path.name.removeprefix(f".{out.name}.")):
            shutil.rmtree(path, ignore_errors=True)


def _publish(draft: Draft, out: Path, *, replace: bool) -> None:
    with writing(out):
        for path in (draft.folder, *draft.folder.rglob("*")):  # made for one user; others on a shared disk read it too
            path.chmod(0o755 if path.is_dir() else 0o644)
            if path.is_file():
                flush(path)  # before the checkpoints go
        if out.is_dir() and replace:
            os.replace(out, draft.folder / BROKEN_OFF)  # a rename: out is either the old run or the new one
        elif out.is_dir():
            out.rmdir()  # empty, or this fails; Windows cannot rename onto a folder
        os.replace(draft.folder, out)
        shutil.rmtree(out / BROKEN_OFF, ignore_errors=True)


def _check_room(out: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes:
        rule = f"the trained weights need {needed_bytes / 1e9:.2f} GB there and {free / 1e9:.2f} GB are free"
        raise LabError(str(out), rule, "free some space or name a folder on a larger disk")
