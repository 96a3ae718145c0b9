"""What DoRA costs beside LoRA: time of a training step, peak memory of a step.

    nice python benchmarks/dora_cost.py     # writes data/measurements/dora_cost.json; about 20 minutes on an idle core

Time: SmolLM2-135M with its real weights, rank 16 on all linears, one process and one thread, the methods in turns; a
ratio is of processor time and taken within each round, so that other programs on the machine drop out. ``by hand`` is
`labkit.theory.dora.DoRALinear`: PEFT's numbers to the last bit, without its multiplication by an identity.

Memory: the dry run of the courses' models on a GPU (static and peak bytes), and the ledger of a real step here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from labkit.console import run_script
from labkit.models.methods import Method, Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.models.weights import locate
from labkit.theory.dora import add_dora
from labkit.training.dryrun import trace
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.ledger import add_adapters, make_optimizer, record_step, train_step
from labkit.training.loading import load_base, load_tokenizer, quiet
from labkit.training.record import write_measurement

PROFILE = PROFILES["laptop"]
RANK, ROUNDS = 16, 6
TOKENS = (512, 128, 1024)  # in one step: one row of so many tokens
CASES = {
    "lora": Method(kind="lora", rank=RANK, dropout=0.0, dtype="float32"),
    "dora": Method(kind="dora", rank=RANK, dropout=0.0, dtype="float32"),
    "dora by hand": Method(kind="dora", rank=RANK, dropout=0.0, dtype="float32"),
    "lora, dropout": Method(kind="lora", rank=RANK, dropout=0.05, dtype="float32"),
    "dora, dropout": Method(kind="dora", rank=RANK, dropout=0.05, dtype="float32"),
    "qlora": Method(kind="qlora", rank=RANK, dropout=0.0, dtype="float32"),
    "qdora": Method(kind="qdora", rank=RANK, dropout=0.0, dtype="float32"),
}
COMPARED = {
    "dora": "lora",
    "dora by hand": "lora",
    "dora, dropout": "lora, dropout",
    "qdora": "qlora",
}
MODELS = ("qwen3-1.7b", "qwen3-8b")
STEPS = {
    "4 x 1024, checkpointing": Step(batch=4, seq_len=1024),
    "1 x 2048, no checkpointing": Step(batch=1, seq_len=2048, checkpointing=False),
}


def adapted(name: str) -> torch.nn.Module:
    """The profile's pretrained model with the adapters of a case."""
    method, weights = CASES[name], locate(PROFILE)
    with quiet():
        model = load_base(weights, method, tokenizer=load_tokenizer(weights), device="cpu")
    if name != "dora by hand":
        return add_adapters(model, method)
    add_dora(model, method)
    return model.train()


def stepper(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    """One training step of a model, with an optimizer of its own."""
    optimizer = make_optimizer(model)
    return lambda: train_step(model, optimizer, ids)


def measured_times(models: dict[str, torch.nn.Module], tokens: int) -> list[dict[str, Any]]:
    """Every compared pair at one number of tokens."""
    ids = torch.randint(0, 40_000, (1, tokens), generator=torch.Generator().manual_seed(0))
    steps = {name: stepper(model, ids) for name, model in models.items()}
    times = take_turns(steps, rounds=ROUNDS, clock=time.process_time)
    rows = [
        {"method": name, "beside": base, "tokens": tokens, **asdict(time_ratio(times[name], times[base]))}
        for name, base in COMPARED.items()
    ]
    for row in rows:
        print(row, flush=True)
    return rows


def measured_peaks(models: dict[str, torch.nn.Module], tokens: int) -> list[dict[str, Any]]:
    """Peak of a real step's tensors here, by the ledger, without checkpointing."""
    ids = torch.randint(0, 40_000, (1, tokens), generator=torch.Generator().manual_seed(0))
    rows = []
    for name in (name for name in models if name != "dora by hand"):
        model = models[name]
        rows.append({"method": name, "tokens": tokens, "peak_bytes": record_step(model, ids).peak_bytes})
        gc.collect()
        print(rows[-1], flush=True)
    return rows


def dry_runs() -> list[dict[str, Any]]:
    """The same step of LoRA and DoRA, of QLoRA and QDoRA, on the courses' models, by the dry run."""
    rows = []
    for model in MODELS:
        for said, step in STEPS.items():
            for kind in ("lora", "dora", "qlora", "qdora"):
                for dropout in (0.0, 0.05):
                    method = replace(Method(kind=kind, rank=32, dropout=dropout), dtype="bfloat16")
                    found = trace(shape_of(model), method, step)
                    sizes = {"static_bytes": found.static_bytes, "peak_bytes": found.peak_allocated_bytes}
                    where = {"peak_phase": found.peak_phase, "peak_operation": found.peak_operation}
                    rows.append({"model": model, "step": said, "method": kind, "dropout": dropout, **sizes, **where})
                    print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure all and write the table."""
    torch.set_num_threads(1)
    dry = dry_runs()
    models = {name: adapted(name) for name in CASES}
    peaks = measured_peaks(models, 512)
    note = "processor time of one thread"
    report = {
        "model": PROFILE.model,
        "rank": RANK,
        "threads": torch.get_num_threads(),
        "ledger_peaks": peaks,
        "dry_runs": dry,
        "times": [],
    }
    for tokens in TOKENS:
        report["times"] += measured_times(models, tokens)
        write_measurement("benchmarks/dora_cost.py", report, note=note)


if __name__ == "__main__":
    run_script(main, __doc__)
