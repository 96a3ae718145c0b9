"""The book itself: built files are fresh, the two languages share their code, every lesson keeps the house's shape."""

import itertools
import json
import re
import statistics

import nbformat
import pytest

from labkit.course.build import built_files, hints_table, stale, student_folder
from labkit.course.lessons import BEGIN, END, lesson_paths, read_lesson
from labkit.course.setup_cell import setup_cell
from labkit.errors import LabError
from labkit.page.exercises import find_question
from labkit.paths import checkout

LESSONS = [path.stem for path in lesson_paths()]
HEADINGS = {
    "en": ["You will be able to", "## 6. Exercises|Exercises", "## Summary", "## References"],
    "zh": ["学完之后，你能够", "练习", "## 小结", "## 参考文献"],
}


def notebook(name, lang):
    return nbformat.read(student_folder(lang) / f"{name}.ipynb", as_version=4)


def prose(name, lang):
    return "\n".join(cell.source for cell in notebook(name, lang).cells if cell.cell_type == "markdown")


def code(name, lang):
    return [cell.source for cell in notebook(name, lang).cells if cell.cell_type == "code"]


def test_committed_notebooks_fit_the_lessons():
    assert stale(built_files()) == []


def test_building_twice_gives_the_same_bytes():
    assert built_files() == built_files()


@pytest.mark.parametrize("name", LESSONS)
def test_both_languages_have_the_same_code_and_the_same_ids(name):
    english, chinese = notebook(name, "en"), notebook(name, "zh")
    assert [cell.id for cell in english.cells] == [cell.id for cell in chinese.cells]
    assert [c.replace("# your code here", "# 在这里写你的代码") for c in code(name, "en")[1:]] == code(name, "zh")[1:]


@pytest.mark.parametrize("name", LESSONS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_identical_setup_cell_opens_every_notebook(name, lang):
    assert code(name, lang)[0] == setup_cell(lang)


@pytest.mark.parametrize("name", LESSONS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_lessons_keep_the_skeleton(name, lang):
    text = prose(name, lang)
    assert [heading for heading in HEADINGS[lang] if not re.search(heading, text)] == []


def title(name, lang):
    """The lesson's own, from its first line: "01 · Where does the memory go?"."""
    return prose(name, lang).splitlines()[0].removeprefix("# ")


def links(text):
    """(what it says, lesson) of every link to a notebook of the book."""
    return re.findall(r"\[([^\]]+)\]\((?:notebooks/)?(?:zh/)?(\d\d_\w+)\.ipynb\)", text)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_lesson_is_called_by_its_own_title(lang):
    readme = (checkout() / f"README{'.zh' if lang == 'zh' else ''}.md").read_text(encoding="utf-8")
    assert links(readme) == [(title(name, lang).split(" · ")[1], name) for name in LESSONS]
    for name, following in itertools.pairwise(LESSONS):
        named = [link for link in links(prose(name, lang)) if " · " in link[0]]
        assert named == [(title(following, lang), following)]


@pytest.mark.parametrize("name", LESSONS)
def test_code_cells_are_small(name):
    lines = [sum(bool(line.strip()) for line in source.split("\n")) for source in code(name, "en")[1:]]
    assert max(lines) <= 40
    assert statistics.median(lines) <= 6.5
    assert statistics.quantiles(lines, n=10)[-1] <= 20


@pytest.mark.parametrize("name", LESSONS)
def test_every_exercise_has_a_check_and_three_hints_in_both_languages(name):
    asked = re.findall(r'check\("(q\d+_\d+)"', "\n".join(code(name, "en")))
    hints = read_lesson(next(path for path in lesson_paths() if path.stem == name)).hints
    assert len(asked) >= 3
    assert sorted(set(asked)) == sorted(hints)
    for id in asked:
        assert find_question(id).id == id
        assert {lang: len(hints[id][lang]) for lang in hints[id]} == {"en": 3, "zh": 3}


@pytest.mark.parametrize("name", LESSONS)
def test_no_lesson_asks_for_a_profile_by_name(name):
    assert not re.search(r"""profile\.name\s*(==|!=|in\b)""", "\n".join(code(name, "en")))


@pytest.mark.parametrize("name", LESSONS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_formulas_are_text(name, lang):
    plain = re.sub(r"`[^`]*`", "", prose(name, lang))
    assert re.findall(r"\$[^$\n]+\$|\\\(|\\\[", plain) == []  # exported pages load no MathJax


@pytest.mark.parametrize("name", LESSONS)
def test_student_notebooks_hold_no_solution(name):
    text = json.dumps([code(name, "en"), code(name, "zh")])
    assert BEGIN not in text
    assert END not in text


def test_a_question_has_one_home():
    lessons = [read_lesson(path) for path in lesson_paths()[:1]]
    with pytest.raises(LabError, match="another lesson too"):
        hints_table(lessons * 2)
