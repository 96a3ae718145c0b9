"""The reference NF4 quantizer of lesson 03 against the CPU kernels of bitsandbytes: same bits, and how much time.

    python benchmarks/nf4_speed.py     # writes data/measurements/nf4_speed.json; a minute

Codes, constants and restored weights are compared by ``torch.equal`` before anything is timed. Then both take turns, on
one thread and in both dtypes; a ratio is of processor time and taken within each round, so that other programs on the
machine drop out. ``alone`` is the floor of restoring in torch: what its two operations take by themselves, on arrays
that stand ready and stay in the cache, beside the whole kernel of bitsandbytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from labkit.console import run_script
from labkit.theory.codes import AT_ONCE
from labkit.theory.nf4 import Quantized, dequantize, pack, quantize
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.record import write_measurement

SIZES = (4 * 1024, 64 * 1024, 1024**2, 8 * 1024**2)  # weights
AT_LEAST = 1024**2  # weights that pass between two looks at the clock
DTYPES = (torch.float32, torch.bfloat16)
ROUNDS = 15
ALONE = ("look-up", "multiplication")


def compare(n_weights: int, dtype: torch.dtype, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Ratios of time, reference by bitsandbytes: above 1 the reference is slower; and microseconds of one call.

    Raises:
        AssertionError: the two disagree in a bit.
    """
    weight = torch.randn(n_weights, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = quantize(weight)
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(pack(ours), packed.flatten())
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(dequantize(ours), dequantize_4bit(packed, state).flatten())
    steps: dict[str, Callable[[], object]] = {
        "quantize": lambda: pack(quantize(weight)),
        "quantize, bitsandbytes": lambda: quantize_4bit(weight, blocksize=64, quant_type="nf4"),
        "dequantize": lambda: dequantize(ours),
        "dequantize, bitsandbytes": lambda: dequantize_4bit(packed, state),
        **alone(ours),
    }
    often = max(1, AT_LEAST // n_weights)  # a small tensor several times, so that the clock sees something
    repeated = {name: lambda step=step: [step() for _ in range(often)] for name, step in steps.items()}
    seconds = take_turns(repeated, rounds=rounds, clock=time.process_time)

    def by_bitsandbytes(name: str, whole: str) -> dict[str, float]:
        return asdict(time_ratio(seconds[name], seconds[f"{whole}, bitsandbytes"]))

    return {
        "n_weights": n_weights,
        "dtype": str(dtype).removeprefix("torch."),
        "bit_equal": True,
        **{name: by_bitsandbytes(name, name) for name in ("quantize", "dequantize")},
        "alone": {name: by_bitsandbytes(name, "dequantize") for name in ALONE},
        "microseconds": {name: round(1e6 * statistics.median(times) / often, 1) for name, times in seconds.items()},
    }


def alone(ours: Quantized) -> dict[str, Callable[[], object]]:
    """The look-up and the multiplication of as many weights, part by part, each with its inputs at hand."""
    part = min(len(ours.indices), AT_ONCE) // 64 * 64
    often = len(ours.indices) // part
    pairs, places = torch.zeros(2**12, dtype=torch.int64), ours.indices[:part].view(torch.int16).int()
    levels, scales = torch.zeros(part // 64, 64), ours.absmax[: part // 64, None]
    restored = torch.empty(part // 64, 64, dtype=ours.dtype)
    once = (lambda: pairs.index_select(0, places), lambda: torch.mul(levels, scales, out=restored))
    return {name: lambda step=step: [step() for _ in range(often)] for name, step in zip(ALONE, once, strict=True)}


def main() -> None:
    """Compare every size in every dtype, print and write the table."""
    torch.set_num_threads(1)
    rows = [compare(n_weights, dtype) for n_weights in SIZES for dtype in DTYPES]
    for row in rows:
        took = ", ".join(f"{name} {row[name]['ratio']:.2f} times as long" for name in ("quantize", "dequantize"))
        floor = ", ".join(f"{name} alone {row['alone'][name]['ratio']:.2f}" for name in ALONE)
        print(f"{row['n_weights']:>9,} weights in {row['dtype']}: {took}; {floor}")
    note = "processor time of one thread"
    write_measurement("benchmarks/nf4_speed.py", {"rounds": ROUNDS, "rows": rows}, note=note)


if __name__ == "__main__":
    run_script(main, __doc__)
