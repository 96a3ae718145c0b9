"""Checkpoints that can be trusted: sealed with checksums once complete, checked before use, only the newest kept.

transformers writes a checkpoint file by file into ``checkpoint-N``; a run that is killed meanwhile leaves a folder that
looks like one. The seal, written last and in one rename, makes it one: it names every file, its size and SHA-256.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from labkit.files import file_sha256, write_json, writing
from labkit.labels import text
from labkit.models.profiles import Profile, settled_method
from labkit.models.shapes import ModelShape
from labkit.theory.resident import n_bytes, trainable_tensors
from labkit.training.checkpoints import saved_bytes

SEAL = "checksums.json"
KEPT = 2  # good checkpoints: the newest, and the one before in case the disk damages it
OTHER_BYTES = 16 * 2**20  # tokenizer (Qwen3's is 11 MB), the curve, random number generators
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path | str) -> None:
    """Flush every file of a complete checkpoint to the disk and write its checksums.

    Raises:
        LabError: the disk refuses; the checkpoint then counts as incomplete.
    """
    folder = Path(folder)
    with writing(folder):
        contents = {path.relative_to(folder).as_posix(): _flushed(path) for path in _files(folder)}
    write_json(folder / SEAL, contents)


def fault(folder: Path | str) -> str | None:
    """Why a checkpoint cannot be used, in words; None if it is as it was when sealed."""
    folder = Path(folder)
    try:
        contents = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name, (size, digest) in contents.items():
            path = folder / name
            if not path.is_file():
                return text(f"{name} is missing", f"缺少 {name}")
            if (now := path.stat().st_size) != size:
                return text(f"{name} has {now:,} bytes, it had {size:,}", f"{name} 是 {now:,} 字节，原来是 {size:,}")
            if file_sha256(path) != digest:
                return text(f"{name} has changed since it was saved", f"{name} 保存之后变了")
    except FileNotFoundError:
        return text("it was never completed", "没有写完")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        why = str(error).splitlines()[0]
        return text(f"it cannot be read ({why})", f"读不出来（{why}）")
    return None


def checkpoints(folder: Path | str) -> list[Path]:
    """The checkpoints in ``folder``, good or not, newest first."""
    found = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(_NAME.fullmatch(checkpoint.name)[1])


def newest_good(folder: Path | str) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with each newer one."""
    faults = []
    for checkpoint in checkpoints(folder):
        wrong = fault(checkpoint)
        if wrong is None:
            return checkpoint, faults
        faults.append(f"{checkpoint.name}: {wrong}")
    return None, faults


def prune(folder: Path | str, *, keep: int = KEPT) -> None:
    """Remove all but the newest ``keep`` sealed checkpoints, and every unsealed one."""
    sealed = [checkpoint for checkpoint in checkpoints(folder) if (checkpoint / SEAL).is_file()]
    for checkpoint in set(checkpoints(folder)) - set(sealed[:keep]):
        (checkpoint / SEAL).unlink(missing_ok=True)  # first: a half-removed one must not look whole
        shutil.rmtree(checkpoint, ignore_errors=True)


def checkpoint_bytes(shape: ModelShape, profile: Profile) -> int:
    """Predicted bytes of one checkpoint: the weights as the run saves them, and AdamW's two states of what trains."""
    trained = trainable_tensors(shape, settled_method(profile))
    return saved_bytes(shape, profile) + 2 * n_bytes(trained) + OTHER_BYTES


def disk_bytes(shape: ModelShape, profile: Profile) -> int:
    """Predicted most that the checkpoints of a run take at a time: `KEPT` and the one being written."""
    return (KEPT + 1) * checkpoint_bytes(shape, profile)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _flushed(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, file_sha256(path)
