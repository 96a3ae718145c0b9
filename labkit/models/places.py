"""Where this machine keeps large files: on AutoDL and Colab the home folder is not the place that lasts."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from labkit.labels import text
from labkit.paths import AUTODL_DISK, PACKAGE

COLAB_DISK = Path("/content")  # lost with the runtime
COLAB_DRIVE = COLAB_DISK / "drive" / "MyDrive"  # kept, where the student mounted it


def place() -> str:
    """``autodl``, ``colab`` or ``local``: what kind of machine this is."""
    if AUTODL_DISK.is_dir() or any(name.startswith("AutoDL") for name in os.environ):
        return "autodl"
    if "COLAB_RELEASE_TAG" in os.environ:
        return "colab"
    return "local"


def cache_root() -> Path:
    """The folder for models: ``LABKIT_CACHE``, else the most durable disk of this machine.

    That is the data disk on AutoDL, Google Drive on Colab where it is mounted (else the runtime's own disk), and
    ``~/.cache/labkit`` elsewhere. The folder need not exist yet.
    """
    if chosen := _chosen("LABKIT_CACHE"):
        return chosen
    if AUTODL_DISK.is_dir():
        return AUTODL_DISK / "labkit"
    if place() == "colab":
        return (COLAB_DRIVE if COLAB_DRIVE.is_dir() else COLAB_DISK) / "labkit"
    return Path.home() / ".cache" / "labkit"


def runs_folder() -> Path:
    """Where runs and their checkpoints go: ``LABKIT_RUNS``, else the most durable disk of this machine.

    That is the data disk on AutoDL, Google Drive on Colab where it is mounted, and elsewhere ``runs/`` in the book's
    checkout (without one: in the current folder). The folder need not exist yet.
    """
    if chosen := _chosen("LABKIT_RUNS"):
        return chosen
    if AUTODL_DISK.is_dir():
        return AUTODL_DISK / "labkit" / "runs"
    if place() == "colab" and COLAB_DRIVE.is_dir():
        return COLAB_DRIVE / "labkit" / "runs"
    root = PACKAGE.parent
    return (root if (root / "lessons").is_dir() else Path.cwd()) / "runs"


def lost_with_the_runtime() -> bool:
    """Whether `runs_folder` is on Colab's own disk, because Drive is not mounted and nobody chose another folder."""
    return place() == "colab" and _chosen("LABKIT_RUNS") is None and not COLAB_DRIVE.is_dir()


def _chosen(variable: str) -> Path | None:
    """The folder that the student names in an environment variable."""
    named = os.environ.get(variable, "").strip()
    return Path(named).expanduser() if named else None


def set_cache_environment() -> dict[str, str]:
    """Send the caches of huggingface_hub and modelscope to AutoDL's data disk, unless they are sent somewhere already.

    Both packages read these variables once, when they are imported: call this first. Called too late, it warns.

    Returns:
        The variables that were set; empty away from AutoDL.
    """
    if not AUTODL_DISK.is_dir():
        return {}
    wanted = {"HF_HOME": AUTODL_DISK / "huggingface", "MODELSCOPE_CACHE": AUTODL_DISK / "modelscope"}
    added = {name: str(folder) for name, folder in wanted.items() if not os.environ.get(name)}
    os.environ.update(added)
    if "HF_HOME" in added and "huggingface_hub" in sys.modules:
        message = text(
            "huggingface_hub was imported before HF_HOME was set and caches on the system disk: restart the kernel",
            "导入 huggingface_hub 时还没有设置 HF_HOME，缓存会写到系统盘：请重启内核",
        )
        warnings.warn(message, stacklevel=2)
    return added
