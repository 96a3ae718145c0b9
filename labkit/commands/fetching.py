"""The command that fetches a model ahead of its first use: where the network is there and the GPU is not."""

from __future__ import annotations

import time

import typer

from labkit.console import JsonFlag, ProfileFlag, err, escape, out, print_error, print_json
from labkit.errors import LabError


def fetch(profile: ProfileFlag = None, as_json: JsonFlag = False) -> None:
    """Fetch the profile's model before it is needed; goes on after a break; exit code 1 if it cannot be had."""
    from labkit.models.profiles import current_profile
    from labkit.models.weights import download_bytes, find, locate

    chosen, started = current_profile(profile), time.monotonic()
    try:
        weights = find(chosen)
        already_here = weights is not None
        if weights is None:
            err.print(f"{chosen.model}: about {download_bytes(chosen) / 1e9:.2f} GB")
            weights = locate(chosen, say=lambda line: err.print(escape(line), soft_wrap=True))
    except LabError as error:
        print_error(error)
        raise typer.Exit(1) from None
    n_bytes = sum(path.stat().st_size for path in weights.folder.iterdir() if path.is_file())
    found = {"profile": chosen.name, "model": weights.model, "source": weights.source, "folder": str(weights.folder)}
    if as_json:
        print_json({**found, "bytes": n_bytes, "already_here": already_here})
        return
    if weights.source == "book":
        out.print(f"{weights.model} is in the book; the course's model: labkit fetch --profile gpu", soft_wrap=True)
        return
    how = "already here" if already_here else f"fetched in {time.monotonic() - started:.0f} s"
    out.print(f"{weights.model} from {weights.source}, {n_bytes / 1e9:.2f} GB, {how}")
    out.print(escape(str(weights.folder)), soft_wrap=True, highlight=False)
