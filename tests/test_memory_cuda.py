"""benchmarks/memory_cuda.py without a GPU: it says so, its rehearsal runs the whole of it, it resumes, and an
out-of-memory error is a row."""

import json

import pytest
import torch

from benchmarks import memory_cuda
from labkit.models.shapes import shape_of
from labkit.training import real_step
from labkit.training.comparison import NOT_MEASURED
from labkit.training.real_step import Measured


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_without_a_gpu_it_stops_and_names_the_rehearsal(tmp_path):
    with pytest.raises(SystemExit, match="no CUDA GPU.*--rehearse"):
        memory_cuda.main(out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_matrix_is_every_model_method_and_checkpointing():
    settings = memory_cuda.matrix([shape_of(name) for name in memory_cuda.MODELS], seq_len=2048)
    assert len({setting.key for setting in settings}) == len(settings) == 3 * 4 * 2


def test_the_rehearsal_runs_every_row_and_measures_nothing(tmp_path, capsys):
    memory_cuda.main(rehearse=True, out=tmp_path)
    report = json.loads((tmp_path / "rehearsal.json").read_text(encoding="utf-8"))
    assert len(report["rows"]) == 8
    for row in report["rows"]:
        assert row["error"] == NOT_MEASURED and row["measured"] is None
        for phase in row["phases"]:
            assert phase["measured_bytes"] is None
            assert phase["predicted_bytes"] == pytest.approx(phase["traced_bytes"], rel=0.1)
    printed = capsys.readouterr().out
    assert printed.count(NOT_MEASURED) == 8 and "rows: 8" in printed


@pytest.fixture
def one_row():
    return memory_cuda.matrix([memory_cuda.TINY], seq_len=32)[:1]


def test_rows_that_are_there_are_not_run_again(one_row, tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    memory_cuda.run(one_row, path)
    two = memory_cuda.matrix([memory_cuda.TINY], seq_len=32)[:2]
    ran = []
    monkeypatch.setattr(memory_cuda, "row_of", lambda setting: ran.append(setting.key) or known(path)[0])
    memory_cuda.run(two, path)
    assert ran == [two[1].key]
    assert len(known(path)) == 2


def known(path):
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_other_versions_do_not_share_a_file(one_row, tmp_path):
    path = tmp_path / "gpu.json"
    report = memory_cuda.run(one_row, path)
    path.write_text(json.dumps(report | {"versions": {"torch": "1.0"}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="other versions"):
        memory_cuda.run(one_row, path)


def test_an_out_of_memory_error_is_a_row_and_names_the_phase(one_row, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(real_step, "empty_gpu", lambda: None)
    monkeypatch.setattr(memory_cuda, "provenance", lambda _: {"versions": {}})
    monkeypatch.setattr(memory_cuda, "hardware", dict)
    names = ("memory_allocated", "max_memory_allocated", "max_memory_reserved")
    for name in names:
        monkeypatch.setattr(f"torch.cuda.{name}", lambda: 0)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda: None)

    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(real_step.meta_model, "build", build_on_meta_only(real_step.meta_model.build, run_out))
    report = memory_cuda.run(one_row, tmp_path / "gpu.json")
    assert report["rows"][0]["error"] == "out of memory, in the phase load"
    assert report["rows"][0]["phases"][0]["traced_bytes"] > 0
    assert "out of memory: 1" in memory_cuda.summary(report)


def build_on_meta_only(build, otherwise):
    return lambda *given, device="meta": build(*given) if device == "meta" else otherwise()


def test_a_measured_row_is_compared(one_row, tmp_path, monkeypatch):
    phases = dict.fromkeys(("load", "forward", "backward", "optimizer"), 10**8)
    monkeypatch.setattr(memory_cuda, "measure_twin", lambda *_: Measured(phases, 2 * 10**8, 10**8, "T4", (7, 5)))
    report = memory_cuda.run(one_row, tmp_path / "t4.json")
    row = known(tmp_path / "t4.json")[0]
    assert row["error"] is None
    assert {phase["measured_bytes"] for phase in row["phases"]} == {10**8}
    assert "dry run / measured 0.0" in memory_cuda.line_of(row)
    assert "predicted: 4 phases, 0% within 3 %" in memory_cuda.summary(report)
