"""Predicted against published peaks, beside other calculators on the same rows.

    pip install --no-deps fitcheck-llm==0.3.1
    python benchmarks/memory_peers.py     # prints a table, writes data/measurements/memory_peers.json

The rows are PEFT's own benchmark (huggingface/peft, method_comparison/MetaMathQA/results, commit 5d602fdb): an L40S,
Llama-3.2-3B in bfloat16, batch 4, float32 adapters, plain AdamW, no checkpointing. PEFT prints
``max_memory_reserved`` minus its value at the start. The longest padded batch is not published; 768 tokens is the
limit of the data, so each figure is known to about 5 % only. Differences between rows are the sharper test.

A calculator that has no notion of a row (no adapters, no DoRA) leaves it empty. On the full row fitcheck's smallest
AdamW counts 8 bytes of states a parameter, where PyTorch keeps 4 for a bfloat16 model: another convention, not a slip.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from rich.console import Console
from rich.table import Table

from labkit.console import run_script
from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.memory import predict
from labkit.training.record import versions, write_measurement

GIB = 2**30
QV, MLP = ("q_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
ROWS = {  # label -> method, measured GiB
    "LoRA r=32, q and v": (Method(kind="lora", rank=32, targets=QV, dropout=0.0), 20.762),
    "LoRA r=64, q and v": (Method(kind="lora", rank=64, targets=QV, dropout=0.0), 21.004),
    "LoRA r=10, MLP": (Method(kind="lora", rank=10, targets=MLP, dropout=0.0), 23.002),
    "DoRA r=32, q and v": (Method(kind="dora", rank=32, targets=QV, dropout=0.0), 22.848),
    "full": (Method(kind="full"), 36.199),
}


def step(*, padded: bool) -> Step:
    """PEFT's training step: a loop of its own that holds the model's output, logits included, through the backward."""
    shape = {"batch": 4, "seq_len": 768, "padded": padded}
    return Step(**shape, optimizer="adamw_foreach", checkpointing=False, loss="full", keep_logits=True)


def labkit_gib(shape: ModelShape, method: Method, *, padded: bool) -> float:
    """Peak of allocated tensors; reserved memory comes on top."""
    return predict(shape, method, step(padded=padded)).peak_allocated_bytes / GIB


def fitcheck_gib(shape: ModelShape, method: Method) -> float | None:
    """fitcheck-llm's total, its overhead for this GPU included."""
    from fitcheck import ModelConfig, TrainingConfig, estimate, get_gpu

    if method.kind not in ("full", "lora"):
        return None
    config = ModelConfig(
        name=shape.name,
        num_params=shape.n_params,
        hidden_size=shape.hidden_size,
        num_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_kv_heads=shape.n_kv_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied_embeddings,
    )
    adapted = {"lora_rank": method.rank, "lora_targets": list(method.targets)}
    training = TrainingConfig(
        batch_size=4,
        seq_len=768,
        flash_attn=True,
        optimizer_dtype="fp32" if method.uses_adapters else "bf16",
        **(adapted if method.uses_adapters else {"lora_rank": None}),
    )
    return estimate(config, training, get_gpu("l40s")).total_mib / 1024


def accelerate_gib(shape: ModelShape, method: Method) -> float | None:
    """``accelerate estimate-memory``: weights, gradients and Adam's states, no activations, no adapters."""
    from accelerate.commands.estimate import estimate_training_usage

    if method.uses_adapters:
        return None
    return max(estimate_training_usage(4 * shape.n_params, "bfloat16").values()) / GIB


def measure() -> list[dict]:
    """Every row with every calculator's figure in GiB, or None."""
    shape = shape_of("llama-3.2-3b")
    return [
        {
            "row": label,
            "measured": measured,
            "labkit": round(labkit_gib(shape, method, padded=False), 3),
            "labkit_padded": round(labkit_gib(shape, method, padded=True), 3),
            "fitcheck": _rounded(fitcheck_gib(shape, method)),
            "accelerate": _rounded(accelerate_gib(shape, method)),
        }
        for label, (method, measured) in ROWS.items()
    ]


def _rounded(gib: float | None) -> float | None:
    return None if gib is None else round(gib, 3)


def _with_error(gib: float | None, measured: float) -> str:
    return "–" if gib is None else f"{gib:.2f} ({gib / measured - 1:+.1%})"


def main() -> None:
    """Print the table and write it down."""
    if importlib.util.find_spec("fitcheck") is None:
        rule = "it is compared with, and is no dependency of the book"
        raise LabError("fitcheck-llm is not installed", rule, "pip install --no-deps fitcheck-llm==0.3.1")
    rows = measure()
    names = ("labkit", "labkit_padded", "fitcheck", "accelerate")
    table = Table("row", "measured, GiB", *names, title="Llama-3.2-3B, batch 4, 768 tokens, L40S (published by PEFT)")
    for row in rows:
        table.add_row(
            row["row"], f"{row['measured']:.2f}", *(_with_error(row[name], row["measured"]) for name in names)
        )
    Console().print(table)
    report = {
        "source": "huggingface/peft @5d602fdb, method_comparison/MetaMathQA/results",
        "versions": versions() | {"fitcheck-llm": importlib.metadata.version("fitcheck-llm")},
        "unit": "GiB",
        "rows": rows,
    }
    write_measurement("benchmarks/memory_peers.py", report)


if __name__ == "__main__":
    run_script(main, __doc__)
