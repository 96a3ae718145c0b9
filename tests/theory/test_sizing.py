"""The settings for a card, held against the memory model asked anew, and against the dry run."""

from dataclasses import replace

import pytest

from labkit.errors import LabError
from labkit.models.methods import Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.theory.memory import predict
from labkit.theory.sizing import fit
from labkit.training.dryrun import trace

GPU = PROFILES["gpu"]
GIB = 2**30
CARDS = {  # GiB free, compute capability, the element type, (batch, accumulation, tokens)
    "T4": (14.6, (7, 5), "float16", (4, 4, 1024)),
    "8 GB": (7.2, (8, 6), "bfloat16", (4, 4, 1024)),
    "RTX 4090": (23, (8, 9), "bfloat16", (4, 4, 1024)),
    "A100": (79, (8, 0), "bfloat16", (4, 4, 1024)),
    "4 GB": (3.6, (7, 5), "float16", (2, 8, 1024)),
    "4 GB, desktop running": (3.1, (8, 6), "bfloat16", (1, 16, 1024)),
    "3 GB": (2.9, (6, 1), "float16", (1, 16, 512)),
}


def step_of(choice) -> Step:
    """The step, written out: not by the profile's own property."""
    sizes = {"batch": choice.profile.batch, "seq_len": choice.profile.seq_len}
    return Step(loss="fused", optimizer="adamw", checkpointing=choice.checkpointing, **sizes)


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("card", CARDS)
def test_a_choice_fits_and_keeps_the_update(card, begin):
    free, capability, dtype, sizes = CARDS[card]
    choice = fit(GPU, free_bytes=int(free * GIB), capability=capability, checkpointing=begin)
    chosen = choice.profile
    assert chosen.dtype == dtype
    assert (chosen.batch, chosen.accumulation, chosen.seq_len) == sizes
    assert chosen.batch * chosen.accumulation == 16
    assert choice.checkpointing == (begin or free < 21)
    peak = predict(shape_of("qwen3-1.7b"), replace(GPU.method, dtype=dtype), step_of(choice)).peak_allocated_bytes
    assert choice.peak_allocated_bytes == peak
    assert peak <= (free - 1) * GIB
    assert (choice.price is None) == (chosen.seq_len == GPU.seq_len)
    rest = {"batch": GPU.batch, "accumulation": GPU.accumulation, "seq_len": GPU.seq_len, "dtype": GPU.dtype}
    assert replace(chosen, **rest) == GPU


def test_a_rejected_setting_is_named_with_its_numbers():
    reasons = fit(GPU, free_bytes=int(14.6 * GIB), capability=(7, 5), checkpointing=False).reasons
    without = replace(GPU.step, checkpointing=False)
    needed = predict(shape_of(GPU.model), replace(GPU.method, dtype="float16"), without).peak_allocated_bytes / GIB + 1
    assert [english for english, _ in reasons] == [
        f"batch 4 of 1,024 tokens without checkpointing: {needed:.2f} of 14.60 GiB"
    ]
    assert all(number in reasons[0][1] for number in ("批大小 4", "1,024", f"{needed:.2f}", "14.60"))


def test_shorter_rows_come_last_and_say_what_they_cost():
    choice = fit(GPU, free_bytes=int(2.9 * GIB), capability=(6, 1))
    tried = [english.split(" tokens")[0] for english, _ in choice.reasons]
    assert tried == ["batch 4 of 1,024", "batch 2 of 1,024", "batch 1 of 1,024"]
    assert "changes what is learned" in choice.price[0]
    assert all("512" in words and "1,024" in words for words in choice.price)


@pytest.mark.parametrize("begin", [True, False])
def test_more_memory_never_chooses_a_more_frugal_setting(begin):
    def generosity(free):
        choice = fit(GPU, free_bytes=free, capability=(8, 0), checkpointing=begin)
        return choice.profile.seq_len, choice.profile.batch, not choice.checkpointing

    chosen = [generosity(free) for free in range(int(2.85 * GIB), 24 * GIB, GIB // 50)]
    assert chosen == sorted(chosen)
    assert len(set(chosen)) >= 5 - begin


def test_a_byte_decides():
    peak = predict(shape_of(GPU.model), GPU.method, GPU.step).peak_allocated_bytes
    assert fit(GPU, free_bytes=peak + GIB, capability=(8, 0)).profile.batch == 4
    assert fit(GPU, free_bytes=peak + GIB - 1, capability=(8, 0)).profile.batch == 2


@pytest.mark.parametrize("free", [GIB, 1, 0, -GIB])
def test_a_card_for_nothing_says_the_way_out(free):
    with pytest.raises(LabError) as caught:
        fit(GPU, free_bytes=free, capability=(7, 5))
    assert f"{free / GIB:.2f} GiB free" in caught.value.given
    assert "batch 1 of 128 tokens with checkpointing" in caught.value.rule
    assert "smaller model" in caught.value.fix


def test_only_divisors_of_the_rows_and_only_an_automatic_element_type():
    odd = replace(GPU, batch=6, accumulation=1, dtype="float32")
    choice = fit(odd, free_bytes=4 * GIB, capability=(8, 0))
    assert (choice.profile.dtype, choice.profile.rows_per_step) == ("float32", 6)
    tried = [english.split(" of")[0] for english, _ in choice.reasons]
    assert tried == ["batch 6", "batch 3", "batch 2", "batch 1"][: len(tried)]
    assert tried


@pytest.mark.parametrize("card", ["T4", "4 GB"])
def test_the_dry_run_agrees(card):
    free, capability, dtype, _ = CARDS[card]
    choice = fit(GPU, free_bytes=int(free * GIB), capability=capability)
    traced = trace(shape_of(GPU.model), replace(GPU.method, dtype=dtype), step_of(choice))
    assert choice.peak_allocated_bytes == pytest.approx(traced.peak_allocated_bytes, rel=0.03)
