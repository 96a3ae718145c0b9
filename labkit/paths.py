"""Where the book's own files are: the data folder and the checkout, if there is one; and AutoDL's data disk."""

from __future__ import annotations

from pathlib import Path

from labkit.errors import LabError

PACKAGE = Path(__file__).resolve().parent
AUTODL_DISK = Path("/root/autodl-tmp")  # AutoDL's data disk: 50 GB or more, kept when the machine is shut down


def data_folder() -> Path:
    """The book's data: ``labkit/_data`` in an installed wheel, ``data/`` beside the package in a checkout."""
    for folder in (PACKAGE / "_data", PACKAGE.parent / "data"):
        if folder.is_dir():
            return folder
    raise LabError(str(PACKAGE), "the book's data folder is missing", "install labkit again from the book's repository")


def checkout() -> Path:
    """The root of the book's checkout (it holds ``lessons/``) or of a student's download (``notebooks/`` only).

    Raises:
        LabError: labkit was installed from a wheel, without the lessons.
    """
    root = PACKAGE.parent
    if not any((root / name).is_dir() for name in ("lessons", "notebooks")):
        raise LabError(
            str(root), "there is no lessons/ or notebooks/ folder here", "clone the book and run `make setup` in it"
        )
    return root
