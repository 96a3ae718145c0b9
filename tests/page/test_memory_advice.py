"""`labkit memory --gpu`, the explorer and the theory give one answer, in both languages."""

import json
import random

import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.shapes import shape_of
from labkit.page.memory_advice import answer_columns, answer_line, answer_rows, gpu_answer, nothing_fits
from labkit.page.memory_explorer import CARDS_GIB, make_explorer
from labkit.page.memory_moves import moves
from labkit.page.memory_tables import AXES, setting
from labkit.theory.fitting import changed, single_changes, usable_bytes, ways_to_fit
from labkit.theory.memory import predict

LARGE = (shape_of("qwen3-8b"), Method(kind="lora"), Step(batch=4, seq_len=2048, loss="full", checkpointing=False))


def invoke(*flags):
    return CliRunner().invoke(app, ["memory", *flags])


def test_the_explorer_offers_exactly_the_changes_of_the_theory():
    chance, listed = random.Random(0), moves()
    for _ in range(150):
        at = {name: chance.randrange(len(axis)) for name, axis in AXES.items()}
        model, method, step = setting(at)
        idle = () if method.uses_adapters else ("rank", "targets")
        offered = [move for move in listed if at[move.axis] == move.start and move.axis not in idle]
        wanted = single_changes(shape_of(model), method, step)
        assert [(m.axis, AXES[m.axis][m.to], m.cost) for m in offered] == [(c.field, c.value, c.cost) for c in wanted]
        assert [m.what for m in offered] == [c.what[0] for c in wanted]
        for move, change in zip(offered, wanted, strict=True):
            after = changed((shape_of(model), method, step), change)
            name, *rest = setting(at | {move.axis: move.to})
            assert predict(*after) == predict(shape_of(name), *rest)


def test_a_step_that_fits_needs_no_change():
    answer = gpu_answer(shape_of("qwen3-1.7b"), Method(kind="qlora"), Step(), gpu_gib=16)
    peak = predict(shape_of("qwen3-1.7b"), Method(kind="qlora"), Step()).peak_allocated_bytes
    assert (answer["fits"], answer["changes"], answer["spare_bytes"]) == (True, [], 15 * 2**30 - peak)
    assert answer_rows(answer) == []
    assert answer_line(answer).startswith("fits 16 GiB")


def test_a_step_that_exactly_fits_fits():
    shape, method, step = LARGE
    peak = predict(shape, method, step).peak_allocated_bytes
    for gpu, fits in ((peak / 2**30 + 1, True), ((peak - 1) / 2**30 + 1, False)):
        assert gpu_answer(shape, method, step, gpu_gib=gpu)["fits"] is fits


def test_the_answer_is_the_theorys():
    answer = gpu_answer(*LARGE, gpu_gib=24)
    ways = ways_to_fit(*LARGE, room_bytes=usable_bytes(24))
    assert [way["cost"] for way in answer["changes"]] == [way.cost for way in ways] != []
    first = [(change["field"], change["value"]) for change in answer["changes"][0]["changes"]]
    assert first == [("loss", "fused"), ("checkpointing", True)]
    assert answer["spare_bytes"] == usable_bytes(24) - predict(*LARGE).peak_allocated_bytes < 0


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_words_are_in_the_users_language(lang, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", lang)
    answer = gpu_answer(*LARGE, gpu_gib=24)
    shown = " ".join([answer_line(answer), *answer_columns(), *(cell for row in answer_rows(answer) for cell in row)])
    assert ("梯度检查点" in shown) == (lang == "zh")
    assert ("gradient checkpointing" in shown) == (lang == "en")
    hopeless = gpu_answer(*LARGE, gpu_gib=0.5)
    assert hopeless["changes"] == []
    assert nothing_fits() in answer_line(hopeless)


@pytest.mark.parametrize("card", CARDS_GIB)
def test_the_page_of_the_explorer_holds_the_same_words(card):
    texts = make_explorer(card_gib=card).data["texts"]
    assert texts["none"] == nothing_fits()


# --- the command -----------------------------------------------------------------------------------------------------


def test_json_has_the_answer_beside_the_prediction():
    flags = "--model qwen3-8b --method lora --batch 4 --seq-len 2048 --loss full --no-checkpointing --gpu 24 --json"
    printed = json.loads(invoke(*flags.split()).stdout)
    assert printed["gpu_gib"] == 24 and printed["fits"] is False
    assert printed["peak_allocated_bytes"] == predict(*LARGE).peak_allocated_bytes
    assert printed["spare_bytes"] + printed["peak_allocated_bytes"] + printed["reserve_bytes"] == 24 * 2**30
    for way in printed["changes"]:
        assert {"field", "value", "what", "price"} == set(way["changes"][0])
        assert way["peak_allocated_bytes"] + way["spare_bytes"] + printed["reserve_bytes"] == 24 * 2**30


def test_without_a_gpu_the_answer_is_left_out():
    assert not {"gpu_gib", "fits", "changes"} & set(json.loads(invoke("--json").stdout))


def test_the_table_names_changes_with_their_prices():
    shown = invoke("--model", "qwen3-8b", "--method", "lora", "--no-checkpointing", "--gpu", "16").stdout
    assert "does not fit 16 GiB" in shown and "checkpointing" in shown
    assert "fits 80 GiB" in invoke("--gpu", "80").stdout
    assert "No two changes" in invoke("--method", "full", "--gpu", "0.1").stdout


@pytest.mark.parametrize("gpu", ["0", "-8", "nan", "inf"])
def test_a_gpu_without_memory_is_refused(gpu):
    done = invoke("--gpu", gpu)
    assert isinstance(done.exception, LabError)
    assert "more than 0 GiB" in str(done.exception)
