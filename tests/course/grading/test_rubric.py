"""The rubric: what it may say, what it may not, and that it fits the questions and the hidden checks."""

import importlib
import pkgutil

import pytest

import labkit.page.questions
from labkit.course.grading.hidden import judge_recorded, load_hidden
from labkit.course.grading.rubric import Rubric, instructor_folder, load_rubric
from labkit.course.lessons import lesson_paths
from labkit.errors import LabError
from labkit.page import exercises

RUBRIC = instructor_folder() / "rubric.toml"
MODULES = sorted(name for _, name, _ in pkgutil.iter_modules(labkit.page.questions.__path__) if name[1:].isdecimal())


@pytest.fixture(scope="module")
def rubric():
    return load_rubric(RUBRIC)


@pytest.fixture(scope="module")
def hidden():
    return load_hidden(RUBRIC.parent / "hidden")


@pytest.mark.parametrize("module", MODULES)
def test_every_question_of_every_lesson_has_a_row_and_a_hidden_check(module, rubric, hidden):
    importlib.import_module(f"labkit.page.questions.{module}")
    asked = {id for id in exercises._questions if id.startswith(f"q{int(module[1:])}_")}
    assert asked
    assert asked == {id for id in rubric.questions if id.startswith(f"q{int(module[1:])}_")}
    assert asked <= hidden.keys()
    written = {id for id in asked if exercises._questions[id].written}
    assert written <= {id for id in asked if rubric.questions[id].kind == "written"}
    assert sum(rubric.questions[id].kind == "written" for id in asked) in (1, 2)
    assert 4 <= len(asked) <= 6


def test_functions_have_a_reference_that_the_visible_check_calls_right(rubric, hidden):
    there = rubric.only(path.stem for path in lesson_paths())
    for id, question in there.questions.items():
        assert (question.kind == "function") == (hidden[id].reference is not None)
        if question.kind == "function":
            assert hidden[id].function
            assert len(hidden[id].calls) >= 4
            judge_recorded(id, hidden[id], hidden[id].expected_record(id))
            visible = [repr(call) for call in hidden[id].visible_calls(id)]
            assert [case for case in hidden[id].calls if repr(case) in visible] == []


GOOD = '[lessons.02_lora]\nq2_1 = { points = 1, kind = "value" }\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            GOOD.replace("1,", "-3,"),
            "lessons.02_lora.q2_1.points: Input should be greater than or equal to 0, given -3",
        ),
        (GOOD.replace('"value"', '"essay"'), "lessons.02_lora.q2_1.kind"),
        (GOOD.replace("q2_1", "q3_1"), "lessons.02_lora.q3_1: its questions are named q2_1"),
        (GOOD.replace("02_lora", "lora"), "a lesson is named like 02_lora"),
        (GOOD + "[rules]\nedited_chek = 'zero'", "rules.edited_chek: Extra inputs are not permitted"),
        (GOOD + "[limits]\nnotebook_mib = 0", "limits.notebook_mib: Input should be greater than 0"),
        (GOOD + "[rules]\nchanged_after_check = 'maybe'", "Input should be 'zero' or 'flag', given 'maybe'"),
        ("[lessons]", "no lesson has a question"),
        ("", "lessons: Field required"),
        ("points = [", "this is not TOML"),
    ],
)
def test_a_broken_rubric_is_explained(tmp_path, text, says):
    path = tmp_path / "rubric.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabError) as raised:
        load_rubric(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_rubric_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LabError, match="there is no such rubric"):
        load_rubric(tmp_path / "none.toml")


def test_defaults_and_total():
    rubric = Rubric.model_validate(
        {"lessons": {"02_lora": {"q2_10": {"points": 1, "kind": "value"}, "q2_9": {"points": 2.5, "kind": "run"}}}}
    )
    assert list(rubric.questions) == ["q2_9", "q2_10"]
    assert rubric.total == 3.5
    assert rubric.lesson_of("q2_9") == "02_lora"
    assert rubric.limits.notebook_mib > 0


def test_a_hidden_file_must_define_its_checks(tmp_path):
    (tmp_path / "q09.py").write_text("x = 1")
    with pytest.raises(LabError, match="must define HIDDEN"):
        load_hidden(tmp_path)


def test_only_lessons_that_were_handed_out_are_graded(rubric):
    part = rubric.only(["02_lora", "99_later"])
    assert list(part.lessons) == ["02_lora"]
    assert part.total == sum(question.points for question in rubric.lessons["02_lora"].values())
    with pytest.raises(LabError, match="lessons 99_later: the rubric has no questions"):
        rubric.only(["99_later"])
