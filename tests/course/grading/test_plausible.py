"""The record of a training run: those that this book's machines left pass, those that somebody made up are flagged."""

import json
import math

import pytest

from labkit.course.grading.plausible import LEAST_NOISE, doubts, noise, static_bytes
from labkit.course.grading.read import read_notebook
from labkit.jsonl import read_rows
from labkit.models.profiles import PROFILES
from labkit.page.exercises import CURVE_POINTS, record_run
from labkit.page.records import PREFIX
from labkit.paths import data_folder
from tests.course.grading.classroom import REAL_LOSSES as REAL

STEPS = PROFILES["tiny"].steps


def found(capsys, losses, *, seconds=9.0, peak_memory=None, **changes):
    """What the grader says of a run with this curve, after the trip through a notebook."""
    record_run("r4_1", losses, seconds=seconds, peak_memory=peak_memory or {"process_peak_rss_bytes": 2**30})
    record = json.loads(capsys.readouterr().out.strip().removeprefix(PREFIX)) | {"gpu": None, "peak_bytes": None}
    value = record["value"] | changes.pop("value", {})
    line = PREFIX + json.dumps(record | changes | {"value": value})
    output = {"output_type": "stream", "name": "stdout", "text": line + "\n"}
    cell = {"cell_type": "code", "source": "trainer.train()", "execution_count": 1, "outputs": [output]}
    book = read_notebook(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode())
    assert [len(cell.records) for cell in book.cells] == [1]
    return [en for _, en, _ in doubts(book.cells[0].records)]


def test_a_real_run_raises_no_doubt(capsys):
    assert found(capsys, REAL[:STEPS]) == []


def test_every_stored_run_of_the_book_is_noisy_enough():
    files = sorted((data_folder() / "results").glob("*_*.jsonl"))
    curves = [row["curve"] for path in files for row in read_rows(path) if row.get("curve")]
    levels = [noise([point["loss"] if isinstance(point, dict) else point for point in curve]) for curve in curves]
    assert len(levels) > 300
    assert min(levels) > 5 * LEAST_NOISE


@pytest.mark.parametrize(
    "invented",
    [
        [3 + 2 * math.exp(-step / 12) for step in range(STEPS)],
        [5 - step / STEPS for step in range(STEPS)],
        [4.0] * STEPS,
        [round(3 + 2 / (1 + step / 5), 2) for step in range(STEPS)],
        [0.0] * STEPS,
    ],
)
def test_a_curve_from_a_formula_is_flagged(capsys, invented):
    assert found(capsys, invented) == ["r4_1: a loss curve without noise"]


def test_a_long_curve_is_thinned_and_still_counted(capsys):
    record_run("r4_1", REAL * 7, seconds=60.0, peak_memory={})
    value = json.loads(capsys.readouterr().out.strip().removeprefix(PREFIX))["value"]
    assert value["steps"] == 7 * len(REAL)
    assert CURVE_POINTS / 2 < len(value["losses"]) <= CURVE_POINTS
    assert value["losses"][0] == pytest.approx(REAL[0])


def test_the_wrong_number_of_steps_and_no_time_are_named(capsys):
    assert found(capsys, REAL[: STEPS - 1]) == [f"r4_1: {STEPS - 1} steps, the profile tiny takes {STEPS}"]
    assert found(capsys, REAL[:STEPS], seconds=0.01) == [f"r4_1: {STEPS} steps in 0.01 s"]


@pytest.mark.parametrize("share", [0.5, 1.1])
def test_a_peak_on_a_gpu_is_at_least_what_the_model_takes(capsys, share):
    steps = PROFILES["gpu"].steps
    peak = {"cuda_max_allocated_bytes": int(share * static_bytes("gpu"))}
    on_gpu = {"gpu": "Tesla T4", "profile": "gpu", "model": PROFILES["gpu"].model, "peak_bytes": 2**30}
    said = found(capsys, (REAL * 4)[:steps], peak_memory=peak, **on_gpu)
    assert said == (["r4_1: a peak below the model's static size"] if share < 1 else [])


@pytest.mark.parametrize(
    "value",
    [{"losses": "x"}, {"losses": [1e9]}, {"losses": [1.0] * 65}, {"steps": -1}, {"peak_memory": [1]}, {"seconds": "x"}],
)
def test_a_record_of_another_shape_is_flagged_and_stops_nothing(capsys, value):
    assert found(capsys, REAL[:STEPS], value=value) == ["r4_1: the record of a run without a loss curve"]


def test_too_few_points_say_nothing_of_noise(capsys):
    assert "r4_1: a loss curve without noise" not in found(capsys, [3.0, 2.9, 2.8])
    assert found(capsys, []) == ["r4_1: the record of a run without a loss curve"]
