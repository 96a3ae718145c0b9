"""What a run leaves behind in numbers: settings, versions, hardware, times, the curve, before and after."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import write_json, write_text
from labkit.models.methods import Method
from labkit.models.profiles import Profile
from labkit.paths import checkout

PACKAGES = ("labkit", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
RECORD_FILE, SAMPLES_FILE, ADAPTER_FOLDER = "record.json", "samples.md", "adapter"
SCHEMA = 1
BUSY_PERCENT = 5  # of all cores


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One fine-tuning run. Every field is plain JSON.

    Attributes:
        settings: the profile with its method, seed, row counts, where the weights came from.
        versions: of Python and the packages.
        hardware: processor, cores, memory, GPU or None.
        date: when the run began, UTC, ISO 8601.
        seconds: wall-clock time by phase: load, before, train, after; ``train`` counts all sittings of a resumed run,
            without what was lost after the last checkpoint. So does ``total``, which adds fetching the weights, saving,
            and loading again in every sitting.
        trained_tokens: tokens that went through training, prompts included, padding not.
        tokens_per_s: trained_tokens by the seconds of the phase train.
        peak_memory: see `measure.peak_memory`; of the phase train with CUDA, of the whole process without.
        curve: per optimizer step: step, loss, learning_rate, grad_norm, tokens.
        before, after: ``heldout_loss`` in nats per answer token, ``loss_tokens``, and ``follow`` (see
            `evaluate.FollowReport`; None without rules); ``after`` is None if that evaluation failed.
        samples: instruction, reference, before, after, and the rules that each broke.
        resumed: the steps after which the run was continued from a checkpoint; empty if it ran in one go.
        error: why ``after`` is missing, if it is.
    """

    settings: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    date: str
    seconds: dict[str, float]
    trained_tokens: int
    tokens_per_s: float
    peak_memory: dict[str, int]
    curve: list[dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any] | None
    samples: list[dict[str, Any]]
    resumed: list[int] = field(default_factory=list)
    error: str | None = None
    schema: int = field(default=SCHEMA)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of ``record.json``; a number that is not finite becomes None, which JSON can hold."""
        return _plain(asdict(self))

    @property
    def profile(self) -> Profile:
        """The profile that ran, with its method."""
        return profile_from(self.settings["profile"])

    def write(self, folder: Path) -> None:
        """``record.json`` and ``samples.md`` in ``folder``."""
        write_text(folder / SAMPLES_FILE, self.samples_as_markdown())
        write_json(folder / RECORD_FILE, self.as_dict())

    def samples_as_markdown(self) -> str:
        """The samples as a page: instruction, the answers before and after, what each broke."""
        lines = [f"# Answers before and after ({self.settings['profile']['name']}, {self.date[:10]})"]
        for sample in self.samples:
            lines += ["", f"## {sample['id']}", "", _quoted(sample["instruction"])]
            for name in ("reference", "before", "after"):
                lines += ["", f"**{name}**{_verdict(sample, name)}", "", _fenced(sample[name])]
        return "\n".join(lines) + "\n"


def read_record(folder: Path | str) -> RunRecord:
    """The record of a finished run.

    Raises:
        LabError: no readable record there.
    """
    path = Path(folder) / RECORD_FILE
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        rule = f"this is not the record of a run ({str(error).splitlines()[0]})"
        raise LabError(str(path), rule, "name the folder that `labkit sft --out` wrote") from error


def profile_as_dict(profile: Profile) -> dict[str, Any]:
    """A profile as plain JSON (tuples as lists); `profile_from` is its inverse."""
    return json.loads(json.dumps(asdict(profile)))


def profile_from(settings: dict[str, Any]) -> Profile:
    """The profile that `profile_as_dict` described."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    method = {name: tuple(value) if isinstance(value, list) else value for name, value in values["method"].items()}
    return Profile(**{**values, "method": Method(**method)})


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; a missing package is left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> dict[str, Any]:
    """Processor, the cores that this process may use, and the memory in bytes; needs no torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_name(), "cores": cores, "memory_bytes": _memory_bytes()}


def hardware() -> dict[str, Any]:
    """`processor`, and the GPU that will be used (or None)."""
    import torch

    found: dict[str, Any] = processor() | {"gpu": None}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return found


def provenance(made_by: str, *, note: str = "") -> dict[str, Any]:
    """What every file in ``data/measurements`` begins with: the script, the day (UTC), the machine, the versions.

    Args:
        made_by: path of the script in the book.
        note: said after the hardware, e.g. how many threads. That other programs compute now is found out and said too.
    """
    machine = hardware()
    notes = [*filter(None, [note]), *(["beside other programs"] if _others_compute() else [])]
    return {
        "made_by": made_by,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": ", ".join([f"{machine['cores']} CPU cores of an {machine['cpu']}", *notes]),
        "versions": versions(),
    }


def write_measurement(made_by: str, findings: dict[str, Any], *, note: str = "", name: str = "") -> Path:
    """Write ``data/measurements/NAME.json`` of the checkout: `provenance`, then ``findings``.

    Args:
        made_by, note: see `provenance`.
        findings: plain JSON; its ``versions``, if any, stand in place of those of the packages.
        name: of the file, without its ending; default: the script's.
    """
    path = checkout() / "data" / "measurements" / f"{name or Path(made_by).stem}.json"
    return write_json(path, provenance(made_by, note=note) | findings)


def _others_compute() -> bool:
    """Whether the machine is busy while this process waits for half a second."""
    import psutil

    return psutil.cpu_percent(interval=0.5) > BUSY_PERCENT


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _verdict(sample: dict[str, Any], name: str) -> str:
    broken = (sample.get("violations") or {}).get(name)
    return "" if broken is None else f" (breaks: {'; '.join(broken)})" if broken else " (keeps every rule)"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _fenced(text: str | None) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text or "")), default=0))
    return f"{fence}text\n{'(not measured)' if text is None else text}\n{fence}"
