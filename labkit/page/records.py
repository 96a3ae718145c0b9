"""The JSON record that every check prints: what a grader reads instead of running student code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from labkit.models.profiles import current_profile

PREFIX = "labkit-record "
PACKAGES = ("labkit", "torch", "transformers", "peft", "trl", "bitsandbytes")
MAX_BITS = 256  # Python refuses to write integers of more than 4,300 digits
_cell_started = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Record:
    """One answer, as it was when it was checked.

    ``cell_sha256`` is the hash of the source of the cell that called `check`, so a cell that was edited after its
    check no longer fits its record. ``seconds`` counts from the start of that cell. ``peak_bytes`` is
    ``torch.cuda.max_memory_allocated`` (None without CUDA). ``said`` is what the check said of a wrong answer, for the
    grader's feedback. Records can be forged: they detect accidents, not fraud.
    """

    question: str
    state: str
    value: Any
    cell_sha256: str | None
    profile: str
    model: str
    versions: dict[str, str]
    gpu: str | None
    peak_bytes: int | None
    seconds: float
    said: str | None = None
    schema: int = field(default=2)  # 2: with ``said``, and the state "handed in"

    def line(self) -> str:
        """The record on one line: `PREFIX` and JSON with sorted keys."""
        return PREFIX + json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, allow_nan=False)


def make_record(question: str, state: str, value: object, *, said: str | None = None) -> Record:
    """A record of ``value`` for ``question``, with what is known of this machine and of the running cell."""
    profile = current_profile()
    gpu, peak_bytes = _gpu()
    source = _cell_source()
    return Record(
        question=question,
        state=state,
        value=normalise(value),
        cell_sha256=cell_hash(source) if source is not None else None,
        profile=profile.name,
        model=profile.model,
        versions=_versions(),
        gpu=gpu,
        peak_bytes=peak_bytes,
        seconds=round(time.monotonic() - _cell_started, 3),
        said=said and normalise(said),
    )


def cell_hash(source: str) -> str:
    """SHA-256 of a cell's source; line ends and trailing blanks do not count (front ends rewrite them)."""
    lines = [line.rstrip() for line in source.replace("\r\n", "\n").strip().split("\n")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def normalise(value: object, *, depth: int = 4) -> Any:
    """``value`` as plain JSON: numbers to 12 significant digits, arrays and tuples as lists, the rest as short text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_BITS else f"<int of {value.bit_length()} bits>"
    if isinstance(value, float):
        return float(f"{value:.12g}") if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= 4000 else value[:4000] + "…"
    if depth and hasattr(value, "tolist"):  # numpy and torch, without importing either
        return normalise(value.tolist(), depth=depth)
    if depth and isinstance(value, dict):
        return {str(key): normalise(item, depth=depth - 1) for key, item in list(value.items())[:64]}
    if depth and isinstance(value, list | tuple | set):
        return [normalise(item, depth=depth - 1) for item in list(value)[:64]]
    return f"<{type(value).__name__} {getattr(value, '__name__', '')}>".replace(" >", ">")


def mark_cell_start(*_: object) -> None:
    """Remember when the running cell began (IPython calls this before every cell; see `labkit.page.start`)."""
    global _cell_started
    _cell_started = time.monotonic()


def shell() -> Any | None:
    """The running IPython shell, or None outside a notebook; IPython is never imported for it."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _cell_source() -> str | None:
    running = shell()
    history = getattr(getattr(running, "history_manager", None), "input_hist_raw", None)
    return history[-1] if history else None


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu() -> tuple[str | None, int | None]:
    torch = sys.modules.get("torch")  # a lesson that never loaded torch has used no GPU
    if torch is None or not torch.cuda.is_available():
        return None, None
    return torch.cuda.get_device_name(0), torch.cuda.max_memory_allocated()
