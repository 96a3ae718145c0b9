"""Which of Colab's packages would the setup cell replace? Asked of uv's resolver, for Python 3.13, without installing.

    python scripts/colab_resolve.py

As pip does there, it keeps what Colab has wherever the book's requirements allow, and never lets go of torch and numpy.
The answer may name `REPLACED` alone: whatever else is replaced costs a student minutes and a restart, or breaks what
Colab built on it. Needs a package index: pip's own setting (``index-url``), else PyPI. ``make oldest`` runs it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labkit.course.setup_cell import KEPT
from labkit.errors import LabError

ROOT = Path(__file__).resolve().parents[1]
PINS = Path(__file__).with_name("colab.txt")
PYTHON = "3.13"  # Colab's
PYPI = "https://pypi.org/simple"
# What may be replaced. trl 1.16 asks for datasets 4.7; the newest datasets, which pip takes, for pyarrow 24 and
# huggingface-hub 1.31, and that one for the other two.
REPLACED = ("datasets", "pyarrow", "huggingface-hub", "hf-xet", "click")


def read_pins(path: Path = PINS) -> dict[str, str]:
    """The versions in a file of ``name==version`` lines, by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(re.findall(r"^([a-z0-9_-]+)==(\S+)", "\n".join(lines), flags=re.M))


def index() -> list[str]:
    """uv's arguments for the package index: pip's own, or PyPI."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    said = dict(re.findall(r"^(\S+)\.index-url='(.+)'$", listed, flags=re.M))  # the last of these three wins in pip
    return ["--index-url", said.get(":env:") or said.get("install") or said.get("global") or PYPI]


def resolve(
    requirements: Path, pins: dict[str, str], *, where: Sequence[str], kept: Sequence[str] = KEPT
) -> dict[str, str]:
    """The versions that the resolver settles on, by name, keeping those of ``pins`` where it can.

    Args:
        requirements: a ``pyproject.toml`` or a requirements file.
        pins: what is installed.
        where: uv's arguments that say where packages come from.
        kept: names in ``pins`` that may not change at all.

    Raises:
        LabError: no set of versions fits (uv's reason is in the rule), or the index does not answer.
    """
    from uv import find_uv_bin

    with tempfile.TemporaryDirectory() as folder:
        settled, held = Path(folder) / "settled.txt", Path(folder) / "held.txt"
        settled.write_text(_lines(pins), encoding="utf-8")  # uv prefers the versions that its output file already has
        held.write_text(_lines({name: pins[name] for name in kept if name in pins}), encoding="utf-8")
        target = ["--python-version", PYTHON, "--python-platform", "linux", "--only-binary", ":all:"]
        command = [find_uv_bin(), "--no-config", "--no-python-downloads", "pip", "compile", "--quiet", *target]
        command += [*where, "--constraint", held, "--output-file", settled, requirements]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise _explain(done, requirements, where)
        return read_pins(settled)


def replaced(pins: dict[str, str], settled: dict[str, str]) -> dict[str, str]:
    """What changes: name -> ``old -> new``."""
    changed = sorted(name for name in pins.keys() & settled.keys() if pins[name] != settled[name])
    return {name: f"{pins[name]} -> {settled[name]}" for name in changed}


def refuse(changes: dict[str, str], allowed: Sequence[str] = REPLACED) -> None:
    """Raise if something is replaced that is not ``allowed``.

    Raises:
        LabError: names every such package with its two versions.
    """
    if other := ", ".join(f"{name} {change}" for name, change in changes.items() if name not in allowed):
        rule = f"on Colab the setup cell may replace only {', '.join(allowed)}"
        fix = "lower the floor in pyproject.toml that asks for it, or add the name to REPLACED in this script"
        raise LabError(other, rule, fix)


def _lines(pins: dict[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in pins.items())


def _explain(done: subprocess.CompletedProcess[str], requirements: Path, where: Sequence[str]) -> LabError:
    said = done.stderr.strip()
    if "Failed to fetch" in said:
        fix = "check the network, or name a mirror (PIP_INDEX_URL); nothing was found out about Colab"
        return LabError(" ".join(where), f"the package index does not answer ({said.splitlines()[-1].strip()})", fix)
    if done.returncode == 1:  # "No solution found", with the chain of requirements that rules every one out
        fix = "read the chain above: a floor in pyproject.toml is above what Colab's kept packages allow"
        return LabError(
            requirements.name, f"no set of versions fits Python {PYTHON} and what Colab keeps\n{said}\n", fix
        )
    return LabError(requirements.name, f"uv stopped\n{said}\n", "mend what it names")


def main() -> int:
    """Print what would be replaced; exit code 1 if that is more than it should be, or cannot be known."""
    try:
        pins = read_pins()
        changes = replaced(pins, resolve(ROOT / "pyproject.toml", pins, where=index()))
        for name, change in changes.items():
            print(f"colab: {name} {change}")
        refuse(changes)
    except LabError as error:
        print(f"colab: error: {error}", file=sys.stderr)
        return 1
    print(f"colab: of {len(pins)} packages of its image, {len(changes)} are replaced, as meant; Python {PYTHON}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
