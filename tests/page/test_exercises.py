"""Checks answer in four states, hints come in grades, predictions come back, and every answer leaves a record."""

import hashlib
import json

import pytest
from IPython.core.interactiveshell import InteractiveShell

from labkit import check, hint, predict, reveal
from labkit.errors import LabError
from labkit.page import exercises
from labkit.page.exercises import Wrong, attempted, judge, question
from labkit.page.records import PREFIX, cell_hash, normalise


@pytest.fixture(autouse=True)
def trial(monkeypatch):
    monkeypatch.setenv("LABKIT_PROFILE", "tiny")
    monkeypatch.delenv("LABKIT_LANG", raising=False)
    monkeypatch.setattr(exercises, "_questions", {})
    monkeypatch.setattr(exercises, "_hints_shown", {})
    monkeypatch.setattr(exercises, "_predictions", {})
    monkeypatch.setattr(exercises, "_hints", lambda: {"q99_1": {"en": ["a", "b", "c"], "zh": ["甲", "乙", "丙"]}})

    @question("q99_1")
    def rule(value):
        if callable(value):
            return attempted(value(2))
        if value != 4:
            raise Wrong("not four", "不是四")


def last_record(text):
    line = next(line for line in reversed(text.splitlines()) if line.startswith(PREFIX))
    return json.loads(line.removeprefix(PREFIX))


@pytest.mark.parametrize(
    ("value", "state", "kept"),
    [
        (4, "right", 4),
        (5, "wrong", 5),
        (..., "not attempted", None),
        (None, "not attempted", None),
        ((..., 1), "not attempted", None),
        ("  ", "not attempted", None),
        (lambda n: n * 10, "right", 20),
        (lambda n: None, "not attempted", None),
        (lambda n: 1 / 0, "error", "ZeroDivisionError: division by zero"),
    ],
)
def test_states(value, state, kept):
    found, _, recorded = judge("q99_1", value)
    assert (found, recorded) == (state, kept)


def test_check_prints_one_record_and_nothing_on_stderr(capsys):
    check("q99_1", 5)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "not four" in printed.out
    assert 'hint("q99_1")' in printed.out
    record = last_record(printed.out)
    assert record["question"] == "q99_1"
    assert (record["state"], record["value"], record["profile"], record["model"]) == ("wrong", 5, "tiny", "tiny")
    assert {"python", "torch", "transformers"} <= record["versions"].keys()
    assert record["seconds"] >= 0


def test_the_student_is_spoken_to_in_chinese(capsys, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    check("q99_1", 5)
    hint("q99_1")
    printed = capsys.readouterr().out
    assert "不是四" in printed
    assert "提示 1/3：甲" in printed


def test_an_unknown_language_is_refused(monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "fr")
    with pytest.raises(LabError, match="LABKIT_LANG='fr'"):
        check("q99_1", 4)


@pytest.mark.parametrize("id", ["q99_2", "nonsense", "", "q8_1"])
def test_an_unknown_question_is_named(id):
    with pytest.raises(LabError, match="no such question"):
        check(id, 1)


def test_hints_grow_and_stay_at_the_last(capsys):
    for wanted in ("Hint 1 of 3: a", "Hint 2 of 3: b", "Hint 3 of 3: c", "Hint 3 of 3: c"):
        hint("q99_1")
        assert capsys.readouterr().out.strip() == wanted
    hint("q99_1", grade=1)
    assert "Hint 1 of 3" in capsys.readouterr().out
    with pytest.raises(LabError, match="grade=4"):
        hint("q99_1", grade=4)


def test_a_prediction_comes_back_with_its_ratio(capsys):
    predict("p1", 10, unit="GB")
    reveal("p1", 20.0)
    printed = capsys.readouterr().out
    assert last_record(printed)["state"] == "predicted"
    assert "0.50 times" in printed
    predict("p1", ...)
    reveal("p1", 20.0)
    assert "You typed no prediction" in capsys.readouterr().out
    with pytest.raises(LabError, match="a prediction is a number"):
        predict("p1", "much")


def test_in_a_notebook_the_record_carries_the_hash_of_its_cell(monkeypatch):
    shell = InteractiveShell.instance()
    try:
        published = []
        monkeypatch.setattr(shell.display_pub, "publish", lambda data, **_: published.append(data))
        cell = 'from labkit import check\nanswer = 4   \ncheck("q99_1", answer)\n'
        result = shell.run_cell(cell, store_history=True)
        assert result.success
        record = last_record(published[-1]["text/plain"])
        expected = 'from labkit import check\nanswer = 4\ncheck("q99_1", answer)'
        assert record["cell_sha256"] == hashlib.sha256(expected.encode()).hexdigest() == cell_hash(cell)
        assert record["state"] == "right"
        assert "<b>q99_1</b> right" in published[-1]["text/html"]
    finally:
        InteractiveShell.clear_instance()


def test_markup_in_an_answer_stays_text(monkeypatch):
    shell = InteractiveShell.instance()
    try:
        published = []
        monkeypatch.setattr(shell.display_pub, "publish", lambda data, **_: published.append(data))
        check("q99_1", "<script>alert(1)</script>")
        assert "<script>" not in published[-1]["text/html"]
    finally:
        InteractiveShell.clear_instance()


def test_values_become_plain_json():
    import numpy as np
    import torch

    assert normalise(torch.tensor([[1.0, 2.0]])) == [[1.0, 2.0]]
    assert normalise(np.float32(0.5)) == 0.5
    assert normalise(float("nan")) == "nan"
    assert normalise(1 / 3) == 0.333333333333
    assert normalise((1, "a", None, True)) == [1, "a", None, True]
    assert normalise(len) == "<builtin_function_or_method len>"
    assert len(normalise("x" * 10_000)) == 4001
    assert json.dumps(normalise({"a": {"b": {"c": {"d": {"e": 1}}}}}))


def test_a_written_answer_is_handed_in_and_never_right(capsys):
    @question("q99_2", written=True)
    def rule(value):
        if len(value) < 3:
            raise Wrong("too short", "太短")

    assert judge("q99_2", "long enough")[::2] == ("handed in", "long enough")
    assert judge("q99_2", "no")[0] == "wrong"
    assert judge("q99_2", "  ")[0] == "not attempted"
    check("q99_2", "long enough")
    assert last_record(capsys.readouterr().out)["state"] == "handed in"


def test_a_wrong_answers_record_says_why_and_a_right_ones_does_not(capsys):
    check("q99_1", 5)
    assert last_record(capsys.readouterr().out)["said"] == "not four"
    check("q99_1", 4)
    assert last_record(capsys.readouterr().out)["said"] is None


@pytest.mark.filterwarnings("ignore:look")
def test_nothing_goes_to_stderr_whatever_the_students_code_does(capsys):
    import sys
    import warnings

    def noisy(n):
        print("mine", file=sys.stderr)
        warnings.warn("look", stacklevel=1)
        raise SystemExit("gone")

    check("q99_1", noisy)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "mine" in printed.out
    assert last_record(printed.out)["state"] == "error"


def test_a_huge_number_can_be_recorded(capsys):
    check("q99_1", 10**6000)
    assert last_record(capsys.readouterr().out)["value"].startswith("<int of")
