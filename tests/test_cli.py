"""The command line is wiring: flags arrive, errors are one line with exit code 2, JSON is JSON."""

import json
import os
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from labkit.cli import COMMANDS, app
from labkit.commands import book
from labkit.console import print_error
from labkit.errors import LabError
from labkit.machine import Finding
from labkit.models.methods import Method, Step
from labkit.models.shapes import shape_of
from labkit.theory.memory import predict
from tests.chinese import CHINESE, english_left

invoke = CliRunner().invoke


def test_every_command_of_the_readme_has_help():
    listed = invoke(app, ["--help"]).stdout
    for command in ("doctor", "fetch", "lab", "build", "run", "memory", "dryrun", "lecture", "sft"):
        assert command in listed
        assert invoke(app, [command, "--help"]).exit_code == 0


def test_memory_prints_the_prediction_of_the_same_flags():
    flags = "--model qwen3-8b --method qlora --rank 16 --targets q_proj,v_proj --batch 2 --seq-len 512 --loss full"
    done = invoke(app, ["memory", *flags.split(), "--no-double-quant", "--no-checkpointing", "--keep-logits", "--json"])
    assert done.exit_code == 0
    method = Method(kind="qlora", rank=16, targets=("q_proj", "v_proj"), double_quant=False)
    step = Step(batch=2, seq_len=512, loss="full", checkpointing=False, keep_logits=True)
    printed, expected = json.loads(done.stdout), predict(shape_of("qwen3-8b"), method, step)
    assert printed["peak_allocated_bytes"] == expected.peak_allocated_bytes == sum(printed["components"].values())
    keys = [
        "settings",
        "trainable_params",
        "total_params",
        "static_bytes",
        "peak_allocated_bytes",
        "peak_phase",
        "components",
    ]
    assert set(keys) <= printed.keys()


def test_dryrun_takes_the_flags_of_memory_and_prints_the_same_object():
    flags = "--model smollm2-135m --method qdora --rank 4 --targets q_proj --batch 2 --seq-len 32 --loss chunked --json"
    traced, predicted = (json.loads(invoke(app, [command, *flags.split()]).stdout) for command in ("dryrun", "memory"))
    assert traced.pop("peak_operation").startswith("aten.")
    assert traced.keys() == predicted.keys()
    same = ("settings", "trainable_params", "total_params")
    assert {name: traced[name] for name in same} == {name: predicted[name] for name in same}
    assert traced["peak_allocated_bytes"] == sum(traced["components"].values())
    assert traced["peak_allocated_bytes"] == pytest.approx(predicted["peak_allocated_bytes"], rel=0.03)


def test_dryrun_measures_where_there_is_a_gpu_and_says_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    flags = ["dryrun", "--model", "tiny", "--method", "lora", "--seq-len", "32", "--measure"]
    lines = invoke(app, flags).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["load", "forward", "backward", "optimizer"]
    assert all("not measured here" in line for line in lines[2:6])
    printed = json.loads(invoke(app, [*flags, "--json"]).stdout)
    assert printed["measured"] is None
    assert len(printed["phases"]) == 4


def test_dryrun_shows_prediction_and_trace_side_by_side():
    done = invoke(app, ["dryrun", "--model", "smollm2-135m", "--method", "lora", "--seq-len", "32"])
    assert done.exit_code == 0
    for text in ("predicted, GiB", "dry run, GiB", "ratio", "peak of backward", "peak in "):
        assert text in done.stdout


def test_modules_are_a_flag_and_leave_no_say_to_targets():
    words = ["memory", "--model", "smollm2-135m", "--method", "spectrum", "--modules", "3.up_proj,4.q_proj", "--json"]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert found["trainable_params"] == 576 * 1536 + 576 * 576
    for clash in (["--targets", "q_proj"], ["--layers", "0"]):
        assert isinstance(CliRunner().invoke(app, [*words, *clash]).exception, LabError)


def test_both_commands_have_the_same_flags():
    memory, dryrun = (
        invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout for command in ("memory", "dryrun")
    )
    found = [set(re.findall(r"--[a-z-]+", text)) for text in (memory, dryrun)]
    assert found[0] - found[1] == {"--gpu"}
    assert found[1] - found[0] == {"--measure"}
    assert {"--model", "--kbit-prepare", "--no-kbit-prepare", "--json"} <= found[1]


def test_the_lectures_forty_million_are_eighty_seven():
    done = invoke(app, ["memory", "--model", "qwen3-8b", "--rank", "32", "--json"])
    assert json.loads(done.stdout)["trainable_params"] == 87_293_952


@pytest.mark.parametrize(
    ("command", "echo"),
    [
        (["memory", "--rank", "0"], "rank=0"),
        (["memory", "--model", "qwen4-7b"], "qwen4-7b"),
        (["memory", "--model", "/no/such/folder"], "/no/such/folder"),
        (["memory", "--targets", "q_proj,z_proj"], "z_proj"),
        (["memory", "--layers", "3-x"], "3-x"),
        (["dryrun", "--rank", "0"], "rank=0"),
        (["dryrun", "--model", "qwen4-7b"], "qwen4-7b"),
        (["run", "42"], "42"),
        (["run", "--lang", "fr"], "fr"),
        (["build", "--lang", "fr"], "fr"),
        (["sft", "--out", "x", "--profile", "huge"], "huge"),
        (["sft", "--out", "x", "--profile", "tiny", "--rank", "0"], "rank=0"),
        (["sft", "--out", "x", "--profile", "tiny", "--alpha", "-1"], "alpha=-1"),
        (["sft", "--out", "x", "--profile", "tiny", "--steps", "0"], "steps=0"),
        (["sft", "--out", "x", "--profile", "tiny", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_echoed_and_nothing_is_left(command, echo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(app, command)
    assert isinstance(done.exception, LabError)
    assert echo in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line_and_exit_code_two():
    done = subprocess.run([sys.executable, "-m", "labkit.cli", "memory", "--rank", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == "error rank=0: rank must be a whole number, at least 1. Fix: try rank=8."


def test_doctor_answers_in_json_and_its_exit_code_says_whether_lessons_run(monkeypatch):
    monkeypatch.setenv("LABKIT_PROFILE", "tiny")
    done = invoke(app, ["doctor", "--json"])
    report = json.loads(done.stdout)
    assert report["profile"] == "tiny"
    assert {finding["status"] for finding in report["findings"]} <= {"ok", "warn", "fail"}
    assert done.exit_code == (1 if report["blocked_lessons"] else 0)


def test_lab_is_on_loopback_with_its_token(monkeypatch):
    calls = []
    monkeypatch.setattr(book.subprocess, "call", lambda command, cwd: calls.append(command) or 0)
    assert invoke(app, ["lab", "--no-browser", "--lang", "zh"]).exit_code == 0
    command = " ".join(calls[0])
    assert "--ServerApp.ip=127.0.0.1" in command
    assert "notebooks/zh/00_start_here.ipynb" in command
    assert "--no-browser" in command
    assert "token" not in command  # Jupyter makes one itself; an empty one would switch it off


def test_lab_opens_the_notebooks_of_the_students_language(monkeypatch):
    calls = []
    monkeypatch.setattr(book.subprocess, "call", lambda command, cwd: calls.append(" ".join(command)) or 0)
    monkeypatch.setenv("LABKIT_LANG", "zh")
    for flags in ([], ["--lang", "en"]):
        assert invoke(app, ["lab", *flags]).exit_code == 0
    monkeypatch.delenv("LABKIT_LANG")
    assert invoke(app, ["lab"]).exit_code == 0
    assert ["notebooks/zh/00_" in call for call in calls] == [True, False, False]


@pytest.mark.parametrize(
    "command",
    [
        "doctor --profile tiny",
        "memory --gpu 3",
        "memory --model qwen3-8b --method full --gpu 1",
        "dryrun --model tiny --method lora --seq-len 32",
        "snr tiny --out scan.jsonl",
        "build --check",
    ],
)
def test_a_chinese_student_reads_chinese_in_tables_that_line_up(command, monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    monkeypatch.setenv("COLUMNS", "160")
    done = invoke(app, command.replace("scan.jsonl", str(tmp_path / "scan.jsonl")).split())
    assert (done.exception, done.exit_code) == (None, 0)
    assert CHINESE.search(done.stdout)
    tables = re.findall(r"(?:^[┏┃┡│└├].*\n)+", done.stdout, flags=re.M)
    assert all(len({cell_len(line) for line in table.splitlines()}) == 1 for table in tables)
    assert [line for line in done.output.splitlines() if english_left(line)] == []


def test_the_doctor_names_in_chinese_what_is_in_a_lessons_way(monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    monkeypatch.setattr("labkit.doctor.examine", lambda profile: [Finding("gpu", "fail", "-", "-")])
    done = invoke(app, ["doctor", "--profile", "tiny"])
    assert (done.exit_code, "第 04 节还不能运行：显卡" in done.stdout) == (1, True)
    printed = json.loads(invoke(app, ["doctor", "--profile", "tiny", "--json"]).stdout)
    assert printed["blocked_lessons"]["04"] == ["gpu"]  # names stay, for programs


NEEDED = {"sweep": ["no.toml"], "snr": ["tiny"], "release": ["--out", "x"], "grade": [".", "--out", "x"]}


@pytest.mark.parametrize("name", [command.__name__ for command in COMMANDS])
def test_an_unknown_language_is_refused_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABKIT_LANG", "fr")
    done = invoke(app, [name, *NEEDED.get(name, [])])
    error = "LABKIT_LANG='fr': the book speaks en and zh. Fix: set LABKIT_LANG=en or LABKIT_LANG=zh."
    assert str(done.exception) == error
    assert (done.output, list(tmp_path.iterdir())) == ("", [])


def test_an_error_of_a_chinese_student_says_in_chinese_what_is_the_fix(monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    print_error(LabError("rank=0", "rank must be at least 1", "try rank=8"))
    assert capsys.readouterr().err == "错误 rank=0：rank must be at least 1。解决办法：try rank=8。\n"


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONIOENCODING": None}, "tiny 就在本书里"),  # Python takes UTF-8 where nothing is chosen
        ({"PYTHONIOENCODING": "ascii"}, "tiny ?????"),
    ],
)
def test_a_terminal_that_is_not_utf8_gets_what_it_can_show(settings, shown):
    environment = {**os.environ, "LABKIT_LANG": "zh", "PYTHONUTF8": None, "LANG": None, **settings}
    environment = {name: value for name, value in environment.items() if value is not None}
    command = [sys.executable, "-m", "labkit.cli", "fetch", "--profile", "tiny"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith(shown)
