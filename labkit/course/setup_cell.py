"""The setup cell that opens every notebook. It must run where labkit is not installed yet, so it is plain text here."""

from __future__ import annotations

# The one place that names the book's home. Whoever publishes the book writes its git URL here, e.g.
# "git+https://github.com/OWNER/REPOSITORY", and runs `labkit build`; LABKIT_REPO in the environment overrides it.
REPOSITORY = ""

TEMPLATE = """\
# Setup: nothing to do where labkit is installed; on Colab or AutoDL this cell installs the book first.
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

if importlib.util.find_spec("labkit") is None:
    beside = [str(up) for up in pathlib.Path.cwd().parents[:2] if (up / "labkit" / "cli.py").is_file()]
    book = os.environ.get("LABKIT_REPO") or next(iter(beside), "{repository}")
    if not book:
        raise SystemExit("labkit is missing. Set LABKIT_REPO to the book's git URL (git+https://...) or folder, rerun.")
    keep = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]  # never replace the machine's own
    pins = [f"{{name}}=={{importlib.metadata.version(name)}}" for name in keep]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", book, *pins], check=True)
    importlib.invalidate_caches()

import labkit

labkit.start("{lang}")
"""


def setup_cell(lang: str) -> str:
    """The source of the setup cell for notebooks in language ``lang`` (``en`` or ``zh``)."""
    return TEMPLATE.format(repository=REPOSITORY, lang=lang).rstrip("\n")
