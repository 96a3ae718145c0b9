"""Lesson 02 on small and large cards: how section 1 runs is settled before anything is loaded. The card is faked."""

import re

import pytest

import labkit
from labkit.course.lessons import lesson_paths, read_lesson
from labkit.errors import LabError
from labkit.models.profiles import PROFILES
from labkit.paths import checkout
from labkit.training import settle

GIB = 2**30
CELLS = read_lesson(lesson_paths(["02"])[0]).cells


@pytest.fixture
def settled(monkeypatch, tmp_path):
    """``settled(free_gib)``: the profile that the lesson's cell settles on, with the profile ``gpu``."""
    (code,) = (cell.code for cell in CELLS if "settled_once(" in cell.code)
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    monkeypatch.setattr(labkit, "current_profile", lambda: PROFILES["gpu"])

    def run(free_gib, force=True):
        monkeypatch.setattr(settle, "own_card", lambda: (int(free_gib * GIB), (8, 6)))
        names = {"labkit": labkit}
        exec(code.replace("force = False", f"force = {force}"), names)
        return names["full"]

    return run


@pytest.mark.parametrize(
    ("free_gib", "chosen", "english", "chinese"),
    [
        (23, ("float32", 4, False), "float32, batch x accumulation 4 x 4", "float32，批大小"),
        (14.6, ("float32", 4, True), "batch 4 without checkpointing would need", "批大小 4、不开梯度检查点"),
        (7.2, ("float16", 4, True), "float32 would need at least", "float32 连同预留至少需要"),
    ],
)
def test_the_card_decides_and_the_output_says_why(settled, capsys, monkeypatch, free_gib, chosen, english, chinese):
    for lang, words in (("en", english), ("zh", chinese)):
        monkeypatch.setenv("LABKIT_LANG", lang)
        full = settled(free_gib)
        assert (full.dtype, full.batch, full.checkpointing) == chosen
        assert full.rows_per_step == 16
        said = capsys.readouterr().out
        assert words in said and "14 " in said and "100,663,296" in said


def test_a_card_that_is_too_small_is_refused_with_the_way_out_and_a_restart_keeps_what_was_settled(settled):
    first = settled(7.2)
    assert settled(40, force=False) == first
    with pytest.raises(LabError, match=r"settle anew \(force=True\)"):
        settled(5, force=False)
    with pytest.raises(LabError, match=r"by prediction.*stop other programs.*LABKIT_PROFILE=laptop` into a cell"):
        settled(5)


@pytest.mark.parametrize(("lang", "page"), [("en", "memory.md"), ("zh", "memory.zh.md")])
def test_the_numbers_in_the_lesson_and_in_the_guide_are_what_is_settled(settled, lang, page):
    least, ample = map(float, re.findall(r"([\d.]+) GiB", CELLS[0].prose[lang]))
    assert settled(ample).checkpointing is False
    with pytest.raises(LabError):
        settled(least - 0.1)
    assert settled(least).dtype == "float16"
    guide = (checkout() / "docs" / page).read_text(encoding="utf-8")
    (item,) = re.findall(r"^- \*\*(?:Lesson 02|第 02 节).+?(?=^- )", guide, flags=re.M | re.S)
    exact, narrow = map(float, re.findall(r"([\d.]+) GiB", item))
    assert narrow == least
    assert [settled(free).dtype for free in (exact, exact - 0.1)] == ["float32", "float16"]
