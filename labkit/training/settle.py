"""The settings of a run on this machine's GPU: `labkit.theory.sizing` chooses, and a run keeps what it began with.

A sitting that continues a run finds another amount of memory free; it takes the settings from disk all the same, since
another batch puts other rows under the same dropout mask. Without CUDA nothing is settled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from labkit.errors import LabError
from labkit.models.profiles import Profile
from labkit.theory.fitting import Words
from labkit.theory.sizing import SETTLED, Choice, fit
from labkit.training import processes
from labkit.training.kept import identity, kept
from labkit.training.loading import capability_of, default_device

ON_A_CPU = ("without CUDA a run takes its profile as it is written", "没有 CUDA：按配置原样运行")
ANOTHER_PROFILE = "put `%env LABKIT_PROFILE=laptop` into a cell at the very top and restart the kernel"


def card() -> tuple[int, tuple[int, int]] | None:
    """Bytes free on the GPU, and its compute capability; the least of all processes, None without CUDA."""
    mine = own_card()
    return mine and (processes.least(mine[0]), processes.least(mine[1]))


def own_card() -> tuple[int, tuple[int, int]] | None:
    """The same of this process's GPU. What torch holds in this process counts as free: a step can use it again."""
    import torch

    if not torch.cuda.is_available():
        return None
    device = default_device()
    free_bytes = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return free_bytes, capability_of(device)


def settled(profile: Profile, *, otherwise: str = "", **options: Any) -> Choice | None:
    """What `fit` settles on for this machine's GPU; None without CUDA, where nothing is settled.

    Args:
        profile: what would run.
        otherwise: one more way out for a refusal, in words.
        options: see `fit`.

    Raises:
        LabError: it does not fit; or there is no CUDA, and the profile needs it.
    """
    if found := card():
        free_bytes, capability = found
        return fit(profile, free_bytes=free_bytes, capability=capability, otherwise=otherwise, **options)
    if profile.needs_cuda:
        rule = "it needs a CUDA GPU, and torch sees none: a CPU is too slow for this model"
        fix = "; or ".join(filter(None, ["use the profile laptop", otherwise]))
        raise LabError(f"profile={profile.name!r}", rule, fix)
    return None


def as_begun(profile: Profile, begun: dict[str, Any], *, fixed: Collection[str] = ()) -> Profile:
    """``profile`` with the `SETTLED` fields of a run that has begun; of two splits, if their updates have as many rows.

    Args:
        profile: what is asked for.
        begun: those fields, among others.
        fixed: fields that were asked for by name, and stay.
    """
    open_ones = {*SETTLED} - {*fixed} - ({"dtype"} if profile.dtype != "auto" else set())
    resumed = replace(profile, **{name: begun[name] for name in open_ones if name in begun})
    return resumed if resumed.rows_per_step == profile.rows_per_step else replace(profile, dtype=resumed.dtype)


def settled_once(
    name: str, profile: Profile, *, force: bool = False, say: Callable[[str], None] = print, **options: Any
) -> tuple[Profile, Words]:
    """`settled` for a notebook: a restarted kernel takes the settings that it began with from disk.

    Args:
        name: of what runs, e.g. ``"lesson04"``.
        profile: what would run.
        force: settle anew.
        say: see `kept`.
        options: see `fit`.

    Returns:
        The settled profile, and what was chosen and why, in English and in Chinese.

    Raises:
        LabError: see `settled`.
    """
    if card() is None:
        return profile, ON_A_CPU

    def choose() -> dict[str, Any]:
        choice = settled(profile, otherwise=ANOTHER_PROFILE, **options)
        return {"settings": {name: getattr(choice.profile, name) for name in SETTLED}, "words": choice.words}

    begun = kept(f"{name}-settings", identity(profile, []), choose, force=force, say=say)
    chosen = replace(profile, **begun["settings"])
    as_kept = options | {"fixed": SETTLED, "dtypes": (), "otherwise": "settle anew (force=True)"}
    settled(chosen, **as_kept)  # refuses what began with more memory than is free now
    return chosen, tuple(begun["words"])
