"""How far the closed form is from the dry run, over a seeded sample of all switches.

    python benchmarks/memory_agreement.py     # writes data/measurements/memory_agreement.json; five minutes

Each row is one setting: the closed form's peak divided by the dry run's. Most models are cut to 2 to 6 layers, so that
the whole takes minutes; every twelfth row has all of them. With few layers the weights are small beside what moves, so
an error in what moves shows more than in a whole model. Nothing runs on a GPU.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, replace

from labkit.console import run_script
from labkit.models.methods import TARGETS, Method, Step
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.memory import predict
from labkit.training.dryrun import trace
from labkit.training.record import write_measurement

MODELS = (
    *("qwen3-0.6b", "qwen3-1.7b", "qwen3-8b", "llama-3.2-3b"),
    *("qwen2.5-1.5b", "qwen2.5-7b", "mistral-7b", "smollm2-135m"),
)
CHOSEN_TARGETS = (TARGETS, TARGETS, ("q_proj", "v_proj"), TARGETS[4:], TARGETS[:4], ("o_proj",), ("down_proj",))
SEED, ROWS = 0, 300


def settings(seed: int, rows: int) -> list[tuple[ModelShape, Method, Step]]:
    """The sample: the same for the same seed."""
    draw = random.Random(seed)
    return [one_setting(draw, all_layers=index % 12 == 0) for index in range(rows)]


def one_setting(draw: random.Random, *, all_layers: bool) -> tuple[ModelShape, Method, Step]:
    shape = shape_of(draw.choice(MODELS))
    if not all_layers:
        shape = replace(shape, n_layers=draw.randint(2, 6))
    return shape, _method(draw, shape.n_layers), _step(draw)


def _method(draw: random.Random, n_layers: int) -> Method:
    kind = draw.choice(("full", "lora", "lora", "qlora", "qlora", "dora", "qdora", "spectrum"))
    some = tuple(draw.sample(range(n_layers), draw.randint(1, n_layers)))
    dtype = draw.choice(("bfloat16", "bfloat16", "bfloat16", "float16", "float32"))
    adapter_dtype = draw.choice(("float32", "bfloat16", "autocast"))
    if dtype == "float16" or (dtype == "float32" and adapter_dtype == "autocast"):
        adapter_dtype = "float32"  # the recipe trains float16 with float32 adapters only
    quantized = kind in ("qlora", "qdora")
    return Method(
        kind=kind,
        rank=draw.choice((4, 16, 64)),
        dropout=draw.choice((0.0, 0.05)),
        targets=draw.choice(CHOSEN_TARGETS),
        layers=some if kind == "spectrum" or (kind == "lora" and draw.random() < 0.2) else (),
        dtype=dtype,
        adapter_dtype=adapter_dtype,
        double_quant=draw.random() < 0.5,
        kbit_prepare=quantized and draw.random() < 0.5,
    )


def _step(draw: random.Random) -> Step:
    loss = draw.choice(("full", "fused", "fused", "chunked"))
    return Step(
        batch=draw.choice((1, 1, 2, 4)),
        seq_len=draw.choice((128, 256, 512, 1024, 2048)),
        optimizer=draw.choice(("adamw", "adamw", "adamw_foreach", "adamw_8bit", "paged_adamw_8bit", "sgd")),
        checkpointing=draw.random() < 0.6,
        attention=draw.choice(("sdpa", "sdpa", "eager")),
        loss=loss,
        keep_logits=loss == "full" and draw.random() < 0.5,
        padded=draw.random() < 0.3,
    )


def compare(shape: ModelShape, method: Method, step: Step) -> dict:
    """One row: both peaks, their ratio and where each is."""
    started = time.perf_counter()
    traced = trace(shape, method, step)
    seconds = time.perf_counter() - started
    predicted = predict(shape, method, step)
    return {
        "model": shape.name,
        "n_layers": shape.n_layers,
        "method": {name: value for name, value in asdict(method).items() if name not in ("alpha", "block_size")},
        "step": asdict(step),
        "predicted_bytes": predicted.peak_allocated_bytes,
        "traced_bytes": traced.peak_allocated_bytes,
        "ratio": predicted.peak_allocated_bytes / traced.peak_allocated_bytes,
        "predicted_phase": predicted.peak_phase,
        "traced_phase": traced.peak_phase,
        "traced_operation": traced.peak_operation,
        "dry_run_seconds": round(seconds, 2),
    }


def summary(rows: list[dict]) -> dict:
    """Shares of the rows that are this close, and the worst rows."""
    off = [abs(row["ratio"] - 1) for row in rows]
    worst = sorted(rows, key=lambda row: abs(row["ratio"] - 1), reverse=True)
    return {
        "rows": len(rows),
        "within_1_percent": sum(error <= 0.01 for error in off) / len(rows),
        "within_3_percent": sum(error <= 0.03 for error in off) / len(rows),
        "largest_error": max(off),
        "median_error": sorted(off)[len(off) // 2],
        "worst": worst[:10],
    }


def main() -> None:
    """Compare all rows and write the summary."""
    rows = [compare(*setting) for setting in settings(SEED, ROWS)]
    report = {
        "seed": SEED,
        **summary(rows),
        "ratios": [round(row["ratio"], 4) for row in rows],
    }
    write_measurement("benchmarks/memory_agreement.py", report, note="no GPU")
    print({name: report[name] for name in ("rows", "within_1_percent", "within_3_percent", "largest_error")})


if __name__ == "__main__":
    run_script(main, __doc__)
