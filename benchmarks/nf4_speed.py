"""The reference NF4 quantizer of lesson 03 against the CPU kernels of bitsandbytes: same bits, and how much time.

    python benchmarks/nf4_speed.py     # writes data/measurements/nf4_speed.json; a minute

Codes, constants and restored weights are compared by ``torch.equal`` before anything is timed. Then both take turns, on
one thread and in both dtypes; a ratio is of processor time and taken within each round, so that other programs on the
machine drop out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from labkit.theory.nf4 import dequantize, pack, quantize
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.record import write_measurement

SIZES = (4 * 1024, 64 * 1024, 1024**2, 8 * 1024**2)  # weights
AT_LEAST = 1024**2  # weights that pass between two looks at the clock
DTYPES = (torch.float32, torch.bfloat16)
ROUNDS = 15


def compare(n_weights: int, dtype: torch.dtype, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Ratios of time, reference by bitsandbytes: above 1 the reference is slower.

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
    }
    often = max(1, AT_LEAST // n_weights)  # a small tensor several times, so that the clock sees something
    repeated = {name: lambda step=step: [step() for _ in range(often)] for name, step in steps.items()}
    seconds = take_turns(repeated, rounds=rounds, clock=time.process_time)
    ratios = {
        name: asdict(time_ratio(seconds[name], seconds[f"{name}, bitsandbytes"])) for name in ("quantize", "dequantize")
    }
    return {"n_weights": n_weights, "dtype": str(dtype).removeprefix("torch."), "bit_equal": True, **ratios}


def main() -> None:
    """Compare every size in every dtype, print and write the table."""
    torch.set_num_threads(1)
    rows = [compare(n_weights, dtype) for n_weights in SIZES for dtype in DTYPES]
    for row in rows:
        took = ", ".join(f"{name} {row[name]['ratio']:.2f} times as long" for name in ("quantize", "dequantize"))
        print(f"{row['n_weights']:>9,} weights in {row['dtype']}: {took}")
    note = "processor time of one thread"
    write_measurement("benchmarks/nf4_speed.py", {"rounds": ROUNDS, "rows": rows}, note=note)


if __name__ == "__main__":
    main()
