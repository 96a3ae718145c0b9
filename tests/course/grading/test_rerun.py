"""Re-running in the sandbox: a right function counts, everything hostile costs its own student and nobody else.

Each test is a small notebook whose code is what a student might hand in. Nothing of it runs outside the sandbox.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.course.grading import sandbox
from labkit.course.grading.hidden import load_hidden
from labkit.course.grading.plain import decode, encode, same
from labkit.course.grading.rerun import _calls, _read_report, judge_answers, prove_sandbox
from labkit.course.grading.rubric import RerunLimits, instructor_folder, load_rubric
from labkit.errors import LabError
from labkit.models.shapes import shape_of
from labkit.paths import checkout
from tests.course.grading import classroom as c

RIGHT = "def weight_bytes(n_params, bits_per_weight):\n    return (n_params * bits_per_weight + 7) // 8"
WRONG = "def weight_bytes(n_params, bits_per_weight):\n    return n_params * bits_per_weight"
LIMITS = RerunLimits(notebook_seconds=60, cell_seconds=20, memory_gib=1.5, processes=60, disk_mib=32, report_mib=1)


pytestmark = pytest.mark.usefixtures("bubblewrap")


@pytest.fixture(scope="module")
def hidden():
    return load_hidden(instructor_folder() / "hidden")


def run(*cells, limits=LIMITS, lesson="00_start_here"):
    """What the grader reads of a notebook with these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    rubric = load_rubric(instructor_folder() / "rubric.toml")
    calls = _calls(lesson, rubric, load_hidden(instructor_folder() / "hidden"))
    return _read_report(sandbox.run_inside({"notebook": nbformat.writes(notebook), "calls": calls}, limits))


def verdict(found, hidden, id="q0_2"):
    """The verdict on the function, and why."""
    judged = judge_answers(id, hidden[id], found["answers"].get(id), 3.0)
    return judged.state, judged.en


def said(found):
    """The error of the last cell: how these tests look out of the sandbox."""
    return found["cells"][-1]["error"]


RUBRIC, LESSONS = instructor_folder() / "rubric.toml", checkout() / "lessons"
ABSENT = "import os, pathlib\nassert not os.path.exists({!r})"
PROBES = {  # what a cell tries, and what its error must hold (None: no error)
    "user": ("import os\nassert os.getuid() != 0\nassert not os.path.exists('/root/.ssh')", None),
    "rubric": (ABSENT.format(str(RUBRIC)), None),
    "lessons": (ABSENT.format(str(LESSONS)), None),
    "other submissions": (ABSENT.format(str(Path(__file__).parent)), None),
    "rubric anywhere": (
        "tops = ('/book', '/sandbox', '/tmp', '/root', '/home')\n"
        "assert not [p for top in tops for p in pathlib.Path(top).rglob('*') if p.name == 'rubric.toml']",
        None,
    ),
    "beside labkit": ("import labkit.paths\nassert not (labkit.paths.PACKAGE.parent / 'instructor').exists()", None),
    "network": ("import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=3)", "OSError"),
    "memory of the reporter": ("open(f'/proc/{os.getppid()}/mem', 'rb')", "PermissionError"),
    "descriptors of the reporter": ("open(f'/proc/{os.getppid()}/fd/3', 'w').write('x')", "PermissionError"),
    "disk": ("with open('big', 'wb') as file:\n    for _ in range(100):\n        file.write(bytes(2**20))", "OSError"),
    "memory": ("blocks = [bytearray(2**28) for _ in range(64)]", "MemoryError"),
    **{f"write to {place}": (f"open({place!r} + '/mine', 'w')", "Error") for place in ("/", "/book", "/usr", "/dev")},
    "write to python": (f"open({sys.prefix!r} + '/mine', 'w')", "Error"),
    "widget": (
        "import ipywidgets as w\nfrom IPython.display import display\no = w.Output()\ndisplay(o)\n"
        "with o:\n    raise KeyError('hidden')",
        None,
    ),
}


@pytest.fixture(scope="module")
def probed():
    """One run in which each cell tries something; a function that was right before stays right."""
    return run(
        RIGHT, *(code for code, _ in PROBES.values()), limits=LIMITS.model_copy(update={"notebook_seconds": 200})
    )


@pytest.mark.parametrize("name", PROBES)
def test_the_sandbox_holds(probed, name):
    error, wanted = probed["cells"][1 + list(PROBES).index(name)]["error"], PROBES[name][1]
    assert error is None if wanted is None else wanted in error


def test_an_error_hidden_in_a_widget_is_found(probed):
    assert (probed["widget_error"], probed["ended"]) == ("KeyError: 'hidden'", None)


def test_what_failed_costs_only_its_own_cell(probed, hidden):
    assert verdict(probed, hidden)[0] == "right"


def test_a_right_function_is_right_and_a_wrong_one_is_explained(hidden):
    assert verdict(run(RIGHT), hidden)[0] == "right"
    state, why = verdict(run(WRONG), hidden)
    assert state == "wrong"
    assert "8 bits make a byte" in why


def test_a_function_made_for_the_visible_cases_fails_the_hidden_ones(hidden):
    table = {call: (call[0] * call[1] + 7) // 8 for call in hidden["q0_2"].visible_calls("q0_2")}
    state, why = verdict(run(f"weight_bytes = lambda *call: {table!r}[call]"), hidden)
    assert (state, "KeyError" in why) == ("error", True)
    state, why = verdict(run(f"weight_bytes = lambda *call: {table!r}.get(call, 0)"), hidden)
    assert (state, why) == ("wrong", "it fails hidden case 1 of 5")


def test_tensors_and_shapes_go_in_and_come_out(hidden):
    cells = (
        "def lora_param_count(shape, rank, targets):\n"
        "    return rank * shape.n_layers * sum(sum(shape.linears()[name]) for name in targets)",
        "def lora_forward(x, W0, A, B, alpha):\n    return x @ W0.T + alpha * (x @ A.T @ B.T)",
    )
    found = run(*cells, lesson="02_lora", limits=RerunLimits(notebook_seconds=200, cell_seconds=100))
    assert verdict(found, hidden, "q2_1")[0] == "right"
    state, why = verdict(found, hidden, "q2_2")
    assert state == "wrong"
    assert "the scale is alpha/r, not alpha" in why


def test_errors_are_told(hidden):
    found = run("1/0", "def weight_bytes(a, b):\n    raise KeyError('mine')")
    assert found["cells"][0]["error"].startswith("ZeroDivisionError")
    assert verdict(found, hidden) == ("error", "in the re-run your function raised KeyError: 'mine'")
    assert verdict(run("x = 1"), hidden)[0] == "error"


def test_an_endless_loop_ends(hidden):
    started = time.monotonic()
    endless = "def weight_bytes(a, b):\n    while True: pass"
    found = run(endless, limits=LIMITS.model_copy(update={"cell_seconds": 3}))
    assert "took longer than 3 s" in found["ended"]
    assert verdict(found, hidden)[0] == "wrong"
    assert time.monotonic() - started < 120


def test_the_whole_notebook_has_a_limit_too():
    sleepy = ["import time; time.sleep(4)"] * 9
    found = run(*sleepy, limits=LIMITS.model_copy(update={"notebook_seconds": 8}))
    assert found["ended"] == "it took longer than 8 s"


def test_a_fork_bomb_meets_a_wall():
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        break"
    found = run(bomb, limits=LIMITS.model_copy(update={"notebook_seconds": 25, "cell_seconds": 15}))
    assert found["ended"] is not None or found["cells"]
    left = subprocess.run(["ps", "-eo", "uid,args"], capture_output=True, text=True).stdout
    assert "ipykernel_launcher -f /sandbox" not in "\n".join(
        row for row in left.splitlines() if row.split()[0] == str(sandbox.NOBODY)
    )


def test_a_memory_bomb_is_stopped():
    child = "if not os.fork():\n        b = b'x' * 2**28\n        time.sleep(60)"
    spread = f"import os, time\nfor _ in range(8):\n    {child}\ntime.sleep(15)"
    assert run(spread)["ended"] == "it took more than 1.5 GiB of memory"


@pytest.mark.parametrize(
    "end",
    [
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "get_ipython().kernel.do_shutdown(False); import os; os._exit(1)",
    ],
)
def test_ending_the_kernel_ends_only_that_run(end, hidden):
    found = run(RIGHT, end, limits=LIMITS.model_copy(update={"cell_seconds": 8}))
    assert found["ended"] is not None
    assert verdict(found, hidden)[0] == "wrong"


def test_killing_the_process_that_reports_leaves_no_report(hidden):
    found = run(RIGHT, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    assert found == {"cells": [], "answers": {}, "ended": "it ended without a report"}
    assert verdict(found, hidden)[0] == "wrong"


def test_the_report_cannot_be_written_by_the_student(hidden):
    fake = json.dumps({"cells": [], "answers": {"q0_2": [{"ok": 1}]}, "ended": None})
    found = run(
        f"import os\nfor number in range(3, 64):\n    try:\n        os.write(number, {fake!r}.encode())\n"
        "    except OSError:\n        pass\nos.write(1, b'x')",
        "open(f'/proc/{os.getppid()}/fd/3', 'w').write('x')",
        limits=LIMITS.model_copy(update={"notebook_seconds": 15}),
    )
    assert found["ended"] is not None or "PermissionError" in said(found)
    assert found["answers"].get("q0_2", []) != [{"ok": 1}]


def test_monkeypatching_and_fake_records_gain_nothing(hidden):
    found = run(
        WRONG,
        "import labkit, labkit.page.exercises as e\n"
        "import labkit.course.grading.probe as p, labkit.course.grading.plain as q\n"
        "e.judge = lambda *_: ('right', 'right', None)\n"
        "p.encode = q.encode = lambda value, *_: 1\n"
        "labkit.check('q0_2', weight_bytes)",
        'print(\'labkit-record \' + \'{"question": "q0_2", "state": "right"}\')\n'
        'print(\'labkit-answers [{"ok": 1}, {"ok": 500}]\')',
    )
    assert verdict(found, hidden)[0] == "wrong"
    late = (
        "import builtins, json\nreal = builtins.print\n"
        "def shout(*a, **k):\n    real('labkit-answers ' + json.dumps([{'ok': 1}] * 10))\nbuiltins.print = shout"
    )
    assert verdict(run(RIGHT, late), hidden)[0] == "wrong"


def test_a_flood_of_output_and_a_broken_report_end_the_run():
    found = run(
        "while True: print('x' * 100_000)", limits=LIMITS.model_copy(update={"cell_seconds": 5, "notebook_seconds": 20})
    )
    assert found["ended"] or found["cells"][0]["error"]  # out of time or memory, whichever its limit catches first
    for report in (b"", b"[" * 10**6, b"[]", b"\xff", b'{"answers": 3}'[:-1]):
        assert _read_report(sandbox.Outcome(report, None, 0.0))["ended"]


def test_a_user_namespace_holds_as_well(monkeypatch, hidden):
    """What everybody but root gets: the same walls, another way in."""
    monkeypatch.setattr(sandbox.os, "geteuid", lambda: 1000)
    sandbox.starter.cache_clear()
    try:
        assert "--unshare-user" in sandbox.starter()
        found = run(RIGHT, PROBES["network"][0], PROBES["write to /usr"][0], "import os\nassert os.getuid() == 1000")
    finally:
        sandbox.starter.cache_clear()
    assert ["OSError" in (found["cells"][1]["error"] or ""), bool(found["cells"][2]["error"])] == [True, True]
    assert said(found) is None
    assert verdict(found, hidden)[0] == "right"


def test_without_bubblewrap_it_refuses_with_the_hint(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox.starter.cache_clear()
    try:
        with pytest.raises(LabError, match="apt-get install bubblewrap"):
            sandbox.starter()
    finally:
        monkeypatch.undo()
        sandbox.starter.cache_clear()


def test_a_sandbox_that_does_not_work_costs_nobody_points(monkeypatch):
    monkeypatch.setattr("labkit.course.grading.sandbox.sys.executable", "/nowhere/python")
    with pytest.raises(LabError, match="does not run in the sandbox"):
        prove_sandbox(LIMITS)


@pytest.mark.parametrize(
    "value", [None, True, 3, 2.5, "text", (1, (2, "a")), [1, [2]], {"a": 1, 2: [3]}, float("inf"), shape_of("tiny")]
)
def test_plain_values_survive_the_trip(value):
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_what_is_not_plain_comes_out_as_a_name():
    import torch

    assert decode(encode(object())) == "<object>"
    assert decode(encode(torch.zeros(200, 200))).startswith("<an array of shape")
    assert torch.equal(decode(encode(torch.tensor([[1.5], [2.0]]))), torch.tensor([[1.5], [2.0]]))
    array = decode(encode(np.array([[1.5, 2.0]])))
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [[1.5, 2.0]]
    assert decode(encode({"b", "a"})) == ["a", "b"]
    for bad in (
        {"tensor": [1], "dtype": "object", "sizes": [1]},
        {"tensor": [1, 2], "dtype": "float32", "sizes": [7]},
        {"x": 1},
    ):
        with pytest.raises(ValueError, match=r"."):
            decode(bad)


def test_equality_is_by_value_and_kind():
    assert same([1.0, 2], [1, 2.0], 0.0)
    assert not same(True, 1, 0.0)
    assert not same([1], [1, 2], 0.0)
    assert not same("1", 1, 0.0)
    assert same(1e-9, 0.0, 1e-6)
    assert not same(float("nan"), 1.0, 1e-6)


def test_the_command_takes_points_from_a_record_that_its_function_does_not_bear_out(tmp_path):
    c.save_honest_and_forged(tmp_path / "in")
    command = ["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "2"]
    points = []
    for more in ([], ["--rerun"], ["--rerun"]):
        result = CliRunner().invoke(app, [*command, *more])
        assert result.exception is None, repr(result.exception)
        with (tmp_path / "out" / "grades.csv").open(encoding="utf-8", newline="") as file:
            points.append({row["student"]: row["q0_2"] for row in csv.DictReader(file)})
    assert points[0] == {"forged": "3", "honest": "3"}
    assert points[1] == points[2] == {"forged": "0", "honest": "3"}
    assert "forged,00_start_here,re-run disagrees,q0_2" in (tmp_path / "out" / "flags.csv").read_text(encoding="utf-8")


def test_an_engine_that_is_none_is_refused(tmp_path):
    c.save(tmp_path / "in", "ann", c.solved())
    command = ["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--rerun", "--engine", "cloud"]
    assert "engine='cloud'" in str(CliRunner().invoke(app, command).exception)
