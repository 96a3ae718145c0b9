"""What this machine is: Python, GPU, memory, CPU and disks, each as one finding for `labkit.doctor`."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import DTYPE_BYTES
from labkit.models.profiles import Profile, compute_dtype
from labkit.models.shapes import shape_of

PYTHONS = ((3, 11), (3, 13))  # oldest and newest that the stack has wheels for
SMALL_DISK_BYTES = 1_000_000_000  # below this, adapters and executed notebooks soon fill the disk
CGROUP = Path("/sys/fs/cgroup")
NAMES_ZH = {
    "profile": "配置",
    "packages": "依赖包",
    "gpu": "显卡",
    "gpus": "显卡数量",
    "memory": "内存",
    "cpu": "CPU",
    "disk of the cache": "缓存所在的磁盘",
    "disk of this folder": "当前文件夹所在的磁盘",
    "proxy": "代理",
    "downloads": "下载站",
    "hub": "Hugging Face Hub",
    "modelscope": "ModelScope",
    "model": "模型",
}
LIBRARIES_BYTES = 1 << 30  # the stack imported takes half of it (no CUDA); the rest is for the notebook itself


@dataclass(frozen=True)
class Finding:
    """One check: its name, ``ok``, ``warn`` or ``fail`` (a lesson cannot run), what was found, what to do.

    Name and status are the same in every language, ``found`` and ``fix`` are in the student's.
    """

    name: str
    status: str
    found: str
    fix: str = ""

    @property
    def title(self) -> str:
        """The name in the student's language."""
        return text(self.name, NAMES_ZH.get(self.name, self.name))


def python() -> Finding:
    """Whether this Python is one that the stack supports."""
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Finding("python", "ok", version)
    oldest, newest = (".".join(map(str, bound)) for bound in PYTHONS)
    fix = text(f"use Python {oldest} to {newest}", f"请用 Python {oldest} 到 {newest}")
    return Finding("python", "fail", version, fix)


def gpu(profile: Profile) -> list[Finding]:
    """The GPU that torch sees, and whether a training step of ``profile`` is predicted to fit into its free memory."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        found = text(f"torch does not load ({error})", f"torch 载入失败（{error}）")
        fix = text("install torch again: https://pytorch.org", "重新安装 torch：https://pytorch.org")
        return [Finding("gpu", "fail", found, fix)]
    if not torch.cuda.is_available():
        return [_no_cuda(profile, torch.__version__)]
    return [_cuda(profile), _gpus(torch.cuda.device_count())]


def _cuda(profile: Profile) -> Finding:
    """The card, and the settings with which a run trains on it; a failure where none fits."""
    import torch

    from labkit.theory.sizing import fit

    capability = torch.cuda.get_device_capability()
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    free, total = (f"{n_bytes / 2**30:.1f}" for n_bytes in (free_bytes, total_bytes))
    name, number = torch.cuda.get_device_name(), ".".join(map(str, capability))
    found = text(
        f"{name}, capability {number}, {free} of {total} GiB free",
        f"{name}，计算能力 {number}，显存 {total} GiB，空闲 {free} GiB",
    )
    try:
        choice = fit(profile, free_bytes=free_bytes, capability=capability)
    except LabError as error:
        return Finding("gpu", "fail", f"{found}; {error.given}: {error.rule}", error.fix)
    return Finding("gpu", "ok", found + text("; ", "；") + text(*choice.words))


def _no_cuda(profile: Profile, version: str) -> Finding:
    found = text(
        "no CUDA: the tiny and laptop profiles run on the CPU", "没有 CUDA：tiny 和 laptop 两种配置可以在 CPU 上运行"
    )
    fix = ""
    if shutil.which("nvidia-smi"):
        found = text(
            f"an NVIDIA driver is here, but torch {version} sees no CUDA",
            f"这里有 NVIDIA 驱动，但 torch {version} 看不到 CUDA",
        )
        fix = text(
            "a torch built for CUDA (`make setup` brings it into .venv), or check CUDA_VISIBLE_DEVICES",
            "换成 CUDA 版的 torch（`make setup` 会把它装进 .venv），或者检查 CUDA_VISIBLE_DEVICES",
        )
    if profile.needs_cuda:
        rent = text(
            "rent a GPU, or set LABKIT_PROFILE=laptop (or tiny)",
            "租一张显卡（AutoDL：换有卡模式开机），或者设置 LABKIT_PROFILE=laptop（或 tiny）",
        )
        return Finding("gpu", "fail", found, fix or rent)
    return Finding("gpu", "warn" if fix else "ok", found, fix)


def _gpus(count: int) -> Finding:
    if count > 1 and "LOCAL_RANK" not in os.environ:  # set by torchrun and accelerate launch
        found = text(
            f"{count} visible; one is used, `accelerate launch` uses several (docs/several-gpus.md)",
            f"可见 {count} 张，只用一张；想用多张，请用 `accelerate launch`（docs/several-gpus.zh.md）",
        )
        return Finding("gpus", "ok", found)
    return Finding("gpus", "ok", text(f"{count} visible", f"可见 {count} 张"))


def memory(profile: Profile) -> Finding:
    """Main memory that is free now, within the limit of a container."""
    import psutil

    limit = _container_limit_bytes()
    available = psutil.virtual_memory().available
    if limit is not None:
        available = min(available, limit)
    weights = shape_of(profile.model).n_params * DTYPE_BYTES[compute_dtype(profile)]
    needed = LIBRARIES_BYTES + 2 * weights  # the plain weights are read before they are quantized
    free, advisable = (f"{n_bytes / 2**30:.1f} GiB" for n_bytes in (available, needed))
    found = text(
        f"{free} of main memory available; about {advisable} advisable", f"可用内存 {free}；建议有 {advisable} 左右"
    )
    if available < needed:
        fix = text(
            "close other programs and kernels, or choose a smaller profile", "关掉别的程序和内核，或者换小一些的配置"
        )
        return Finding("memory", "warn", found, fix)
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
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = text(f"{count} cores, ", f"{count} 核，")
    if "avx512_bf16" not in flags:
        return Finding("cpu", "ok", cores + text("no AVX512-BF16", "没有 AVX512-BF16"))
    trap = text(
        " (bitsandbytes would repack 4-bit weights at the first evaluation and spoil training; "
        "labkit switches that off)",
        "（bitsandbytes 本来会在第一次评测时重排 4 比特权重，毁掉训练；labkit 已经关掉了这个行为）",
    )
    return Finding("cpu", "ok", f"{cores}AVX512-BF16{trap}")


def disk(name: str, folder: Path, needed: float, fix: str) -> Finding:
    """Room and permission at ``folder`` (which need not exist yet) for ``needed`` bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = text(f"{folder}: {free / 1e9:.1f} GB free", f"{folder}：还剩 {free / 1e9:.1f} GB")
    if not os.access(existing, os.W_OK):
        refused = text(f"{folder}: you may not write there", f"{folder}：没有写权限")
        return Finding(name, "fail" if needed else "warn", refused, fix)
    if free < needed:
        size = f"{needed / 1e9:.1f} GB"
        return Finding(name, "fail", found + text(f", {size} needed for the model", f"，模型需要 {size}"), fix)
    return Finding(name, "warn" if free < SMALL_DISK_BYTES else "ok", found, fix if free < SMALL_DISK_BYTES else "")
