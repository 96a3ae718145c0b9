"""The command on Spectrum: score every matrix of a model, and show what a share of them would select."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labkit.console import JsonFlag, err, escape, out, print_json, print_table
from labkit.labels import text

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
        left_out = text(
            f"left out: {len(skipped)} tensors that are no matrices, e.g. {skipped[0]}",
            f"没有算：{len(skipped)} 个不是矩阵的张量，例如 {skipped[0]}",
        )
        err.print(escape(left_out))
    count = len(found.rows)
    scored = text(f"{count} matrices scored; rows in {file}", f"{count} 个矩阵算完了；结果在 {file}")
    out.print(escape(scored), soft_wrap=True)


def _progress(*, hidden: bool):
    """A progress bar on standard error, as a context that gives the scan's callback."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown():
        columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, disable=hidden) as bar:
            task = bar.add_task(text("reading", "读取中"), total=None)
            yield lambda done, total, row: bar.update(task, completed=done, total=total, description=row.module)

    return shown()


def _print_scan(found: Scan, chosen: tuple[str, ...], top: float) -> None:
    """One line a module type, then the selection."""
    from labkit.models.methods import TARGETS
    from labkit.theory.selection import module_parts
    from labkit.training.scan import METHOD

    chinese = {METHOD: "由 Gram 矩阵求奇异值；分数照 cognitivecomputations/spectrum；边缘是 σ(√n + √m)"}
    name, method = found.head["model"], found.head["method"]
    rows = []
    for kind in dict.fromkeys(row.kind for row in found.rows):
        own = [row for row in found.rows if row.kind == kind]
        scores = sorted("inf" if row.snr is None else f"{row.snr:.4g}" for row in own)
        finite = [row.snr for row in own if row.snr is not None]
        span = _span(f"{min(finite):.4g}", f"{max(finite):.4g}") if finite else scores[0]
        spikes = [row.n_spikes for row in own]
        above = sum(row.share_above for row in own) / len(own)
        shape = " x ".join(map(str, own[0].shape))
        rows.append((escape(kind), len(own), shape, span, f"{above:.0%}", _span(min(spikes), max(spikes))))
    heads = (text("type", "类型"), text("modules", "模块数"))
    columns = (*heads, text("shape", "形状"), text("published score", "论文代码的分数"))
    columns += (text("above its threshold", "高于它的阈值"), text("above the noise edge", "高于噪声边缘"))
    title = text(f"{name}: {method}", f"{name}：{chinese.get(method, method)}")
    print_table(escape(title), columns, rows)
    if not chosen:
        out.print(text("no linears of decoder layers: nothing to select", "没有解码层的线性模块：无从选择"))
        return
    layers = {kind: [str(n) for n, name in map(module_parts, chosen) if name == kind] for kind in TARGETS}
    picked = [(kind, len(numbers), ", ".join(numbers)) for kind, numbers in layers.items() if numbers]
    title = text(f"highest {top:g} % of each type", f"每种类型中分数最高的 {top:g}%")
    print_table(title, (*heads, text("layers", "层")), picked)


def _span(low: object, high: object) -> str:
    return str(low) if low == high else text(f"{low} to {high}", f"{low}–{high}")
