"""The command that fetches a model ahead of its first use: where the network is there and the GPU is not."""

from __future__ import annotations

import time

import typer

from labkit.console import JsonFlag, ProfileFlag, err, escape, out, print_error, print_json
from labkit.errors import LabError
from labkit.labels import text


def fetch(profile: ProfileFlag = None, as_json: JsonFlag = False) -> None:
    """Fetch the profile's model before it is needed; goes on after a break; exit code 1 if it cannot be had."""
    from labkit.models.profiles import current_profile
    from labkit.models.weights import download_bytes, find, locate

    chosen, started = current_profile(profile), time.monotonic()
    try:
        weights = find(chosen)
        already_here = weights is not None
        if weights is None:
            size = f"{download_bytes(chosen) / 1e9:.2f} GB"
            err.print(text(f"{chosen.model}: about {size}", f"{chosen.model}：约 {size}"))
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
        in_book = text(
            f"{weights.model} is in the book; the course's model: labkit fetch --profile gpu",
            f"{weights.model} 就在本书里，不用下载；要下载课程的模型：labkit fetch --profile gpu",
        )
        out.print(in_book, soft_wrap=True)
        return
    seconds, size = f"{time.monotonic() - started:.0f}", f"{n_bytes / 1e9:.2f} GB"
    how = text(f"fetched in {seconds} s", f"用时 {seconds} 秒")
    if already_here:
        how = text("already here", "已经在本机")
    said = text(
        f"{weights.model} from {weights.source}, {size}, {how}",
        f"{weights.model}，来源 {weights.source}，{size}，{how}",
    )
    out.print(said, soft_wrap=True)
    out.print(escape(str(weights.folder)), soft_wrap=True, highlight=False)
