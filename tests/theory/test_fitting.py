"""What would make a step fit, against `predict` itself over random settings: proposals fit, nothing cheaper does."""

import itertools
import math
import random

import pytest

from labkit.errors import LabError
from labkit.models.methods import KINDS, LOSSES, OPTIMIZERS, TARGETS, Method, Step
from labkit.models.shapes import shape_of
from labkit.theory.fitting import GIB, LADDER, changed, single_changes, usable_bytes, ways_to_fit
from labkit.theory.memory import predict

EIGHT = shape_of("qwen3-8b")


def peak(setting):
    return predict(*setting).peak_allocated_bytes


def random_setting(chance):
    kind = chance.choice([kind for kind in KINDS if kind != "spectrum"])
    quantized = kind in ("qlora", "qdora")
    method = Method(
        kind=kind,
        rank=chance.choice([1, 8, 32, 48, 64, 256]),
        targets=chance.choice([TARGETS, TARGETS[:4], ("q_proj", "v_proj")]),
        double_quant=chance.random() < 0.7,
        kbit_prepare=quantized and chance.random() < 0.3,
        adapter_dtype=chance.choice(["float32", "bfloat16", "autocast"]),
    )
    loss = chance.choice(LOSSES)
    step = Step(
        batch=chance.choice([1, 2, 3, 6, 8, 16]),
        seq_len=chance.choice([100, 512, 1000, 2048, 4096]),
        optimizer=chance.choice(OPTIMIZERS),
        checkpointing=chance.random() < 0.5,
        attention=chance.choice(["sdpa", "sdpa", "eager"]),
        loss=loss,
        keep_logits=loss == "full" and chance.random() < 0.3,
        padded=chance.random() < 0.3,
    )
    model = chance.choice(["smollm2-135m", "llama-3.2-3b", "qwen3-1.7b", "qwen3-8b", "qwen3-14b"])
    return shape_of(model), method, step


def tight_settings(count, seed=0):
    chance, found = random.Random(seed), []
    while len(found) < count:
        setting, gpu = random_setting(chance), chance.choice([6, 8, 16, 24, 40, 80])
        if peak(setting) > usable_bytes(gpu):
            found.append((setting, usable_bytes(gpu)))
    return found


def applied(setting, changes):
    for change in changes:
        setting = changed(setting, change)
    return setting


def test_every_proposal_fits_by_prediction_and_says_so():
    proposals = 0
    for setting, room in tight_settings(60):
        for way in ways_to_fit(*setting, room_bytes=room):
            after = peak(applied(setting, way.changes))
            assert after == way.peak_allocated_bytes <= room
            assert way.spare_bytes == room - after >= 0
            assert way.cost == sum(change.cost for change in way.changes)
            proposals += 1
    assert proposals > 60


def test_no_cheaper_change_or_pair_fits():
    for setting, room in tight_settings(25, seed=1):
        ways = ways_to_fit(*setting, room_bytes=room)
        single = single_changes(*setting)
        pairs = (pair for pair in itertools.combinations(single, 2) if pair[0].field != pair[1].field)
        for option in [*((change,) for change in single), *pairs]:
            cost = sum(change.cost for change in option)
            if not ways or cost < ways[0].cost:
                assert peak(applied(setting, option)) > room, option


def test_ways_are_ranked_and_none_holds_another():
    for setting, room in tight_settings(40, seed=2):
        ways = ways_to_fit(*setting, room_bytes=room)
        assert [way.cost for way in ways] == sorted(way.cost for way in ways)
        assert len(ways) <= 5 and all(1 <= len(way.changes) <= 2 for way in ways)
        names = [{change.field for change in way.changes} for way in ways]
        for one, two in itertools.combinations(range(len(names)), 2):  # the first one is the cheaper one
            assert not names[one] <= names[two]


def test_the_limit_only_cuts_the_list():
    setting = (EIGHT, Method(kind="lora"), Step(batch=4, seq_len=2048, loss="full", checkpointing=False))
    every = ways_to_fit(*setting, room_bytes=usable_bytes(24), limit=50)
    assert ways_to_fit(*setting, room_bytes=usable_bytes(24), limit=2) == every[:2]
    assert ways_to_fit(*setting, room_bytes=usable_bytes(24), limit=0) == []


def test_nothing_helps_where_nothing_can():
    assert ways_to_fit(EIGHT, Method(kind="full"), Step(seq_len=4096), room_bytes=usable_bytes(1.2)) == []
    assert ways_to_fit(EIGHT, Method(kind="qlora"), Step(), room_bytes=usable_bytes(0.5)) == []


def test_only_some_fields_may_change():
    setting = (EIGHT, Method(kind="lora"), Step(batch=8, seq_len=2048))
    for way in ways_to_fit(*setting, room_bytes=usable_bytes(16), only=("batch", "rank", "kind")):
        assert {change.field for change in way.changes} <= {"batch", "rank", "kind"}
    assert ways_to_fit(*setting, room_bytes=usable_bytes(16), only=("optimizer",)) == []


@pytest.mark.parametrize("gpu", [0, -24, math.nan, math.inf, True, "24", None])
def test_a_gpu_without_memory_is_refused(gpu):
    with pytest.raises(LabError, match="more than 0 GiB"):
        usable_bytes(gpu)


def test_a_gib_is_kept_free():
    assert usable_bytes(24) == 23 * GIB
    assert usable_bytes(0.5) < 0


@pytest.mark.parametrize("seed", range(3))
def test_every_change_is_a_valid_setting_that_differs(seed):
    chance = random.Random(seed)
    for _ in range(100):
        setting = random_setting(chance)
        for change in single_changes(*setting):
            after = changed(setting, change)
            assert after != setting and change.cost > 0
            assert all(change.what) and all(change.price)
            peak(after)


def test_a_smaller_batch_divides_the_old_one():
    sizes = [c.value for c in single_changes(EIGHT, Method(kind="lora"), Step(batch=12)) if c.field == "batch"]
    assert sizes == [6, 4, 3, 2, 1]
    assert not [c for c in single_changes(EIGHT, Method(kind="lora"), Step(batch=1)) if c.field == "batch"]


def test_ranks_and_lengths_go_down_in_powers_of_two():
    changes = single_changes(EIGHT, Method(kind="lora", rank=48), Step(seq_len=700))
    assert [c.value for c in changes if c.field == "rank"] == [32, 16, 8, 4, 2, 1]
    assert [c.value for c in changes if c.field == "seq_len"] == [512, 256, 128]
    least = single_changes(EIGHT, Method(kind="lora", rank=1), Step(seq_len=128))
    assert not [c for c in least if c.field in ("rank", "seq_len")]


def test_full_fine_tuning_is_offered_no_rank_and_selected_layers_no_other_model():
    full = {change.field for change in single_changes(EIGHT, Method(kind="full"), Step())}
    assert full.isdisjoint({"rank", "targets"})
    chosen = Method(kind="spectrum", layers=(30, 31))
    assert "model" not in {change.field for change in single_changes(EIGHT, chosen, Step())}
    assert [
        c.value for c in single_changes(shape_of(LADDER[0]), Method(kind="lora"), Step()) if c.field == "model"
    ] == []


def test_a_switch_that_only_costs_memory_comes_before_a_smaller_update():
    method, step = Method(kind="qlora", kbit_prepare=True), Step(seq_len=2048, loss="full", keep_logits=True)
    room = peak((EIGHT, method, step)) - 1
    first = ways_to_fit(EIGHT, method, step, room_bytes=room)[0]
    assert [change.field for change in first.changes] == ["keep_logits"]
    fused = next(change for change in single_changes(EIGHT, method, step) if change.field == "loss")
    assert changed((EIGHT, method, step), fused)[2] == Step(seq_len=2048, loss="fused")
