"""Commands that make, open, run and check the book: doctor, lab, build, run, lecture."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from labkit.console import JsonFlag, ProfileFlag, err, escape, gib, language, out, print_json, print_table
from labkit.errors import LabError
from labkit.labels import text

LANG_HELP = "en or zh (default: LABKIT_LANG, else en)."


def doctor(profile: ProfileFlag = None, as_json: JsonFlag = False) -> None:
    """Check this machine; exit code 1 if a lesson cannot run on it."""
    from labkit.doctor import as_rows, examine, lessons_ready
    from labkit.models.profiles import current_profile

    chosen = current_profile(profile)
    findings = examine(chosen)
    blocked = {lesson: names for lesson, names in lessons_ready(findings).items() if names}
    if as_json:
        print_json({"profile": chosen.name, "findings": [asdict(f) for f in findings], "blocked_lessons": blocked})
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        rows = [(f"[{colours[status]}]{status}[/]", *map(escape, rest)) for status, *rest in as_rows(findings)]
        columns = ("", text("check", "项目"), text("found", "结果"), text("fix", "解决办法"))
        print_table(text(f"profile {chosen.name}", f"配置 {chosen.name}"), columns, rows)
        titles = {finding.name: finding.title for finding in findings}
        for lesson, names in blocked.items():
            english = f"lesson {lesson} cannot run yet: {', '.join(names)}"
            out.print(text(english, f"第 {lesson} 节还不能运行：{'、'.join(titles[name] for name in names)}"))
        out.print("" if blocked else text("every lesson of the book can run here", "本书的每一节都可以在这里运行"))
    raise typer.Exit(1 if blocked else 0)


def lab(
    lang: Annotated[str | None, typer.Option(help=LANG_HELP)] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser window.")] = True,
    port: Annotated[int, typer.Option(help="First port to try.")] = 8888,
) -> None:
    """Open JupyterLab on lesson 00: loopback only, token on."""
    from labkit.course.build import student_folder
    from labkit.paths import checkout

    notebook = next(iter(sorted(student_folder(language(lang)).glob("00_*.ipynb"))), None)
    if notebook is None:
        raise LabError("lesson 00", "its notebook is not built", "run `labkit build`")
    root = checkout()
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += [f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/{notebook.relative_to(root)}"]
    command += [] if browser else ["--no-browser"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # AutoDL's user is root
    raise SystemExit(subprocess.call(command, cwd=root))


def build(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a built file is stale.")] = False,
    lang: Annotated[str | None, typer.Option(help="en or zh; default both.")] = None,
    solutions: Annotated[bool, typer.Option("--solutions", help="Solution notebooks, under build/solutions/.")] = False,
    stamp: Annotated[
        bool, typer.Option("--stamp", help="Vouch that all Chinese cells fit their English ones.")
    ] = False,
) -> None:
    """Make the notebooks from the lessons."""
    from labkit.course.build import built_files, keep_work, stale, stamp_lessons, write
    from labkit.course.lessons import LANGUAGES

    if stamp:
        count = len(stamp_lessons([]))
        out.print(text(f"{count} lesson sources stamped", f"已为 {count} 个源文件记下译文的哈希"))
    langs = LANGUAGES if lang is None else (language(lang),)
    files = built_files(langs=langs, solutions=solutions)
    if check:
        wrong = stale(files)
        for line in wrong:
            err.print(line)
        if wrong:
            raise LabError(f"{len(wrong)} built files", "they do not fit the lessons", "run `labkit build` and commit")
        out.print(text(f"{len(files)} built files fit the lessons", f"{len(files)} 个生成的文件都与源文件一致"))
    else:
        for notebook, copy in keep_work(files).items():
            kept = text(
                f"{notebook.name} had been worked in; it is kept as {copy}",
                f"{notebook.name} 里做过题，已另存为 {copy}",
            )
            err.print(escape(kept), soft_wrap=True)
        changed = len(write(files))
        out.print(text(f"{changed} of {len(files)} files changed", f"{len(files)} 个文件，更新了 {changed} 个"))


def run(
    lessons: Annotated[list[str] | None, typer.Argument(help="Lesson numbers or names; default all.")] = None,
    profile: ProfileFlag = None,
    lang: Annotated[str | None, typer.Option(help=LANG_HELP)] = None,
    html: Annotated[Path | None, typer.Option(help="Export pages into this folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Execute solution notebooks; time and peak memory per lesson; exit code 1 if one fails."""
    from labkit.course.execute import run_notebook, solution_notebooks
    from labkit.course.lessons import lesson_paths
    from labkit.models.profiles import current_profile

    chosen, spoken = current_profile(profile).name, language(lang)
    names = [path.stem for path in lesson_paths(lessons)]
    results = []
    for path in solution_notebooks(names, spoken):
        place = f"{path.stem} ({spoken}, {chosen}) …"
        err.print(text(f"running {place}", f"正在运行 {place}"))
        results.append(run_notebook(path, lang=spoken, profile=chosen, html=html))
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        failed = text("FAILED", "失败")
        rows = [(r.lesson, "ok" if r.ok else failed, f"{r.seconds:.1f}", gib(r.peak_rss_bytes)) for r in results]
        columns = (text("lesson", "章节"), "", text("seconds", "秒"), text("peak RSS, GiB", "内存峰值，GiB"))
        print_table(text(f"profile {chosen}", f"配置 {chosen}"), columns, rows)
    for result in results:
        if result.error:
            err.print(escape(f"{result.lesson}: {result.error}"), soft_wrap=True)
    raise typer.Exit(0 if all(result.ok for result in results) else 1)


def lecture(
    topic: Annotated[str | None, typer.Option(help="memory, lora, nf4, training, dora or spectrum.")] = None,
    lesson: Annotated[str | None, typer.Option(help="Only what a lesson treats, e.g. 01.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The lecture's claims, each against a recomputed or measured value, with a verdict and a source."""
    from labkit.page.lecture import cells, columns, ledger, summary

    rows = ledger(topic=topic, lesson=lesson and lesson.zfill(2))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = Table(show_lines=True)
    for head, ratio in zip(columns(), (3, 5, 2, 3), strict=True):
        table.add_column(head, ratio=ratio, overflow="fold")  # Chinese has no blanks to break at
    for row in rows:
        table.add_row(*map(escape, cells(row)))
    out.print(table)
    out.print(summary(rows))
