"""Which language a student is spoken to in, and that nothing on the screen forgets to ask."""

import ast
from pathlib import Path

import pytest

from labkit.errors import LabError
from labkit.labels import language, text
from tests.chinese import english_left

PACKAGE = Path(__file__).resolve().parents[1] / "labkit"
FILES = [*PACKAGE.glob("*.py"), *(PACKAGE / "commands").glob("*.py")]
FILES += [*(PACKAGE / "models").glob("*.py"), *(PACKAGE / "training").glob("*.py")]
SPEAKING = ("say", "print", "print_table", "add_task", "Finding", "warn")


@pytest.mark.parametrize(("value", "expected"), [(None, "en"), ("", "en"), ("en", "en"), (" zh ", "zh")])
def test_the_language_is_english_unless_the_student_says(monkeypatch, value, expected):
    monkeypatch.delenv("LABKIT_LANG", raising=False)
    if value is not None:
        monkeypatch.setenv("LABKIT_LANG", value)
    assert language() == expected
    assert text("yes", "是") == {"en": "yes", "zh": "是"}[expected]


@pytest.mark.parametrize("value", ["fr", "ZH", "zh_CN", "en,zh"])
def test_another_language_is_refused_with_the_two_that_there_are(monkeypatch, value):
    monkeypatch.setenv("LABKIT_LANG", value)
    with pytest.raises(LabError, match="LABKIT_LANG=zh"):
        text("yes", "是")


def spoken(node):
    """The strings in what a call says, without those that `text` chooses from."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "text":
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from spoken(child)


def untranslated(code):
    """English of two words or more that a call in ``code`` puts on the screen in every language."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = [call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) in SPEAKING]
    said = [line for call in named for argument in call.args for line in spoken(argument)]
    return [line for line in said if english_left(line)]


def test_nothing_is_said_without_its_chinese():
    assert untranslated('out.print(f"not {this} one")') == untranslated('say(text("a b", "甲"))') == []
    assert untranslated('out.print(escape(f"{n} old files"))') == [" old files"]
    found = {str(path.relative_to(PACKAGE)): untranslated(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}
