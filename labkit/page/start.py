"""What the setup cell of every notebook calls: language, caches, known clashes, one line on this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys

from labkit import __version__
from labkit.labels import language, text
from labkit.models.places import place, set_cache_environment
from labkit.models.profiles import current_profile, limit_threads
from labkit.page.records import mark_cell_start, shell

# Loaded modules that an installation may have replaced under a running kernel.
WATCHED = ("numpy", "pyarrow", "torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate")
WATCHED += ("huggingface_hub", "tokenizers", "safetensors")  # the others' own


def start(lang: str) -> None:
    """Prepare a notebook: set the language, put caches on the durable disk, mend known clashes, say what is here.

    Args:
        lang: ``en`` or ``zh``; ``LABKIT_LANG`` in the environment wins.

    Raises:
        SystemExit: a library was replaced under this kernel, so it must be restarted. *Run all* stops there: what
            follows would fail for reasons that no student could guess.
    """
    os.environ.setdefault("LABKIT_LANG", lang)
    language()
    set_cache_environment()
    mend_torchao()
    running = shell()
    if running is not None:
        mark_cell_start()
        if mark_cell_start not in running.events.callbacks["pre_run_cell"]:
            running.events.register("pre_run_cell", mark_cell_start)
    stale = stale_modules()
    if stale:
        names = ", ".join(stale)
        raise SystemExit(
            text(
                f"RESTART NEEDED: {names} changed on disk after this kernel loaded it. Restart the kernel (Colab: "
                "Runtime, Restart session), then run this cell again.",
                f"需要重启：{names} 在内核载入之后又被更新了。请重启内核（Colab：代码执行程序 → 重新启动会话），"
                "再运行这个单元格。",
            )
        )
    profile = current_profile()
    limit_threads(profile)
    print(
        text(
            f"labkit {__version__} · profile {profile.name} · model {profile.model}",
            f"labkit {__version__} · 配置 {profile.name} · 模型 {profile.model}",
        )
    )


def stale_modules() -> list[str]:
    """Watched modules that were imported in another version than is now installed."""
    stale = []
    for name in WATCHED:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if loaded is not None and str(loaded).split("+")[0] != installed.split("+")[0]:
            stale.append(f"{name} ({loaded} -> {installed})")
    return stale


def mend_torchao() -> None:
    """Remove torchao < 0.16 on Colab and AutoDL, where it comes preinstalled: with it PEFT makes no adapter.

    Elsewhere it may be wanted for something else, so there it is only reported (`labkit doctor` does too).
    """
    try:
        version = importlib.metadata.version("torchao")
    except importlib.metadata.PackageNotFoundError:
        return
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) >= (0, 16):
        return
    command = [sys.executable, "-m", "pip", "uninstall", "-y", "-q", "torchao"]
    if place() == "local":
        print(
            text(
                f"torchao {version} breaks PEFT: run `{' '.join(command[1:])}`",
                f"torchao {version} 会让 PEFT 建不了适配器：请运行 `{' '.join(command[1:])}`",
            )
        )
        return
    subprocess.run(command, check=True)
    importlib.invalidate_caches()  # or PEFT, imported within this second, might still find it
    print(
        text(
            f"torchao {version} removed: PEFT needs 0.16 or none",
            f"已卸载 torchao {version}：PEFT 要求 0.16 以上，或者不装",
        )
    )
