"""The command line: wiring only. Every command that prints figures takes ``--json``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labkit.errors import LabError
from labkit.flags import Asked, takes_step_flags

app = typer.Typer(
    help="The lab book on parameter-efficient fine-tuning, from the command line.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

ProfileFlag = Annotated[
    str | None, typer.Option(help="tiny, laptop or gpu (default: LABKIT_PROFILE, else by machine).")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def main() -> None:
    """Run the command line; a LabError becomes one line and exit code 2."""
    try:
        app()
    except LabError as error:
        err.print(f"[bold red]error[/] {_escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None


@app.command()
def doctor(profile: ProfileFlag = None, as_json: JsonFlag = False) -> None:
    """Check this machine; exit code 1 if a lesson cannot run on it."""
    from labkit.doctor import as_rows, examine, lessons_ready
    from labkit.models.profiles import current_profile

    chosen = current_profile(profile)
    findings = examine(chosen)
    blocked = {lesson: names for lesson, names in lessons_ready(findings).items() if names}
    if as_json:
        _print_json({"profile": chosen.name, "findings": [asdict(f) for f in findings], "blocked_lessons": blocked})
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        rows = [(f"[{colours[status]}]{status}[/]", *map(_escape, rest)) for status, *rest in as_rows(findings)]
        _print_table(f"profile {chosen.name}", ("", "check", "found", "fix"), rows)
        for lesson, names in blocked.items():
            out.print(f"lesson {lesson} cannot run yet: {', '.join(names)}")
        out.print("" if blocked else "every lesson of the book can run here")
    raise typer.Exit(1 if blocked else 0)


@app.command()
def lab(
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser window.")] = True,
    port: Annotated[int, typer.Option(help="First port to try.")] = 8888,
) -> None:
    """Open JupyterLab on lesson 00: loopback only, token on."""
    from labkit.course.build import student_folder
    from labkit.paths import checkout

    notebook = next(iter(sorted(student_folder(_language(lang)).glob("00_*.ipynb"))), None)
    if notebook is None:
        raise LabError("lesson 00", "its notebook is not built", "run `labkit build`")
    root = checkout()
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += [f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{notebook.relative_to(root)}"]
    command += [] if browser else ["--no-browser"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # AutoDL's user is root
    raise SystemExit(subprocess.call(command, cwd=root))


@app.command()
def build(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a built file is stale.")] = False,
    lang: Annotated[str | None, typer.Option(help="en or zh; default both.")] = None,
    solutions: Annotated[bool, typer.Option("--solutions", help="Solution notebooks, under build/solutions/.")] = False,
    stamp: Annotated[
        bool, typer.Option("--stamp", help="Vouch that all Chinese cells fit their English ones.")
    ] = False,
) -> None:
    """Make the notebooks from the lessons."""
    from labkit.course.build import built_files, stale, stamp_lessons, write
    from labkit.course.lessons import LANGUAGES

    if stamp:
        out.print(f"{len(stamp_lessons([]))} lesson sources stamped")
    langs = LANGUAGES if lang is None else (_language(lang),)
    files = built_files(langs=langs, solutions=solutions)
    if check:
        wrong = stale(files)
        for line in wrong:
            err.print(line)
        if wrong:
            raise LabError(f"{len(wrong)} built files", "they do not fit the lessons", "run `labkit build` and commit")
        out.print(f"{len(files)} built files fit the lessons")
    else:
        out.print(f"{len(write(files))} of {len(files)} files changed")


@app.command()
def run(
    lessons: Annotated[list[str] | None, typer.Argument(help="Lesson numbers or names; default all.")] = None,
    profile: ProfileFlag = None,
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    html: Annotated[Path | None, typer.Option(help="Export pages into this folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Execute solution notebooks; time and peak memory per lesson; exit code 1 if one fails."""
    from labkit.course.execute import run_notebook, solution_notebooks
    from labkit.course.lessons import lesson_paths
    from labkit.models.profiles import current_profile

    chosen, spoken = current_profile(profile).name, _language(lang)
    names = [path.stem for path in lesson_paths(lessons)]
    results = []
    for path in solution_notebooks(names, spoken):
        err.print(f"running {path.stem} ({spoken}, {chosen}) …")
        results.append(run_notebook(path, lang=spoken, profile=chosen, html=html))
    if as_json:
        _print_json([asdict(result) for result in results])
    else:
        rows = [(r.lesson, "ok" if r.ok else "FAILED", f"{r.seconds:.1f}", _gib(r.peak_rss_bytes)) for r in results]
        _print_table(f"profile {chosen}", ("lesson", "", "seconds", "peak RSS, GiB"), rows)
    for result in results:
        if result.error:
            err.print(_escape(f"{result.lesson}: {result.error}"), soft_wrap=True)
    raise typer.Exit(0 if all(result.ok for result in results) else 1)


@app.command()
@takes_step_flags
def memory(
    asked: Asked,
    gpu: Annotated[float | None, typer.Option(help="GiB of a GPU: does it fit, and if not, what would help?")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict the peak memory of one training step in closed form, by component and phase."""
    from labkit.page.memory_advice import answer_columns, answer_line, answer_rows, gpu_answer
    from labkit.theory.memory import predict

    prediction = predict(asked.shape, asked.method, asked.step)
    answer = {} if gpu is None else gpu_answer(asked.shape, asked.method, asked.step, gpu_gib=gpu)
    if as_json:
        _print_json(asdict(prediction) | answer)
        return
    rows = [(name, f"{n_bytes:,}", _gib(n_bytes)) for name, n_bytes in prediction.components.items() if n_bytes]
    peak = prediction.peak_allocated_bytes
    rows += [(f"peak ({prediction.peak_phase})", f"{peak:,}", _gib(peak))]
    title = f"{asked.shape.name}, {asked.method.kind}: at the peak of one step"
    _print_table(title, ("component", "bytes", "GiB"), rows)
    phases = [(name, f"{n_bytes:,}", _gib(n_bytes)) for name, n_bytes in prediction.phases.items()]
    _print_table("peak of each phase", ("phase", "bytes", "GiB"), phases)
    out.print(f"trainable {prediction.trainable_params:,} of {prediction.total_params:,} parameters")
    out.print("Not included: CUDA context, cuBLAS workspaces, and what the allocator reserves without using it.")
    if answer:
        out.print(_escape(answer_line(answer)))
    if answer.get("changes"):
        _print_table("", answer_columns(), answer_rows(answer))


@app.command()
def lecture(
    topic: Annotated[str | None, typer.Option(help="memory, lora, nf4, training, dora or spectrum.")] = None,
    lesson: Annotated[str | None, typer.Option(help="Only what a lesson treats, e.g. 01.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The lecture's claims, each against a recomputed or measured value, with a verdict and a source."""
    from labkit.page.lecture import cells, columns, ledger, summary

    rows = ledger(topic=topic, lesson=lesson and lesson.zfill(2))
    if as_json:
        _print_json([asdict(row) for row in rows])
        return
    table = Table(show_lines=True)
    for head, ratio in zip(columns(), (3, 5, 2, 3), strict=True):
        table.add_column(head, ratio=ratio, overflow="fold")  # Chinese has no blanks to break at
    for row in rows:
        table.add_row(*map(_escape, cells(row)))
    out.print(table)
    out.print(summary(rows))


@app.command()
@takes_step_flags
def dryrun(asked: Asked, as_json: JsonFlag = False) -> None:
    """Trace the training step of the installed libraries without weights or GPU, beside the prediction."""
    from labkit.theory.memory import predict
    from labkit.training.dryrun import trace

    traced = trace(asked.shape, asked.method, asked.step)
    if as_json:
        _print_json(asdict(traced))
        return
    prediction = predict(asked.shape, asked.method, asked.step)
    pairs = {name: (prediction.components[name], size) for name, size in traced.components.items()}
    pairs |= {f"peak of {name}": (prediction.phases[name], size) for name, size in traced.phases.items()}
    pairs["peak"] = prediction.peak_allocated_bytes, traced.peak_allocated_bytes
    rows = [(name, *map(_gib, pair), _ratio(*pair)) for name, pair in pairs.items() if any(pair)]
    title = f"{asked.shape.name}, {asked.method.kind}: one step"
    _print_table(title, ("", "predicted, GiB", "dry run, GiB", "ratio"), rows)
    out.print(_escape(f"peak in {traced.peak_phase}, at {traced.peak_operation}"), soft_wrap=True)
    out.print(f"trainable {traced.trainable_params:,} of {traced.total_params:,} parameters")
    out.print("Not included: CUDA context, cuBLAS workspaces, and what the allocator reserves without using it.")


@app.command()
def sft(
    folder: Annotated[Path, typer.Option("--out", help="Folder for adapter, record and samples; must be new.")],
    profile: ProfileFlag = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank; alpha keeps its ratio to it unless given.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Numerator of the scale alpha/rank.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows per forward pass.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Forward passes per optimizer step.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens per row at most; longer rows are refused.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    data: Annotated[str | None, typer.Option(help="book, a public set's name, or a JSONL file.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds init, dropout and order.")] = 0,
    force: Annotated[bool, typer.Option(help="Train even where the predicted memory does not fit.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune the profile's model (lesson 04's run without a notebook) and write a run record."""
    from labkit.models.profiles import current_profile
    from labkit.training.run import run_sft

    asked = {"steps": steps, "rank": rank, "alpha": alpha, "batch": batch, "accumulation": accumulation}
    asked |= {"seq_len": seq_len, "learning_rate": learning_rate, "data": data}
    changes = {name: value for name, value in asked.items() if value is not None}
    say = (lambda *_: None) if as_json else _say_event
    record = run_sft(current_profile(profile), folder, seed=seed, force=force, on_event=say, bar=not as_json, **changes)
    if as_json:
        _print_json(record.as_dict())
        return
    _print_table(f"run {folder}", ("", "before", "after"), _before_after(record.before, record.after))
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in record.seconds.items())
    peak = ", ".join(f"{name} {_gib(n_bytes)} GiB" for name, n_bytes in record.peak_memory.items())
    out.print(f"{seconds}; {record.tokens_per_s:.0f} tokens/s; {peak}")
    out.print(f"adapter, record.json and samples.md are in {folder}")


def _language(lang: str) -> str:
    if lang not in ("en", "zh"):
        raise LabError(f"lang={lang!r}", "the book is in en and zh", "use --lang en or --lang zh")
    return lang


def _say_event(kind: str, event: dict[str, Any]) -> None:
    if kind == "phase":
        err.print(f"{event['name']} …")


def _before_after(before: dict[str, Any], after: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    scores = [before, after or {}]
    losses = [f"{score['heldout_loss']:.3f}" if score else "–" for score in scores]
    follows = [score.get("follow") for score in scores]
    rates = [f"{f['rate']:.0%} ({f['low']:.0%} to {f['high']:.0%})" if f else "–" for f in follows]
    return [("held-out loss, nats a token", *losses), ("rows with every rule kept (95 %)", *rates)]


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple]) -> None:
    table = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    out.print(table)


def _gib(n_bytes: int | None) -> str:
    return "–" if n_bytes is None else f"{n_bytes / 2**30:.2f}"


def _ratio(predicted: int, traced: int) -> str:
    return f"{predicted / traced:.3f}" if traced else "–"


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
