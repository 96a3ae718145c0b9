"""What a run is made of, and results that a restarted kernel gets back from the disk instead of waiting again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from labkit.files import read_json, write_json
from labkit.labels import text
from labkit.models.places import runs_folder
from labkit.models.profiles import Profile, settled_method
from labkit.training.data import Example
from labkit.training.record import profile_as_dict, versions


def identity(profile: Profile, rows: Sequence[Example], *, seed: int = 0, truncate: bool = False) -> dict[str, Any]:
    """What decides the result of a run, as plain JSON; only a run with the same is continued or used again.

    Args:
        profile: with the method to be trained.
        rows: training rows, then held-out rows.
        seed: of init, dropout and order.
        truncate: long rows are cut.
    """
    content = "\n".join(f"{row.id}\t{row.instruction}\t{row.response}" for row in rows)
    settled = replace(profile, method=settled_method(profile))
    data = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {"profile": profile_as_dict(settled), "seed": seed, "truncate": truncate, "data_sha256": data}


def digest(settings: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for ``settings`` (plain JSON, whatever the order of its names)."""
    plain = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


def kept(
    name: str,
    settings: dict[str, Any],
    make: Callable[[], Any],
    *,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Any:
    """``make()``, or what it gave when it last ran with these settings and library versions.

    Args:
        name: what is made, e.g. ``"lesson04-before"``.
        settings: everything that decides the result, see `identity`.
        make: returns plain JSON (a tuple comes back as a list).
        force: make it again.
        say: told when the disk answered, and when what it holds is damaged.
    """
    path = runs_folder() / "kept" / f"{name}-{digest(settings | {'versions': versions()})}.json"
    if path.exists() and not force:
        found = read_json(path)
        if isinstance(found, dict) and found.get("checksum") == digest({"value": found.get("value")}):
            say(
                text(
                    f"{name}: taken from {path} (force=True makes it again)",
                    f"{name}：取自 {path}（force=True 会重新做一遍）",
                )
            )
            return found["value"]
        say(text(f"{name}: {path} is damaged, so it is made again", f"{name}：{path} 已损坏，重新做一遍"))
    value = make()
    write_json(path, {"checksum": digest({"value": value}), "value": value})
    return value
