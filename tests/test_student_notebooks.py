"""What a student gets: the Chinese notebooks run unsolved from top to bottom, and their pages open in a browser.

`make test` executes the English solutions with nbval; with these, the cells of both languages have been run.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from labkit.course.build import student_folder
from labkit.course.execute import run_notebook
from labkit.course.lessons import lesson_paths
from labkit.page.records import PREFIX

LESSONS = [path.stem for path in lesson_paths()]
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
    runs = {id for id in states if id.startswith("r")}  # of training: they ask nothing
    assert {states.pop(id) for id in runs} <= {"ran"}
    assert states == dict.fromkeys(asked, "not attempted")
    assert asked


def test_the_page_opens_without_an_error_and_every_image_is_described(executed, visit):
    seen = visit(Path(executed.result.page).as_uri())
    seen.page.wait_for_load_state("networkidle")
    dom = seen.page.content()
    assert (seen.errors, seen.refused) == ([], [])
    images = re.findall(r"<img\b[^>]*>", dom)
    assert [image[:80] for image in images if not re.search(r'\balt="[^"]+"', image)] == []
    assert dom.count("<figure") <= len(images) + dom.count("<svg")


def test_the_browser_check_would_notice_an_error(visit, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(f"<!DOCTYPE html><html><body>{DRY_RUN}<p>text</p></body></html>", encoding="utf-8")
    assert visit(file.as_uri()).errors == ["planted by the test"]


def records(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            yield from (json.loads(line.removeprefix(PREFIX)) for line in text.splitlines() if line.startswith(PREFIX))
