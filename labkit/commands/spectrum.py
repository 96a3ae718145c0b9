"""The command on Spectrum: score every matrix of a model, and show what a share of them would select."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labkit.console import JsonFlag, err, escape, out, print_json, print_table

if TYPE_CHECKING:
    from labkit.training.scan import Scan


def snr(
    model: Annotated[str, typer.Argument(help="tiny, smollm2-135m, qwen3-1.7b, a cached Hub id, a folder or a file.")],
    top: Annotated[float, typer.Option(help="Percent of each module type to select.")] = 25,
    file: Annotated[
        Path | None, typer.Option("--out", help="JSONL file; one of the same model goes on where it stopped.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what the file holds.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Spectrum's signal-to-noise score of every matrix, read piece by piece; Ctrl-C stops, the same command goes on."""
    from labkit.models.places import cache_root
    from labkit.models.stored import model_path, stored_tensors
    from labkit.theory.selection import select
    from labkit.training.scan import matrices, scan

    name, path = model_path(model)
    tensors = stored_tensors(path)
    file = file or cache_root() / "scans" / f"{name.replace('/', '--')}.jsonl"
    with _progress(hidden=as_json) as on_row:
        found = scan(tensors, model=name, out=file, restart=restart, on_row=on_row)
    chosen = select(found.scores, top_percent=top) if found.scores else ()
    skipped = [tensor.name for tensor in matrices(tensors)[1]]
    if as_json:
        print_json(
            {"scan": found.head, "rows": [asdict(row) for row in found.rows], "selected": chosen, "skipped": skipped}
        )
        return
    _print_scan(found, chosen, top)
    if skipped:
        err.print(f"left out: {len(skipped)} tensors that are no matrices, e.g. {escape(skipped[0])}")
    out.print(f"{len(found.rows)} matrices scored; rows in {escape(str(file))}", soft_wrap=True)


def _progress(*, hidden: bool):
    """A progress bar on standard error, as a context that gives the scan's callback."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown():
        columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, disable=hidden) as bar:
            task = bar.add_task("reading", total=None)
            yield lambda done, total, row: bar.update(task, completed=done, total=total, description=row.module)

    return shown()


def _print_scan(found: Scan, chosen: tuple[str, ...], top: float) -> None:
    """One line a module type, then the selection."""
    from labkit.models.methods import TARGETS
    from labkit.theory.selection import module_parts

    rows = []
    for kind in dict.fromkeys(row.kind for row in found.rows):
        own = [row for row in found.rows if row.kind == kind]
        scores = sorted("inf" if row.snr is None else f"{row.snr:.4g}" for row in own)
        finite = [row.snr for row in own if row.snr is not None]
        span = f"{min(finite):.4g} to {max(finite):.4g}" if len(finite) > 1 else scores[0]
        spikes = [row.n_spikes for row in own]
        above = sum(row.share_above for row in own) / len(own)
        shape = " x ".join(map(str, own[0].shape))
        rows.append((escape(kind), len(own), shape, span, f"{above:.0%}", f"{min(spikes)} to {max(spikes)}"))
    columns = ("type", "modules", "shape", "published score", "above its threshold", "above the noise edge")
    print_table(f"{escape(found.head['model'])}: {found.head['method']}", columns, rows)
    if not chosen:
        out.print("no linears of decoder layers: nothing to select")
        return
    layers = {kind: [str(n) for n, name in map(module_parts, chosen) if name == kind] for kind in TARGETS}
    picked = [(kind, len(numbers), ", ".join(numbers)) for kind, numbers in layers.items() if numbers]
    print_table(f"highest {top:g} % of each type", ("type", "modules", "layers"), picked)
