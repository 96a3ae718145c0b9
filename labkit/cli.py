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
    from labkit.doctor import examine
    from labkit.models.profiles import current_profile

    chosen = current_profile(profile)
    findings = examine(chosen)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}
        rows = [(marks[f.status], f.name, _escape(f.found), _escape(f.fix)) for f in findings]
        _print_table(f"profile {chosen.name}", ("", "check", "found", "fix"), rows)
    raise typer.Exit(1 if any(finding.status == "fail" for finding in findings) else 0)


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
    command = [sys.executable, "-m", "jupyter", "lab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
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


def _language(lang: str) -> str:
    if lang not in ("en", "zh"):
        raise LabError(f"lang={lang!r}", "the book is in en and zh", "use --lang en or --lang zh")
    return lang


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    out.print(table)


def _gib(n_bytes: int | None) -> str:
    return "–" if n_bytes is None else f"{n_bytes / 2**30:.2f}"


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
