"""Results files: a row is there whole or not at all, and a second writer is refused."""

import json
import subprocess
import sys

import pytest

from labkit.errors import LabError
from labkit.jsonl import append_row, locked, read_rows, repair


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def test_rows_come_back_in_order(path):
    rows = [{"id": "a", "loss": 1.5}, {"id": "b", "text": "中文 \n \u2028"}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert repair(path) == 0


def test_of_two_rows_with_one_id_the_last_counts(path):
    for row in ({"id": "a", "error": "x"}, {"id": "b"}, {"id": "a", "error": None}):
        append_row(path, row)
    assert read_rows(path) == [{"id": "b"}, {"id": "a", "error": None}]


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_last_line_is_left_out_and_cut_off(path, cut):
    append_row(path, {"id": "a"})
    whole = path.read_bytes()
    append_row(path, {"id": "torn"})
    torn = path.read_bytes()[: len(whole) + cut]
    path.write_bytes(torn)
    assert read_rows(path) == [{"id": "a"}]
    assert repair(path) == cut
    append_row(path, {"id": "b"})
    assert [row["id"] for row in read_rows(path)] == ["a", "b"]


def test_a_file_that_is_torn_in_its_first_line_becomes_empty(path):
    path.write_bytes(b'{"id"')
    assert repair(path) == 5
    assert read_rows(path) == []


def test_damage_in_the_middle_is_named_with_its_line(path):
    path.write_text('{"id": "a"}\n{"id": \n[1]\n')
    with pytest.raises(LabError, match="line 2"):
        read_rows(path)
    path.write_text('{"id": "a"}\n[1]\n')
    with pytest.raises(LabError, match="not an object"):
        read_rows(path)


def test_a_missing_file_is_explained(path):
    with pytest.raises(LabError, match="cannot be read"):
        read_rows(path)


def test_what_is_no_json_number_is_refused_and_leaves_no_trace(path):
    append_row(path, {"id": "a"})
    with pytest.raises(ValueError, match="JSON"):
        append_row(path, {"loss": float("nan")})
    assert read_rows(path) == [{"id": "a"}]


def test_a_full_disk_leaves_the_file_as_it_was():
    with pytest.raises(LabError, match="cannot write"):
        append_row("/dev/full", {"id": "a"})


def test_a_second_process_is_refused_and_the_lock_falls_with_its_holder(path):
    code = (
        "import sys, time\nfrom labkit.jsonl import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(LabError, match="another sweep"), locked(path):
            pass
    finally:
        other.kill()
        other.wait()
    with locked(path):
        append_row(path, {"id": "a"})
    assert json.loads(path.read_text()) == {"id": "a"}
