"""The settings for a card, held against the memory model asked anew, and against the dry run."""

import re
from dataclasses import replace

import pytest

from labkit.errors import LabError
from labkit.models.methods import Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.paths import checkout
from labkit.theory.fitting import OF_A_RUN
from labkit.theory.memory import predict
from labkit.theory.sizing import SETTLED, advice, fit
from labkit.training.dryrun import trace

GPU = PROFILES["gpu"]
SHAPE = shape_of("qwen3-1.7b")
GIB = 2**30
CARDS = {  # GiB free, compute capability: the element type, batch, accumulation, checkpointing
    "A100": (79, (8, 0), ("bfloat16", 4, 4, False)),
    "RTX 4090": (23, (8, 9), ("bfloat16", 4, 4, False)),
    "RTX 4090, desktop running": (21, (8, 9), ("bfloat16", 4, 4, True)),
    "T4": (14.6, (7, 5), ("float16", 4, 4, True)),
    "8 GB": (7.2, (8, 6), ("bfloat16", 4, 4, True)),
    "4 GB": (3.6, (7, 5), ("float16", 2, 8, True)),
    "4 GB, desktop running": (3.1, (8, 6), ("bfloat16", 1, 16, True)),
}


def free_on(card):
    free, capability, _ = CARDS[card]
    return {"free_bytes": int(free * GIB), "capability": capability}


def step_of(profile) -> Step:
    """The step, written out: not by the profile's own property."""
    sizes = {"batch": profile.batch, "seq_len": profile.seq_len, "checkpointing": profile.checkpointing}
    return Step(loss="fused", optimizer="adamw", **sizes)


@pytest.mark.parametrize("card", CARDS)
def test_a_choice_fits_and_keeps_the_update(card):
    choice = fit(GPU, **free_on(card))
    chosen, wanted = choice.profile, CARDS[card][2]
    assert tuple(getattr(chosen, name) for name in ("dtype", "batch", "accumulation", "checkpointing")) == wanted
    assert chosen.batch * chosen.accumulation == 16
    peak = predict(SHAPE, replace(GPU.method, dtype=wanted[0]), step_of(chosen)).peak_allocated_bytes
    assert choice.peak_allocated_bytes == peak <= (CARDS[card][0] - 1) * GIB
    assert replace(chosen, **{name: getattr(GPU, name) for name in SETTLED}) == GPU


@pytest.mark.parametrize("page", ["memory.md", "memory.zh.md"])
def test_the_table_of_cards_in_the_guide_is_what_fit_says(page):
    text = (checkout() / "docs" / page).read_text(encoding="utf-8")
    row = re.compile(r"\| ([\d.]+) \| (\w+) \| (\d+) × (\d+) \| (on|off|开|关) \| ([\d.]+) \|$", flags=re.M)
    rows = row.findall(text)
    assert len(rows) == 7
    for free, dtype, batch, accumulation, checkpointing, peak in rows:
        capability = (8, 0) if dtype == "bfloat16" else (7, 5)
        choice = fit(GPU, free_bytes=int(float(free) * GIB), capability=capability)
        chosen = choice.profile
        wanted = (dtype, int(batch), int(accumulation), checkpointing in ("on", "开"))
        assert (chosen.dtype, chosen.batch, chosen.accumulation, chosen.checkpointing) == wanted
        assert f"{choice.peak_allocated_bytes / GIB:.2f}" == peak
    autocast = replace(GPU.method, dtype="bfloat16", adapter_dtype="autocast")
    assert f"{predict(SHAPE, autocast, GPU.step).peak_allocated_bytes / GIB:.2f}" in text


def test_every_language_says_what_was_chosen_and_why():
    words = fit(GPU, **free_on("4 GB")).words
    need = {
        (batch, on): predict(SHAPE, replace(GPU.method, dtype="float16"), Step(batch=batch, checkpointing=on))
        for batch, on in ((4, False), (4, True), (2, True))
    }
    gib = [f"{need[tried].peak_allocated_bytes / GIB + 1:.2f} GiB" for tried in ((4, False), (4, True))]
    for text in words:
        numbers = (
            "float16",
            "2 x 8",
            "1,024",
            f"{need[2, True].peak_allocated_bytes / GIB:.2f} GiB",
            "3.60 GiB",
            "7.5",
        )
        assert not [number for number in (*numbers, *gib) if number not in text]
    assert re.search(r"no bfloat16.*batch 4 without checkpointing.*batch 4 with checkpointing", words[0])
    assert re.search(r"没有 bfloat16.*批大小 4、不开梯度检查点.*批大小 4、开梯度检查点", words[1])


def test_where_the_first_setting_fits_there_is_nothing_to_explain():
    assert fit(GPU, **free_on("A100")).reasons == ()


def test_more_memory_never_chooses_a_more_frugal_setting():
    def generosity(free):
        chosen = fit(GPU, free_bytes=free, capability=(8, 0)).profile
        return chosen.batch, not chosen.checkpointing

    chosen = [generosity(free) for free in range(int(3.05 * GIB), 24 * GIB, GIB // 50)]
    assert chosen == sorted(chosen)
    assert set(chosen) == {(1, False), (2, False), (4, False), (4, True)}


def test_a_byte_decides():
    peak = predict(SHAPE, GPU.method, GPU.step).peak_allocated_bytes
    assert fit(GPU, free_bytes=peak + GIB, capability=(8, 0)).profile.batch == 4
    assert fit(GPU, free_bytes=peak + GIB - 1, capability=(8, 0)).profile.batch == 2


@pytest.mark.parametrize(
    ("fixed", "splits"),
    [
        (["batch"], {(4, 4, False), (4, 4, True)}),
        (["accumulation"], {(4, 4, False), (4, 4, True)}),
        (["checkpointing"], {(4, 4, False), (2, 8, False), (1, 16, False)}),
        (["batch", "checkpointing"], {(4, 4, False)}),
        (["rank", "seq_len"], {(4, 4, False), (4, 4, True), (2, 8, True), (1, 16, True)}),
    ],
)
def test_what_is_fixed_stays(fixed, splits):
    asked, found = replace(GPU, checkpointing=False), set()
    for tenth in range(20, 230):
        try:
            chosen = fit(asked, free_bytes=tenth * GIB // 10, capability=(8, 0), fixed=fixed).profile
        except LabError:
            assert not found  # what fitted a smaller card fits
        else:
            found.add((chosen.batch, chosen.accumulation, chosen.checkpointing))
    assert found == splits


def test_a_batch_that_is_fixed_and_too_large_is_refused_with_the_way_out():
    large = replace(GPU, batch=16, accumulation=1)
    peak = predict(SHAPE, GPU.method, Step(batch=16)).peak_allocated_bytes
    with pytest.raises(LabError, match=rf"batch=16.*{peak / GIB:.2f} GiB by prediction.*nvidia-smi\)\.$") as refused:
        fit(large, free_bytes=5 * GIB, capability=(8, 0), fixed=["batch"])
    changes = eval(f"dict({refused.value.fix.split(' (')[0]})")
    assert fit(replace(large, **changes), free_bytes=5 * GIB, capability=(8, 0), fixed=SETTLED).profile.batch < 16
    assert changes["batch"] * changes["accumulation"] == 16


def needed(dtype, batch, checkpointing, method):
    """GiB that the most frugal setting of an element type needs beside the reserve, with what the recipe adds."""
    step = Step(batch=batch, seq_len=GPU.seq_len, checkpointing=checkpointing)
    found = predict(SHAPE, replace(method, dtype=dtype), step)
    return found.peak_allocated_bytes + (10 * found.trainable_params if dtype == "float16" else 0)


def test_of_several_element_types_the_first_that_fits_in_any_split_is_taken():
    method = replace(GPU.method, kind="spectrum", modules=("7.up_proj", "21.q_proj"))
    asked = replace(GPU, method=method, dtype="float32")
    given = {"capability": (8, 6), "dtypes": ("float32", "float16"), "beside_bytes": 10**8}
    least = needed("float32", 1, True, method) + 10**8 + GIB
    exact = fit(asked, free_bytes=least, **given)
    narrow = fit(asked, free_bytes=least - 1, **given)
    assert [(c.profile.dtype, c.profile.batch) for c in (exact, narrow)] == [("float32", 1), ("float16", 4)]
    assert exact.peak_allocated_bytes == least - GIB
    on = narrow.profile.checkpointing
    assert narrow.peak_allocated_bytes == needed("float16", 4, on, method) + 10**8
    for said, words in zip(
        narrow.words, ("float32 would need at least {} with", "float32 连同预留至少需要 {}"), strict=True
    ):
        assert words.format(f"{least / GIB:.2f} GiB") in said
    with pytest.raises(LabError, match=r"batch=1.*; or come back later\.$") as refused:
        fit(
            asked, free_bytes=needed("float16", 1, True, method) + 10**8 + GIB - 1, otherwise="come back later", **given
        )
    assert f"needs {(needed('float16', 1, True, method) + 10**8) / GIB:.2f} GiB" in refused.value.rule


@pytest.mark.parametrize("free", [GIB, 1, 0, -GIB])
def test_a_card_for_nothing_says_the_way_out(free):
    with pytest.raises(LabError, match=r"batch=1.*no two changes.*smaller model") as caught:
        fit(GPU, free_bytes=free, capability=(7, 5))
    assert f"{free / GIB:.2f} GiB free" in caught.value.rule


def test_rows_are_never_shortened_but_the_refusal_names_what_would_fit():
    with pytest.raises(LabError, match="batch=1, seq_len=1024") as caught:
        fit(GPU, free_bytes=int(2.9 * GIB), capability=(8, 6))
    assert "seq_len=512 (longer rows are refused)" in caught.value.fix and "nvidia-smi" in caught.value.fix
    assert fit(replace(GPU, seq_len=512), free_bytes=int(2.9 * GIB), capability=(8, 6)).profile.batch == 1


def test_only_divisors_of_the_rows_and_only_an_automatic_element_type():
    odd = replace(GPU, batch=6, accumulation=1, dtype="float32")
    choice = fit(odd, free_bytes=4 * GIB, capability=(8, 0))
    assert (choice.profile.dtype, choice.profile.rows_per_step) == ("float32", 6)
    tried = [english.split(" would")[0] for english, _ in choice.reasons]
    wanted = ["batch 6 without", "batch 6 with", "batch 3 with", "batch 2 with", "batch 1 with"]
    assert tried == [f"{name} checkpointing" for name in wanted][: len(tried)]
    assert len(tried) > 1


def test_advice_names_only_what_a_run_takes():
    large = replace(GPU, batch=8, accumulation=2, seq_len=2048, dtype="bfloat16")
    text = advice(SHAPE, large, free_bytes=4 * GIB)
    assert any(f"{name}=" in text for name in OF_A_RUN)
    assert "optimizer=" not in text and "model=" not in text
    assert "no two changes" in advice(SHAPE, large, free_bytes=GIB // 2)


@pytest.mark.parametrize("card", ["RTX 4090", "T4", "4 GB"])
def test_the_dry_run_agrees(card):
    choice = fit(GPU, **free_on(card))
    traced = trace(SHAPE, replace(GPU.method, dtype=choice.profile.dtype), step_of(choice.profile))
    assert choice.peak_allocated_bytes == pytest.approx(traced.peak_allocated_bytes, rel=0.03)
