"""What a student gets: the Chinese notebooks run unsolved from top to bottom, and their pages open in a browser.

`make test` executes the English solutions with nbval; with these, the cells of both languages have been run.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from labkit.course.build import student_folder
from labkit.course.execute import run_notebook
from labkit.course.lessons import lesson_paths
from labkit.page.records import PREFIX

LESSONS = [path.stem for path in lesson_paths()]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom"

# Runs before the page's own scripts and leaves their errors where --dump-dom shows them.
LISTENER = """<script>
(() => {
  const seen = [];
  const keep = text => { seen.push(String(text)); document.documentElement.dataset.errors = JSON.stringify(seen); };
  addEventListener("error", event => { if (event.message) keep(event.message); });
  addEventListener("unhandledrejection", event => keep(event.reason));
  const report = console.error;
  console.error = (...said) => { keep(said.join(" ")); report(...said); };
})();
</script>"""
DRY_RUN = """<script>throw new Error("planted by the test")</script>"""


@pytest.fixture(scope="module", params=LESSONS)
def executed(request, tmp_path_factory):
    """The lesson's Chinese student notebook, executed in the tiny profile and exported."""
    folder = tmp_path_factory.mktemp(request.param)
    copy = shutil.copy(student_folder("zh") / f"{request.param}.ipynb", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.course.execute.solution_folder", lambda lang: folder / "build" / "solutions" / lang)
        result = run_notebook(Path(copy), lang="zh", profile="tiny", html=folder / "pages")
    kept = folder / "build" / "executed" / "zh" / f"{request.param}.ipynb"
    return SimpleNamespace(result=result, notebook=nbformat.read(kept, as_version=4))


def test_it_runs_unsolved_from_top_to_bottom(executed):
    assert executed.result.ok, executed.result.error


def test_every_question_says_that_it_was_not_attempted(executed):
    asked = set()
    for cell in executed.notebook.cells:
        if cell.cell_type == "code":
            asked |= set(re.findall(r'^(?:labkit\.)?(?:check|predict)\("(\w+)"', cell.source, flags=re.M))
    states = {record["question"]: record["state"] for record in records(executed.notebook)}
    assert states == dict.fromkeys(asked, "not attempted")
    assert asked


def test_the_page_opens_without_an_error_and_every_image_is_described(executed, tmp_path):
    page = Path(executed.result.page).read_text(encoding="utf-8")
    dom = browse(page.replace("<head>", f"<head>{LISTENER}", 1), tmp_path)
    assert errors(dom) == []
    images = re.findall(r"<img\b[^>]*>", dom)
    assert [image[:80] for image in images if not re.search(r'\balt="[^"]+"', image)] == []
    assert dom.count("<figure") <= len(images) + dom.count("<svg")


def test_the_browser_check_would_notice_an_error(tmp_path):
    page = f"<!DOCTYPE html><html><head>{LISTENER}</head><body>{DRY_RUN}<p>text</p></body></html>"
    assert errors(browse(page, tmp_path)) == ["Uncaught Error: planted by the test"]


def records(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            yield from (json.loads(line.removeprefix(PREFIX)) for line in text.splitlines() if line.startswith(PREFIX))


def browse(page, folder):
    """The DOM after the page's scripts have run."""
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI must have a browser: .ci/run installs chromium"
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


def errors(dom):
    kept = re.search(r'<html[^>]* data-errors="([^"]*)"', dom)
    return json.loads(html.unescape(kept[1])) if kept else []
