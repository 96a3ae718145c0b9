"""The command that runs a grid of trials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from labkit.console import JsonFlag, ProfileFlag, err, escape, out, print_json, print_table
from labkit.labels import text


def sweep(
    grid: Annotated[Path, typer.Argument(help="A TOML file, see data/grids.")],
    results: Annotated[
        Path | None, typer.Option("--out", help="JSONL file to add to (default: runs/NAME.jsonl).")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: a Ray cluster that is running.")] = "local",
    profile: ProfileFlag = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run trials that failed once more.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run every trial again.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only list the trials.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run an ablation grid over seeds; stopped at any moment, the same command goes on where it was."""
    from labkit.training.engines import engine as engine_of
    from labkit.training.grid import read_grid
    from labkit.training.sweep import run_sweep

    trials = read_grid(grid, profile=profile)
    if plan:
        _print_plan(trials, as_json)
        return
    path = results or Path("runs") / f"{grid.stem}.jsonl"
    bar = _bar(quiet=as_json)
    with bar, engine_of(engine) as executor:
        task = bar.add_task("", total=len(trials), note="")
        again = {"retry": retry, "force": force}
        done = run_sweep(trials, path, executor=executor, **again, on_row=lambda row, now: _show(bar, task, row, now))
    told = {"file": str(path), "trials": done.total, "found": done.found, "ran": done.ran, "failed": done.failed}
    told["seconds"] = round(done.seconds, 1)
    if as_json:
        print_json(told)
        return
    said = text(
        f"{done.ran} trials run, {done.failed} failed, {done.found} were there; rows in {path}",
        f"运行了 {done.ran} 次试验，失败 {done.failed} 次，原来就有 {done.found} 次；结果在 {path}",
    )
    out.print(escape(said))


def _bar(*, quiet: bool) -> Bar:
    columns = (TextColumn(text("sweep", "试验")), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    return Bar(*columns, TimeElapsedColumn(), console=err, disable=quiet)


def _show(bar: Bar, task: Any, row: dict[str, Any] | None, now: Any) -> None:
    bar.update(task, completed=now.found + now.ran, note=_note(now))
    if row is None:
        return
    result = row["error"] or _losses(row)
    bar.console.print(escape(_short(row["settings"]) + text(": ", "：") + result), soft_wrap=True)


def _losses(row: dict[str, Any]) -> str:
    before, after = f"{row['heldout_loss_before']:.3f}", f"{row['heldout_loss_after']:.3f}"
    return text(f"held-out loss {before} to {after}", f"留出集损失 {before} → {after}")


def _note(now: Any) -> str:
    """What failed so far, and the time that is left where it is known."""
    failed = text(f"{now.failed} failed", f"失败 {now.failed} 次")
    if now.seconds_left is None:
        return failed
    left = _minutes(now.seconds_left)
    return failed + text(f", {left} left", f"，还要 {left}")


def _minutes(seconds: float) -> str:
    if seconds >= 90:
        return f"{seconds / 60:.0f} " + text("min", "分钟")
    return f"{seconds:.0f} " + text("s", "秒")


def _short(settings: dict[str, Any]) -> str:
    shown = [f"{name} {settings[name]:g}" for name in ("rank", "alpha", "learning_rate", "seed") if name in settings]
    return ", ".join([settings["kind"], *shown])


def _print_plan(trials: list, as_json: bool) -> None:
    if as_json:
        print_json([{"id": trial.id, "blocks": trial.blocks, "settings": trial.settings} for trial in trials])
        return
    rows = [(trial.id, _short(trial.settings), "; ".join(trial.blocks)) for trial in trials]
    columns = ("id", text("trial", "试验"), text("blocks", "所属组"))
    print_table(text(f"{len(trials)} trials", f"{len(trials)} 次试验"), columns, rows)
