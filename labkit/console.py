"""What the commands and scripts share: the two streams, the common flags, errors, tables, JSON and units."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from labkit import labels
from labkit.errors import LabError

out = Console()
err = Console(stderr=True)

ProfileFlag = Annotated[
    str | None, typer.Option(help="tiny, laptop or gpu (default: LABKIT_PROFILE, else by machine).")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
QuickFlag = Annotated[bool, typer.Option("--quick", help="Try a small case and write nothing.")]


def run_app(app: typer.Typer) -> None:
    """Run a command line; a LabError becomes one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows a ? for what it cannot
    try:
        app()
    except LabError as error:
        print_error(error)
        raise SystemExit(2) from None


def run_script(main: Callable[..., None], about: str | None) -> None:
    """Run a script's ``main``: its parameters are the options, and every other argument is refused.

    Args:
        main: what to run.
        about: the script's docstring, which ``--help`` shows as it stands.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help="\b\n" + (about or "").replace("\n\n", "\n\n\b\n"))(main)
    run_app(app)


def print_error(error: LabError) -> None:
    """An error in one line, on standard error."""
    label, line = "error", str(error)
    spoken = os.environ.get("LABKIT_LANG", "").strip()  # not `labels.language`, whose own error this may be
    if spoken == "zh":
        label, line = "错误", f"{error.given}：{error.rule}。解决办法：{error.fix}。"
    err.print(f"[bold red]{label}[/] {escape(line)}", soft_wrap=True)


def language(lang: str | None) -> str:
    """``lang``, if the book is in it; the student's (`labkit.labels.language`) where none is named.

    Raises:
        LabError: the book is not in it.
    """
    if lang is None:
        return labels.language()
    if lang not in labels.LANGUAGES:
        raise LabError(f"lang={lang!r}", "the book is in en and zh", "use --lang en or --lang zh")
    return lang


def print_json(value: Any) -> None:
    """One JSON object on standard output, for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple]) -> None:
    """A table for people."""
    # folded: a cell that is cut off hides what the reader should type
    table = Table(*(Column(name, overflow="fold") for name in columns), title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    out.print(table)


def gib(n_bytes: int | None) -> str:
    """Bytes as GiB with two decimals; a dash where there is no number."""
    return "–" if n_bytes is None else f"{n_bytes / 2**30:.2f}"


def ratio(predicted: int, traced: int) -> str:
    """``predicted`` by ``traced`` with three decimals."""
    return f"{predicted / traced:.3f}" if traced else "–"


def escape(text: str) -> str:
    """``text`` with its brackets safe from rich's markup."""
    return text.replace("[", r"\[")
