"""Three ways side by side: without CUDA it says so; with a measurement handed in, what is left and why."""

from dataclasses import replace

import pytest
import torch

from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory.memory import PHASES, predict
from labkit.training import comparison
from labkit.training.comparison import COLUMNS, NOT_MEASURED, PhaseRow, compare, compared, likely_cause
from labkit.training.dryrun import trace_step
from labkit.training.real_step import Measured
from labkit.training.replay import MIB, replay, workspace_bytes
from tests.chinese import CHINESE, english_left

SMALL = ModelShape("small", "qwen3", 4096, 64, 192, 2, 2, 1, 32, tied_embeddings=True, qk_norm=True)
LORA = Method(kind="lora", rank=4, dropout=0.0)
STEP = Step(batch=2, seq_len=64, loss="full")
T4 = (7, 5)


@pytest.fixture(scope="module")
def traced():
    return trace_step(SMALL, LORA, STEP)


def measurement(traced, **more_mib):
    """A GPU that allocates what is expected, and ``more_mib`` in some phases."""
    played, line = replay(traced.ledger), traced.timeline
    phases = {}
    for phase, (first, last) in line.spans.items():
        work = 0 if phase == "load" else workspace_bytes(T4)
        phases[phase] = max(played.allocated[first:last]) + work + int(more_mib.get(phase, 0) * MIB)
    return Measured(phases, 900 * MIB, 141 * MIB, "T4", T4)


def test_without_cuda_the_table_says_not_measured_here(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = compare(SMALL, LORA, STEP)
    predicted, traced = predict(SMALL, LORA, STEP), trace_step(SMALL, LORA, STEP)
    assert [row.phase for row in found.rows] == list(PHASES)
    for row, texts in zip(found.rows, found.table(), strict=True):
        assert row.predicted_bytes == predicted.phases[row.phase]
        assert row.traced_bytes == traced.timeline.phases[row.phase]
        assert (row.measured_bytes, row.left_bytes) == (None, None)
        assert len(texts) == len(COLUMNS)
        assert texts[4] == NOT_MEASURED
    assert max(map(len, found.lines())) <= 95
    assert sum(NOT_MEASURED in line for line in found.lines()) == len(PHASES) + 1
    assert NOT_MEASURED in found.notes()[0]
    assert found.as_dict()["measured"] is None


def test_what_is_expected_leaves_nothing(traced, monkeypatch):
    found = compared(traced, measurement(traced))
    assert [row.left_bytes for row in found.rows] == [0] * len(PHASES)
    assert {row.cause for row in found.rows} == {"nothing left to explain"}
    assert found.table()[2][6] == "+0.0"
    notes = "\n".join(found.lines())
    assert "measured 900 MiB" in notes and "16.25 MiB" in notes and "141 MiB" in notes
    monkeypatch.setenv("LABKIT_LANG", "zh")
    assert [note for note in found.notes() if english_left(note)] == []


def test_more_in_one_phase_is_left_there_with_a_cause(traced):
    rows = {row.phase: row for row in compared(traced, measurement(traced, backward=3, load=2, optimizer=-4)).rows}
    assert [rows[phase].left_bytes / MIB for phase in PHASES] == [2, 0, 3, -4]
    assert "attention's backward pass" in rows["backward"].cause
    lines = compared(traced, measurement(traced, backward=3)).lines()
    assert f"backward: {rows['backward'].cause}" in lines
    assert "second copy" in rows["load"].cause
    assert rows["forward"].cause == "nothing left to explain"
    assert compared(traced, measurement(traced, backward=3)).as_dict()["phases"][2]["left_bytes"] == 3 * MIB


def test_a_twin_that_does_not_fit_is_explained(monkeypatch):
    def run_out(*_):
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        error.add_note("in the phase backward")
        raise error

    monkeypatch.setattr(comparison, "measure_twin", run_out)
    with pytest.raises(LabError, match="in the phase backward; the dry run needs 7 MiB.*labkit memory --gpu") as caught:
        compare(SMALL, LORA, STEP)
    assert caught.value.__suppress_context__  # torch's traceback would hold the tensors


@pytest.mark.parametrize(
    ("phase", "left_mib", "method", "step", "cause"),
    [
        ("backward", 20, LORA, replace(STEP, attention="eager"), "softmax kernel"),
        ("optimizer", 20, LORA, STEP, "the variant that was predicted"),
        ("forward", 20, LORA, STEP, "not a fused one"),
        ("backward", -20, Method(kind="qlora"), STEP, "up to 1,536 tokens"),
        ("backward", -20, Method(kind="qlora"), replace(STEP, seq_len=2048), "another version"),
        ("load", -20, LORA, STEP, "these settings"),
        ("backward", 0.4, LORA, STEP, "nothing left"),
    ],
)
def test_the_cause_follows_sign_phase_and_settings(monkeypatch, phase, left_mib, method, step, cause):
    expected = 100 * MIB
    row = PhaseRow(phase, expected, expected, 0, 0, expected + int(left_mib * MIB), "")
    assert cause in likely_cause(row, method, step)
    monkeypatch.setenv("LABKIT_LANG", "zh")
    assert CHINESE.search(likely_cause(row, method, step))
