"""Lesson sources: every rule is broken once, and the built notebooks are read back with nbformat."""

import json
import re

import nbformat
import pytest

from labkit.course.lessons import build_notebook, read_lesson, stamp, translation_hash
from labkit.errors import LabError

ENGLISH = "# Title"
SOURCE = f'''# %% [markdown] tags=["en"]
"""
{ENGLISH}
"""

# %% [markdown] tags=["zh", "of-{translation_hash(ENGLISH)}"]
"""
# 标题
"""

# %%
answer = ...
### BEGIN SOLUTION
answer = 42
### END SOLUTION
print(answer)

# %% tags=["solution"]
print("only in the solution")

# %% [markdown] tags=["en", "hint-q9_1"]
"""
look
---
closer
"""

# %% [markdown] tags=["zh", "hint-q9_1", "of-{translation_hash("look" + chr(10) + "---" + chr(10) + "closer")}"]
"""
看
---
再看
"""
'''


def lesson(tmp_path, source, **options):
    path = tmp_path / "99_trial.py"
    path.write_text(source, encoding="utf-8")
    return read_lesson(path, **options)


def sources(text):
    return [cell.source for cell in nbformat.reads(text, as_version=4).cells]


def test_student_notebook_has_no_solution_and_no_hint(tmp_path):
    text = build_notebook(lesson(tmp_path, SOURCE), "en", solutions=False)
    title, setup, exercise = sources(text)
    assert title == "# Title"
    assert 'labkit.start("en")' in setup
    assert exercise == "answer = ...\n# your code here\nprint(answer)"
    hashed = nbformat.reads(text, as_version=4).metadata["labkit"]["sources"]
    assert "42" not in text.replace(hashed, "")  # which may hold the digits
    assert "closer" not in text


def test_solution_notebook_keeps_solutions_without_markers(tmp_path):
    cells = sources(build_notebook(lesson(tmp_path, SOURCE), "zh", solutions=True))
    assert cells[0] == "# 标题"
    assert cells[2:] == ["answer = ...\nanswer = 42\nprint(answer)", 'print("only in the solution")']


def test_built_notebook_is_valid_has_stable_ids_and_no_outputs(tmp_path):
    first = build_notebook(lesson(tmp_path, SOURCE), "en", solutions=False)
    notebook = json.loads(first)
    nbformat.validate(notebook)
    assert [cell["id"] for cell in notebook["cells"]] == ["99-002", "99-setup", "99-003"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    assert first == build_notebook(lesson(tmp_path, SOURCE), "en", solutions=False)


def test_hints_are_split_into_grades(tmp_path):
    assert lesson(tmp_path, SOURCE).hints == {"q9_1": {"en": ["look", "closer"], "zh": ["看", "再看"]}}


def test_changed_english_makes_the_translation_stale(tmp_path):
    with pytest.raises(LabError, match=r"99_trial\.py, cell 2.*another English text"):
        lesson(tmp_path, SOURCE.replace("# Title", "# Another title"))


def test_stamp_vouches_for_the_translation_and_changes_nothing_else(tmp_path):
    changed = SOURCE.replace("# Title", "# Another title")
    path = tmp_path / "99_trial.py"
    path.write_text(changed, encoding="utf-8")
    stamped = stamp(path)
    assert re.sub("of-[0-9a-f]{8}", "", stamped) == re.sub("of-[0-9a-f]{8}", "", changed)
    assert lesson(tmp_path, stamped).cells[0].prose["zh"] == "# 标题"


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('# %% [markdown] tags=["en"]\n"""\nhello\n"""\n', "no Chinese twin"),
        ('# %% [markdown] tags=["en"]\n"""\nhello\n"""\n\n# %%\n1\n', "no Chinese twin"),
        ('# %% [markdown] tags=["zh"]\n"""\n你好\n"""\n', "follows no English"),
        ('# %% [markdown]\n"""\nhello\n"""\n', "says its language"),
        ('# %% [markdown] tags=["en"]\n"""\nhello\n"""\n\n# %% [markdown] tags=["zh"]\n"""\n你好\n"""\n', "no hash"),
        ("# %%\n### BEGIN SOLUTION\nx = 1\n", "in pairs"),
        ("# %%\n### END SOLUTION\nx = 1\n### BEGIN SOLUTION\n", "in pairs"),
        ("# %%\n### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION\n### END SOLUTION\n", "in pairs"),
    ],
)
def test_broken_rules_are_named(tmp_path, source, rule):
    with pytest.raises(LabError, match=rule):
        lesson(tmp_path, source)
