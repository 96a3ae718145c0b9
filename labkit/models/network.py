"""The network around a download: AutoDL's acceleration and a mirror of the Hub, for the time of that download only.

AutoDL's "academic acceleration" is a proxy whose address stands in ``/etc/network_turbo``, a file that students source.
Left set, it slows down pip and ModelScope, which are near. So labkit reads the file (it never runs it), sets the proxy
around a download from a far site and puts the environment back; a proxy that somebody set by hand is theirs and stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

TURBO_FILE = Path("/etc/network_turbo")
FAR = ("huggingface.co", "github.com", "githubusercontent.com", "githubassets.com")  # what AutoDL says it accelerates
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
CARRIED = (*PROXIES, "no_proxy", "ssl_cert_file", "requests_ca_bundle")  # what is taken from the file
HUB, MODELSCOPE = "https://huggingface.co", "https://www.modelscope.cn"

_EXPORT = re.compile(r"""\bexport\s+(\w+)=(["']?)([^\s"';&|]*)\2""")
_one_at_a_time = threading.RLock()  # the environment belongs to the whole process


def hub_endpoint() -> str:
    """The address of the Hub: ``HF_ENDPOINT`` as it is now, else the Hub itself."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB


def acceleration() -> dict[str, str]:
    """The variables of AutoDL's acceleration, as its file exports them; empty where there is none.

    A file that computes its values, or gives one name two values, is not understood and counts as none.
    """
    try:
        text = TURBO_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    exports = _EXPORT.findall(re.sub(r"^\s*#.*", "", text, flags=re.M))
    pairs = {(name, value) for name, _, value in exports if name.lower() in CARRIED and value}
    found = dict(pairs)
    clear = len(found) == len(pairs) and not any(set("$`") & set(value) for value in found.values())
    return found if clear and _proxies(found) else {}


def own_proxies() -> dict[str, str]:
    """The proxy variables that this process was given and that are not AutoDL's: name -> address."""
    turbo = set(_proxies(acceleration()).values())
    return {name: value for name, value in _proxies(os.environ).items() if value not in turbo}


def left_set() -> list[str]:
    """Variables that hold AutoDL's proxy: its file was sourced in the shell that this process comes from."""
    return sorted(_proxies(os.environ).keys() - own_proxies().keys())


def proxies_for(url: str) -> dict[str, str]:
    """The proxies that a download from ``url`` goes through: scheme (``http``, ``https``, ``all``) -> address."""
    changed = {**os.environ, **_changes(url)}
    return {name.lower().removesuffix("_proxy"): value for name, value in _proxies(changed).items()}


@contextlib.contextmanager
def route(url: str) -> Iterator[None]:
    """Around a download from ``url``: through AutoDL's acceleration where the site is far, past it where it is near.

    Without AutoDL's file, and where a proxy was set by hand, nothing changes. Otherwise the whole process, and what it
    starts meanwhile, has the changed variables inside; afterwards they are as before, also after an error or Ctrl-C.
    """
    with _one_at_a_time:
        changes = _changes(url)
        before = {name: os.environ.get(name) for name in changes}
        try:
            _set(changes)
            yield
        finally:
            _set(before)


def _changes(url: str) -> dict[str, str | None]:
    """What to change in the environment for ``url``; None takes a variable away."""
    host = urlsplit(url).hostname or ""
    if not any(host == site or host.endswith(f".{site}") for site in FAR):
        return dict.fromkeys(left_set())
    if _proxies(os.environ):
        return {}
    present = {name.lower() for name, value in os.environ.items() if value}
    return {name: value for name, value in acceleration().items() if name.lower() not in present}


def _proxies(variables: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.lower() in PROXIES and value}


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if variables and (hub := sys.modules.get("huggingface_hub")):
        hub.close_session()  # its one HTTP client read the proxies when it was made; the next call makes a new one
