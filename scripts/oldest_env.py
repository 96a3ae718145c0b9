"""Make an environment with the oldest supported versions on top of .venv, in the folder that is named.

Torch, numpy and whatever else scripts/oldest.txt does not name come from .venv, so this costs seconds and 80 MB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("oldest.txt")
STAMP = "oldest.txt"  # a copy of the requirements, written last


def main(folder: Path) -> None:
    """Build the environment in ``folder`` unless it is there already with these requirements."""
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if (folder / STAMP).is_file() and (folder / STAMP).read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "zz_book.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")  # after its own
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages]
    subprocess.run([*install, "--requirement", REQUIREMENTS], check=True)
    (folder / STAMP).write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
