"""The instructor's guide: both languages say the same, its recipe runs, the flags it explains exist."""

import csv
import re

import pytest

from labkit.paths import PACKAGE, checkout

PAGES = {lang: checkout() / "docs" / f"instructors{end}.md" for lang, end in (("en", ""), ("zh", ".zh"))}


def recipe(lang):
    return re.search(r"```python\n(.+?)```", PAGES[lang].read_text(encoding="utf-8"), flags=re.S)[1]


def flags(lang):
    """The flags of section 5's table."""
    section = re.search(r"^## 5\..*?^## 6", PAGES[lang].read_text(encoding="utf-8"), flags=re.S | re.M)[0]
    return {flag for row in re.findall(r"^\| (`.+?) \|", section, flags=re.M) for flag in re.findall(r"`([^`]+)`", row)}


def test_both_languages_have_the_same_sections_recipe_and_flags():
    heads = [re.findall(r"^## (\d)\.", path.read_text(encoding="utf-8"), flags=re.M) for path in PAGES.values()]
    assert heads[0] == heads[1] == list("123456")
    plain = [re.sub(r"\s*#.*", "", recipe(lang)) for lang in PAGES]
    assert plain[0] == plain[1]
    assert flags("en") == flags("zh")


def test_every_flag_that_is_explained_exists():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "course" / "grading").glob("*.py"))
    assert [flag for flag in flags("en") if f'"{flag}"' not in code] == []


@pytest.mark.parametrize("lang", PAGES)
def test_the_recipe_fills_a_column_of_a_canvas_export(lang, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "grades.csv").write_text("student,q0_1,total\nsmithann_12345,2,57.5\n", encoding="utf-8")
    columns = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Lab book (77)"]
    rows = [
        ["    Points Possible", "", "", "", "", "71"],
        ["Smith, Ann", "12345", "s1", "ann", "A", ""],
        ["Li, Bo", "9", "s2", "bo", "A", "3"],
    ]
    with open("canvas_export.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    exec(recipe(lang), {})
    with open("canvas_import.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["Lab book (77)"] for row in found] == ["71", "57.5", "3"]
    assert list(found[0]) == columns


def test_the_guide_names_the_files_that_grading_writes():
    for path in PAGES.values():
        text = path.read_text(encoding="utf-8")
        for name in (
            "grades.csv",
            "flags.csv",
            "written.csv",
            "summary.html",
            "manifest.json",
            "instructor/rubric.toml",
        ):
            assert name in text
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        assert [link for link in links if not path.parent.joinpath(link).exists()] == []
