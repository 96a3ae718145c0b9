"""What this machine is: Python, GPU, memory, CPU and disks, each as one finding for `labkit.doctor`."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.models.methods import DTYPE_BYTES
from labkit.models.profiles import Profile, compute_dtype
from labkit.models.shapes import shape_of

PYTHONS = ((3, 11), (3, 13))  # oldest and newest that the stack has wheels for
SMALL_DISK_BYTES = 1_000_000_000  # below this, adapters and executed notebooks soon fill the disk
CGROUP = Path("/sys/fs/cgroup")
LIBRARIES_BYTES = 1 << 30  # the stack imported takes half of it (no CUDA); the rest is for the notebook itself


@dataclass(frozen=True)
class Finding:
    """One check: its name, ``ok``, ``warn`` or ``fail`` (a lesson cannot run), what was found, what to do."""

    name: str
    status: str
    found: str
    fix: str = ""


def python() -> Finding:
    """Whether this Python is one that the stack supports."""
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Finding("python", "ok", version)
    oldest, newest = (".".join(map(str, bound)) for bound in PYTHONS)
    return Finding("python", "fail", version, f"use Python {oldest} to {newest}")


def gpu(profile: Profile) -> list[Finding]:
    """The GPU that torch sees, and whether a training step of ``profile`` is predicted to fit into its free memory."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        return [Finding("gpu", "fail", f"torch does not load ({error})", "install torch again: https://pytorch.org")]
    if not torch.cuda.is_available():
        return [_no_cuda(profile, torch.__version__)]
    return [_cuda(profile), _gpus(torch.cuda.device_count())]


def _cuda(profile: Profile) -> Finding:
    """The card, and the settings with which a run trains on it; a failure where none fits."""
    import torch

    from labkit.theory.sizing import fit

    capability = torch.cuda.get_device_capability()
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    room = f"{free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free"
    found = f"{torch.cuda.get_device_name()}, capability {'.'.join(map(str, capability))}, {room}"
    try:
        choice = fit(profile, free_bytes=free_bytes, capability=capability)
    except LabError as error:
        return Finding("gpu", "fail", f"{found}; {error.given}: {error.rule}", error.fix)
    return Finding("gpu", "ok", f"{found}; {choice.words[0]}")


def _no_cuda(profile: Profile, version: str) -> Finding:
    found = "no CUDA: the tiny and laptop profiles run on the CPU"
    fix = ""
    if shutil.which("nvidia-smi"):
        found = f"an NVIDIA driver is here, but torch {version} sees no CUDA"
        fix = "a torch built for CUDA (`make setup` brings it into .venv), or check CUDA_VISIBLE_DEVICES"
    if profile.needs_cuda:
        return Finding("gpu", "fail", found, fix or "rent a GPU, or set LABKIT_PROFILE=laptop (or tiny)")
    return Finding("gpu", "warn" if fix else "ok", found, fix)


def _gpus(count: int) -> Finding:
    if count > 1 and "LOCAL_RANK" not in os.environ:  # set by torchrun and accelerate launch
        found = f"{count} visible; one is used, `accelerate launch` uses several (docs/several-gpus.md)"
        return Finding("gpus", "ok", found)
    return Finding("gpus", "ok", f"{count} visible")


def memory(profile: Profile) -> Finding:
    """Main memory that is free now, within the limit of a container."""
    import psutil

    limit = _container_limit_bytes()
    available = psutil.virtual_memory().available
    if limit is not None:
        available = min(available, limit)
    weights = shape_of(profile.model).n_params * DTYPE_BYTES[compute_dtype(profile)]
    needed = LIBRARIES_BYTES + 2 * weights  # the plain weights are read before they are quantized
    found = f"{available / 2**30:.1f} GiB of main memory available; about {needed / 2**30:.1f} GiB advisable"
    if available < needed:
        return Finding("memory", "warn", found, "close other programs and kernels, or choose a smaller profile")
    return Finding("memory", "ok", found)


def _container_limit_bytes() -> int | None:
    """Bytes left below the limit of a container (cgroup 2), which the machine's own counters do not show."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])  # that cache is given back
        return int(limit) - used
    except (OSError, ValueError, KeyError):
        return None


def cpu() -> Finding:
    """Cores, and whether the CPU has the bfloat16 instructions that make bitsandbytes repack weights."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    if "avx512_bf16" not in flags:
        return Finding("cpu", "ok", f"{cores}, no AVX512-BF16")
    trap = (
        "bitsandbytes would repack 4-bit weights at the first evaluation and spoil training; labkit switches that off"
    )
    return Finding("cpu", "ok", f"{cores}, AVX512-BF16 ({trap})")


def disk(name: str, folder: Path, needed: float, fix: str) -> Finding:
    """Room and permission at ``folder`` (which need not exist yet) for ``needed`` bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK):
        return Finding(name, "fail" if needed else "warn", f"{folder}: you may not write there", fix)
    if free < needed:
        return Finding(name, "fail", f"{found}, {needed / 1e9:.1f} GB needed for the model", fix)
    return Finding(name, "warn" if free < SMALL_DISK_BYTES else "ok", found, fix if free < SMALL_DISK_BYTES else "")
