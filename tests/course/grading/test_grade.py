"""`labkit grade` on a class of synthetic submissions made from the real notebooks: good, partial, unrun, hostile.

The independent reference is a table of points that was worked out by hand from what each student did.
"""

import csv
import functools
import json
import shutil
import stat
import struct
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.course.build import built_files, student_folder
from labkit.course.grading.read import MEDDLING
from labkit.course.grading.rubric import instructor_folder, load_rubric
from labkit.course.grading.written import COLUMNS, read_marks
from labkit.course.release import make_manifest
from labkit.errors import LabError
from labkit.page.records import PREFIX
from tests.course.grading import classroom as c

SCRIPT = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
EVIL_NAME = "=HYPERLINK(0)"
BOLD_NAME = "<b onmouseover=alert(1)>x"
LESSONS = ("00_start_here", "01_memory", "02_lora", "03_nf4", "04_qlora_sft")


def good(folder):
    for lesson in LESSONS:
        c.save(folder, "ada", c.solved(lesson), lesson)
        c.save(folder, "bo", c.as_colab(c.solved(lesson, "zh")), lesson)


def partial(folder):
    book = c.solved()
    c.answer(book, "q0_1", "mine = (3.2, 3.44)", (3.2, 3.44))
    c.answer(book, "q0_2", "mine = weight_bytes", lambda n, bits: n * bits)
    c.answer(book, "q0_3", "mine = ...", ...)
    c.save(folder, "cai", book)
    raised = c.solved()
    c.answer(raised, "q0_2", "mine = weight_bytes", lambda n, bits: 1 / 0)
    cell = c.cell_of(raised, "q0_3")
    cell["outputs"] = [{"output_type": "error", "ename": "NameError", "evalue": "seconds", "traceback": []}]
    c.save(folder, "raiser", raised)


def careless(folder):
    unrun = json.loads((student_folder("en") / "00_start_here.ipynb").read_text())
    c.save(folder, "dan", unrun)
    order = c.solved()
    c.code_cells(order)[2]["execution_count"] = 90
    c.code_cells(order)[4]["outputs"] = [
        {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    ]
    c.save(folder, "eve", order)
    changed = c.solved()
    c.cell_of(changed, "q0_1")["source"] = "answer = (3.45, 3.21)\n" + 'check("q0_1", answer)'
    edited = c.cell_of(changed, "q0_3")
    edited["source"] = 'mine = 275.3\ncheck("q0_3", mine + 0)'
    edited["outputs"] = [c.printed("q0_3", 275.3, edited["source"])]
    c.save(folder, "fay", changed)
    messy = c.solved()
    twice = json.loads(json.dumps(c.cell_of(messy, "q0_1")))
    messy["cells"].append(twice)
    messy["cells"].remove(c.cell_of(messy, "q0_2"))
    c.save(folder, "mia", messy, "Copy of homework (1)")
    c.save(folder, "two", c.solved())
    c.save(folder, "two", unrun, "00_start_here (1)")


def forgers(folder):
    forged = c.solved()
    _, put = c.record_of(forged, "q0_1")
    put(value=[1.0, 2.0])
    _, put = c.record_of(forged, "q0_2")
    put(value=[1, 2, 3, 4, 5])
    _, put = c.record_of(forged, "q0_3")
    put(value={"a": [["deep"] * 50]}, seconds=-5.0)
    c.save(folder, "gil", forged)
    moved = c.solved()
    cell = c.cell_of(moved, "q0_1")
    c.code_cells(moved)[1]["outputs"] += cell["outputs"]
    cell["outputs"] = []
    _, put = c.record_of(moved, "q0_2")
    put(profile="gpu", model="qwen3-1.7b", gpu="Tesla T4", peak_bytes=40 * 2**30)
    c.save(folder, "hal", moved)
    garbage = c.solved()
    for id, line in (("q0_1", "{"), ("q0_2", '{"question": "q0_2"}'), ("q0_3", "[" * 30_000)):
        c.cell_of(garbage, id)["outputs"] = [{"output_type": "stream", "name": "stdout", "text": PREFIX + line}]
    c.save(folder, "tom", garbage)
    huge = c.solved("04_qlora_sft")
    _, put = c.record_of(huge, "q4_4")
    put(value={"choice": {"learning_rate": 1e-3, "steps": "x" * 99, "batch": 10**12}, "heldout_loss": 1.0,
               "baseline": 2.0, "row_budget": 64})  # fmt: skip
    _, put = c.record_of(huge, "q4_3")
    put(value=10**60)
    c.save(folder, "uma", huge, "04_qlora_sft")
    untrained = c.solved("04_qlora_sft")
    for cell in c.code_cells(untrained):
        cell["outputs"] = [output for output in cell["outputs"] if "r4_1" not in json.dumps(output)]
    c.save(folder, "pam", untrained, "04_qlora_sft")


def broken(folder):
    c.save(folder, "ida", c.solved_text("00_start_here", "en")[:-200])
    kernel = c.solved()
    kernel["metadata"]["kernelspec"] = {"name": "ir", "language": "R", "display_name": "R"}
    c.save(folder, "jo", kernel)
    c.save(folder, "kim", b"[" * 3_000_000)
    c.save(folder, "kim", b'{"cells": [' + b'{"a":' * 200_000, "01_memory")
    with c.save(folder, "lee", b"{").open("r+b") as file:
        file.truncate(200 * 2**20)
    large = c.solved()
    c.code_cells(large)[3]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * (30 * 2**20)}]
    c.save(folder, "large", large)
    strange = {"cell_type": "code", "source": ["check('q0_1', 1)", None], "outputs": [1, {"data": []}]}
    cells = [None, 7, {"cell_type": "code"}, {"cell_type": "code", "source": 3, "outputs": {"a": 1}}, strange]
    odd = {"cells": cells}
    c.save(folder, "odd", odd | {"metadata": [1]})
    c.save(folder, "empty", b"")
    c.save(folder, "binary", bytes(range(256)) * 10)
    widget = c.solved()
    outputs = [{"output_type": "error", "ename": "KeyError", "evalue": "hidden", "traceback": []}]
    widget["metadata"]["widgets"] = {
        "application/vnd.jupyter.widget-state+json": {"state": {"m": {"state": {"outputs": outputs}}}}
    }
    c.save(folder, "widget", widget)


def archives(folder):
    text = c.solved_text("00_start_here", "en").encode()
    link = zipfile.ZipInfo("02_lora.ipynb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    names = ("00_start_here.ipynb", "../../up.ipynb", "/etc/abs.ipynb", "C:\\win.ipynb")
    members = [(name, text) for name in names]
    members += [(link, b"/etc/passwd"), ("more.zip", c.packed([("01_memory.ipynb", text)]))]
    (folder / "ned").mkdir()
    (folder / "ned" / "work.zip").write_bytes(c.packed(members))
    (folder / "ned" / "linked.ipynb").symlink_to(folder / "ada" / "00_start_here.ipynb")
    (folder / "ned" / "all").symlink_to(folder / "ada")
    bomb = c.packed([("00_start_here.ipynb", b" " * (120 * 2**20)), ("01_memory.ipynb", text)])
    (folder / "ola.zip").write_bytes(bomb)
    liar = bytearray(c.packed([("00_start_here.ipynb", b" " * (60 * 2**20))]))
    struct.pack_into("<I", liar, liar.rindex(b"PK\x01\x02") + 24, 1000)
    (folder / "liar.zip").write_bytes(bytes(liar))
    (folder / "torn.zip").write_bytes(bomb[:200])
    (folder / "flat_00_start_here.ipynb").write_bytes(text)


def markup(folder):
    book = c.solved()
    for cell in c.code_cells(book):
        cell["outputs"].append({"output_type": "display_data", "data": {"text/html": SCRIPT, "text/plain": SCRIPT}})
    c.answer(book, "q0_1", "mine = 1", SCRIPT)
    c.answer(book, "q0_2", "mine = 1", lambda n, bits: exec("raise ValueError(SCRIPT)", {"SCRIPT": SCRIPT}))
    c.save(folder, BOLD_NAME, book)
    formula = c.solved("02_lora")
    text = f"=cmd|' /C calc'!A0 {c.TEXT} {SCRIPT} \ud800 \x07"
    source = 'explanation = "..."\ncheck("q2_4", explanation)'
    cell = c.cell_of(formula, "q2_4")
    cell["source"], cell["outputs"] = source, [c.printed("q2_4", text, source)]
    c.save(folder, EVIL_NAME, json.dumps(formula), "02_lora")
    for name in ("rob", "sue"):
        copied = c.solved("02_lora")
        for id in ("q2_1", "q2_2", "q2_3"):
            cell = c.cell_of(copied, id)
            cell["source"] += f"\nlonely_variable_of_{id} = 'nobody else writes this'"
            _, put = c.record_of(copied, id)
            put(cell_sha256=c.cell_hash(cell["source"]), seconds=len(name) * 0.1)
        cell = c.cell_of(copied, "q2_4")
        text = f"Nothing moves{'!' if name == 'rob' else '.'} My two matrices begin at zero. "
        text += "Each gradient holds the other matrix. "
        text += "That is why Adam has nothing to divide and my curve is a straight line until the last of the steps."
        cell["outputs"] = [c.printed("q2_4", text, cell["source"], seconds=1.5 if name == "rob" else 2.5)]
        c.save(folder, name, copied, "02_lora")


@functools.cache
def manifest():
    """A released manifest on disk: made once, not in every run."""
    path = Path(tempfile.mkdtemp()) / "manifest.json"
    path.write_text(json.dumps(make_manifest()), encoding="utf-8")
    return str(path)


def run(submissions, out, *more, workers=1):
    command = ["grade", str(submissions), "--out", str(out), "--manifest", manifest(), "--workers", str(workers)]
    result = CliRunner().invoke(app, [*command, *more])
    assert result.exception is None, repr(result.exception)
    return result


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """The whole class, graded once: grades by student, flags by student, the report's folder."""
    folder, out = tmp_path_factory.mktemp("class"), tmp_path_factory.mktemp("report")
    for hand_in in (good, partial, careless, forgers, broken, archives, markup):
        hand_in(folder)
    started = time.monotonic()
    run(folder, out, workers=2)
    flags = {}
    for row in table(out / "flags.csv"):
        flags.setdefault(row["student"], []).append((row["flag"], row["question"], row["detail"]))
    grades = {row["student"]: row for row in table(out / "grades.csv")}
    return SimpleNamespace(folder=folder, out=out, grades=grades, flags=flags, seconds=time.monotonic() - started)


# Points by hand: q0_1 2, q0_2 3, q0_3 2 in lesson 00; nothing elsewhere unless it says so.
POINTS = {
    "cai": 0, "raiser": 2, "dan": 0, "eve": 7, "fay": 5, "mia": 4, "two": 7, "gil": 0, "hal": 5, "tom": 0, "uma": 7,
    "ida": 0, "jo": 7, "kim": 0, "lee": 0, "large": 7, "odd": 0, "empty": 0, "binary": 0, "widget": 7, "ned": 7,
    "ola": 7, "liar": 0, "torn": 0, "flat": 7, "rob": 11, "sue": 11,
}  # fmt: skip


def test_the_points_are_those_worked_out_by_hand(marked):
    assert {name: float(marked.grades[name]["total"]) for name in POINTS} == POINTS
    most = sum(v for k, v in {"00": 7, "01": 10, "02": 11, "03": 15, "04": 14}.items())
    assert float(marked.grades["ada"]["total"]) == most
    assert len(marked.grades) >= 12


def test_columns_are_student_questions_total(marked):
    columns = list(marked.grades["ada"])
    assert (columns[0], columns[-1]) == ("student", "total")
    assert columns[1:4] == ["q0_1", "q0_2", "q0_3"]
    row = marked.grades["ada"]
    assert float(row["total"]) == sum(float(row[id] or 0) for id in columns[1:-1])


def test_a_notebook_that_colab_saved_gets_the_same(marked):
    colab, plain = ({k: v for k, v in marked.grades[name].items() if k != "student"} for name in ("bo", "ada"))
    assert colab == plain


EXPECTED_FLAGS = [
    ("dan", "not run", ""), ("eve", "out of order", ""), ("eve", "error", ""), ("fay", "changed after check", "q0_1"),
    ("fay", "edited check", "q0_3"), ("mia", "duplicate cell", "q0_1"), ("mia", "renamed", ""),
    ("two", "duplicate notebook", ""), ("gil", "record contradicts itself", "q0_1"), ("gil", "implausible", ""),
    ("gil", "record contradicts itself", "q0_2"), ("hal", "record elsewhere", "q0_1"), ("hal", "implausible", ""),
    ("tom", "record", ""), ("uma", "record contradicts itself", "q4_4"),
    ("pam", "implausible", "q4_4"), ("ida", "unreadable", ""),
    ("jo", "kernel", ""), ("kim", "unreadable", ""), ("lee", "too large", ""), ("empty", "unreadable", ""),
    ("binary", "unreadable", ""),
    ("widget", "widget error", ""), ("ned", "unsafe path", ""), ("ned", "link", ""),
    ("ned", "nested archive", ""), ("ola", "too large", ""), ("liar", "broken archive", ""),
    ("torn", "broken archive", ""),
    ("rob", "similar", ""), ("sue", "similar", ""),
]  # fmt: skip


@pytest.mark.parametrize(("student", "kind", "question"), EXPECTED_FLAGS)
def test_what_is_odd_is_flagged(marked, student, kind, question):
    assert (kind, question) in {(found, id) for found, id, _ in marked.flags[student]}


def test_a_clean_submission_has_no_flags(marked):
    assert "flat" not in marked.flags or {kind for kind, *_ in marked.flags["flat"]} <= {"renamed", "similar"}
    assert {kind for kind, *_ in marked.flags.get("ada", [])} <= {"similar"}  # bo is ada in Chinese


def test_similar_pairs_name_each_other(marked):
    detail = next(detail for kind, _, detail in marked.flags["rob"] if kind == "similar" and "like sue" in detail)
    assert "q2_4" in detail


def test_feedback_names_what_cost_points(marked):
    def page(name):
        return (marked.out / "feedback" / f"{name}.html").read_text(encoding="utf-8")

    assert "GB and GiB are swapped" in page("cai")
    assert "that is bits; 8 bits make a byte" in page("cai")
    assert "ZeroDivisionError" in page("raiser")
    assert "NameError: seconds" in page("raiser")
    assert "cells were not run" in page("dan")
    assert "changed after its check" in page("fay")
    assert "200 MiB" in page("lee")
    assert "not valid JSON" in page("ida")
    assert "a path that leads out of the archive" in page("ned")
    assert "like sue" not in page("rob")


def test_the_four_states_are_told_apart(marked):
    page = (marked.out / "feedback" / "cai.html").read_text(encoding="utf-8")
    raiser = (marked.out / "feedback" / "raiser.html").read_text(encoding="utf-8")
    for state, text in (("not attempted", page), (">wrong<", page), (">error<", raiser), (">right<", raiser)):
        assert state in text


def test_chinese_notebooks_get_chinese_feedback(marked):
    page = (marked.out / "feedback" / "bo.html").read_text(encoding="utf-8")
    assert 'lang="zh"' in page
    assert "正确" in page


def test_no_page_runs_a_script_of_the_students(marked, visit):
    for name in (BOLD_NAME, EVIL_NAME):
        fits = [
            path
            for path in (marked.out / "feedback").iterdir()
            if path.name.startswith(name[:2].replace("<", "_").replace("=", "_"))
        ]
        assert len(fits) == 1
        seen = visit(fits[0].as_uri())
        assert seen.page.title() == name
        assert seen.page.locator("script, img, [onerror], [onmouseover], iframe, object").count() == 0
        assert (seen.errors, seen.refused) == ([], [])
    shown = visit(next((marked.out / "feedback").glob("_b*.html")).as_uri())
    assert "owned" in shown.page.inner_text("body")  # it is there, as text
    summary = visit((marked.out / "summary.html").as_uri())
    assert summary.errors == []
    assert summary.page.locator("script, img").count() == 0
    summary.page.get_by_text(BOLD_NAME).click()
    assert summary.page.title() == BOLD_NAME


def test_no_field_of_a_table_is_a_formula(marked):
    for name in ("grades.csv", "flags.csv", "written.csv"):
        with (marked.out / name).open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                assert [field for field in row if field.lstrip()[:1] in tuple("=+-@\t\r") and field] == []
    assert f"'{EVIL_NAME}" in marked.grades


def test_grading_again_gives_the_same_bytes_and_judges_nothing_again(marked, tmp_path):
    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = contents(marked.out)
    times = {path: path.stat().st_mtime_ns for path in (marked.out / ".kept").rglob("*.json")}
    run(marked.folder, marked.out)
    assert contents(marked.out) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    half = tmp_path / "half"  # interrupted: some results are there, and no report
    for number, path in enumerate(sorted(times)):
        if number % 2:
            copy = half / path.relative_to(marked.out)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    run(marked.folder, half)
    assert contents(half) == before


def test_the_class_as_one_zip_gets_the_same_grades(marked, tmp_path):
    packed = tmp_path / "export.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("ada", "cai", "ned"):
            for path in sorted((marked.folder / name).iterdir()):
                if not path.is_symlink():
                    archive.write(path, f"submissions/{name}/{path.name}")
    run(packed, tmp_path / "out")
    for row in table(tmp_path / "out" / "grades.csv"):
        assert row == marked.grades[row["student"]]


def test_marks_go_in_and_come_back(tmp_path):
    c.save(tmp_path / "in", "=ann", c.solved("02_lora"), "02_lora")
    out = tmp_path / "out"
    run(tmp_path / "in", out)
    (row,) = table(out / "written.csv")
    assert (row["student"], row["question"], row["points"]) == ("'=ann", "q2_4", "")
    assert table(out / "grades.csv")[0]["q2_4"] == ""
    for encoding, separator in (("utf-8-sig", ";"), ("gb18030", "\t")):
        with (out / "written.csv").open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, row.keys(), delimiter=separator)
            writer.writeheader()
            writer.writerow(row | {"points": "2.5", "comment": "=good, 好"})
        run(tmp_path / "in", out)
        assert table(out / "grades.csv")[0]["q2_4"] == "2.5"
        assert "=good, 好" in next((out / "feedback").iterdir()).read_text(encoding="utf-8")
        assert table(out / "written.csv")[0]["points"] == "2.5"


@pytest.mark.parametrize(
    ("points", "says"), [("9", "gives 0 to 3"), ("-1", "gives 0 to 3"), ("nan", "gives 0 to 3"), ("many", "a number")]
)
def test_a_mark_that_the_rubric_does_not_allow_names_its_row(tmp_path, points, says):
    row = dict.fromkeys(COLUMNS, "") | {"student": "ann", "question": "q2_4", "answer_id": "ab", "points": points}
    with (tmp_path / "written.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow(row)
    with pytest.raises(LabError, match=rf"row 2 \(ann, q2_4\).*{says}"):
        read_marks(tmp_path / "written.csv", load_rubric(instructor_folder() / "rubric.toml"))


def test_a_mark_does_not_outlive_its_answer(tmp_path):
    book = c.solved("02_lora")
    c.save(tmp_path / "in", "ann", book, "02_lora")
    out = tmp_path / "out"
    run(tmp_path / "in", out)
    text = (out / "written.csv").read_text(encoding="utf-8")
    (out / "written.csv").write_text(text.replace(",3,,,", ",3,3,,"), encoding="utf-8")
    run(tmp_path / "in", out)
    assert table(out / "grades.csv")[0]["q2_4"] == "3"
    cell = c.cell_of(book, "q2_4")
    cell["outputs"] = [c.printed("q2_4", "Quite another text. " * 8, cell["source"])]
    c.save(tmp_path / "in", "ann", book, "02_lora")
    run(tmp_path / "in", out)
    assert table(out / "grades.csv")[0]["q2_4"] == ""
    assert "mark lost" in {row["flag"] for row in table(out / "flags.csv")}


def test_the_report_never_lies_among_the_submissions(tmp_path):
    c.save(tmp_path, "ann", c.solved())
    result = CliRunner().invoke(app, ["grade", str(tmp_path), "--out", str(tmp_path / "report")])
    assert "among the submissions" in str(result.exception)


@pytest.mark.parametrize("what", ["nothing", "empty folder", "no zip"])
def test_nothing_to_grade_is_said(tmp_path, what):
    path = tmp_path / "in"
    if what == "empty folder":
        path.mkdir()
    if what == "no zip":
        path.write_bytes(b"not a zip")
    result = CliRunner().invoke(app, ["grade", str(path), "--out", str(tmp_path / "out")])
    assert str(path) in str(result.exception)


def test_the_grader_of_a_run_notebook_and_of_this_files_notebooks_agree(tmp_path):
    """The fixture's records are what a real run leaves: lesson 00, executed by nbclient, grades the same."""
    from labkit.course.execute import run_notebook, solution_notebooks

    (path,) = solution_notebooks(["00_start_here"], "en")
    assert run_notebook(path, lang="en", profile="tiny").ok
    executed = Path(path).parents[2] / "executed" / "en" / path.name
    c.save(tmp_path / "in", "real", executed.read_bytes())
    c.save(tmp_path / "in", "made", c.solved())
    run(tmp_path / "in", tmp_path / "out")
    made, real = ({k: v for k, v in row.items() if k != "student"} for row in table(tmp_path / "out" / "grades.csv"))
    assert made == real


def test_no_cell_of_the_book_itself_looks_like_meddling():
    for path, text in built_files(langs=("en",), solutions=True).items():
        if path.suffix == ".ipynb":
            cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            sources = ["".join(source) for source in cells]
            assert [source for source in sources if MEDDLING.search(source)] == [], path.name
    assert MEDDLING.search("from labkit.page.questions.q05 import read_table")
    assert MEDDLING.search("import labkit.page.exercises")
