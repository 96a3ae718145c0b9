"""Closed form against two published tables of real GPU runs, beyond PEFT's (`memory_peers.py`).

    python benchmarks/memory_published.py     # prints both, writes data/measurements/memory_published.json; seconds

**QwenLM** (README of QwenLM/Qwen, "Profiling of Memory and Speed"): an A100-SXM4-80G, CUDA 11.8, torch 2.0, flash
attention 2, batch 1. Not stated: which counter, GB or GiB, whether logits were kept. One decimal. Here: their script's
LoRA of rank 64 on all linears, bf16 autocast, checkpointing, the full loss. Their model is Qwen 1, with the dimensions
below; its q, k and v are one matrix there. What does not depend on counter and context is the slope, bytes a token.

**Unsloth** (README of unslothai/unsloth, "Llama 3.1 (8B) max. context length", column Hugging Face + FA2): 4-bit QLoRA
of rank 32 on all linears, batch 1; the longest context before memory ran out, for each size of GPU. Not stated: GPU,
versions, loss, k-bit preparation. Predicted is the peak at that length for the settings of that time: k-bit prepared,
full loss, logits kept, 8-bit AdamW. It must be below the GPU's memory, by what is not counted.
"""

from __future__ import annotations

from labkit.console import run_script
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.memory import predict
from labkit.training.record import write_measurement

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
QWEN_GB = {  # LoRA rows, in "G"
    "qwen-1.8b": (6.7, 7.4, 8.4, 11.0, 16.2, 21.8),
    "qwen-7b": (20.1, 20.4, 21.5, 23.8, 29.7, 36.6),
    "qwen-14b": (34.6, 35.1, 35.3, 37.4, 42.5, 55.2),
}
UNSLOTH = {12: 932, 16: 2_551, 24: 5_789, 40: 12_264, 48: 15_502, 80: 28_454}  # GB of the GPU -> longest context


def qwen(name: str, vocab: int, hidden: int, intermediate: int, n_layers: int) -> ModelShape:
    """A model of the first Qwen series: no grouped heads, biases on q, k and v, as Qwen2's class has them."""
    heads = hidden // 128
    return ModelShape(
        name, "qwen2", vocab, hidden, intermediate, n_layers, heads, heads, 128, tied_embeddings=False,
        attention_bias=True,
    )  # fmt: skip


SHAPES = (
    qwen("qwen-1.8b", 151_936, 2048, 5504, 24),
    qwen("qwen-7b", 151_936, 4096, 11_008, 32),
    qwen("qwen-14b", 152_064, 5120, 13_696, 40),
)


def qwen_rows() -> list[dict]:
    """Predicted and published, in GB, and the slope between the first and the last length, in MB a token."""
    method = Method(kind="lora", rank=64, adapter_dtype="autocast")
    rows = []
    for shape in SHAPES:
        found = [predict(shape, method, Step(seq_len=n, loss="full")).peak_allocated_bytes / 1e9 for n in LENGTHS]
        published = QWEN_GB[shape.name]
        rows.append(
            {
                "model": shape.name,
                "published_gb": list(published),
                "predicted_gb": [round(gb, 2) for gb in found],
                "published_mb_per_token": round(_slope(published), 3),
                "predicted_mb_per_token": round(_slope(found), 3),
            }
        )
    return rows


def _slope(sizes_gb: tuple[float, ...] | list[float]) -> float:
    return 1e3 * (sizes_gb[-1] - sizes_gb[0]) / (LENGTHS[-1] - LENGTHS[0])


def unsloth_rows() -> list[dict]:
    """The predicted peak at each published context, in GiB, beside the GPU."""
    method = Method(kind="qlora", rank=32, kbit_prepare=True)
    rows = []
    for card, length in UNSLOTH.items():
        step = Step(seq_len=length, loss="full", keep_logits=True, optimizer="adamw_8bit")
        peak = predict(shape_of("llama-3.1-8b"), method, step).peak_allocated_bytes / 2**30
        rows.append({"gpu_gb": card, "published_context": length, "predicted_gib": round(peak, 2)})
    return rows


def main() -> None:
    """Print both tables and write them down."""
    qwens, contexts = qwen_rows(), unsloth_rows()
    for row in qwens:
        pairs = zip(row["predicted_gb"], row["published_gb"], strict=True)
        ratios = " ".join(f"{predicted:5.1f}/{published:4.1f}" for predicted, published in pairs)
        slopes = row["predicted_mb_per_token"], row["published_mb_per_token"]
        print(f"{row['model']:10} {ratios}  MB a token {slopes[0]} / {slopes[1]} = {slopes[0] / slopes[1]:.3f}")
    for row in contexts:
        length, peak, card = row["published_context"], row["predicted_gib"], row["gpu_gb"]
        print(f"{card:3} GB, {length:6,} tokens: {peak:6.2f} GiB, {card - peak:.2f} left")
    report = {
        "sources": ["QwenLM/Qwen README.md", "unslothai/unsloth README.md (2025)"],
        "qwen": qwens,
        "unsloth": contexts,
    }
    write_measurement("benchmarks/memory_published.py", report)


if __name__ == "__main__":
    run_script(main, __doc__)
