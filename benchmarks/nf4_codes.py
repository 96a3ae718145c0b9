"""What each 4-bit code does to SmolLM2-135M: weight error, held-out loss, divergence; kept for lesson 03.

    python benchmarks/nf4_codes.py     # writes data/measurements/nf4_laptop.json; ten minutes

Each linear is swapped for its quantized and dequantized self; the losses are those of the laptop profile's held-out
answers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from labkit.console import run_script
from labkit.models.methods import TARGETS
from labkit.models.profiles import PROFILES, settled_method
from labkit.models.weights import locate
from labkit.theory.codes import CODES
from labkit.theory.nf4 import bits_per_weight
from labkit.theory.normal_blocks import lloyd_levels
from labkit.training.fakequant import answer_logprobs, decoder_linears, divergence, fake_quantized, loss_change
from labkit.training.loading import load_base, load_tokenizer, quiet
from labkit.training.record import write_measurement
from labkit.training.run import rows_of

BLOCK_SIZES = (32, 128, 256, 1024, 4096)


def settings() -> list[dict[str, Any]]:
    """Every code at block 64, NF4 by block size, with double quantization, and one kind of linear at a time."""
    cases: list[dict[str, Any]] = [{"label": code, "code": code} for code in CODES]
    for fixed in ((0.0,), (-1.0, 1.0), (-1.0, 0.0, 1.0)):
        label = "lloyd with " + ", ".join(f"{level:g}" for level in fixed)
        cases.append({"label": label, "code": lloyd_levels(64, fixed=fixed).tolist()})
    cases.append({"label": "nf4, double quantization", "code": "nf4", "double_quant": True})
    cases += [{"label": f"nf4, block {size}", "code": "nf4", "block_size": size} for size in BLOCK_SIZES]
    return cases + [{"label": f"nf4, {kind} only", "code": "nf4", "kind": kind} for kind in TARGETS]


def main() -> None:
    """Measure on the profile's held-out rows and write the table."""
    profile = PROFILES["laptop"]
    tokenizer = load_tokenizer(weights := locate(profile))
    with quiet():
        model = load_base(weights, replace(settled_method(profile), kind="lora"), tokenizer=tokenizer)
    rows = rows_of(profile, "heldout")
    reference, tokens = answer_logprobs(model, tokenizer, rows)
    measured = [effect(model, tokenizer, rows, reference, tokens, case) for case in settings()]
    report = {
        "model": profile.hub_id,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "rows": len(rows),
        "answer_tokens": len(tokens),
        "loss": -float(reference.gather(1, tokens[:, None]).double().mean()),
        "effects": measured,
    }
    write_measurement("benchmarks/nf4_codes.py", report, name="nf4_laptop")


def effect(model, tokenizer, rows, reference, tokens, case: dict[str, Any]) -> dict[str, Any]:
    """Errors, change of the loss and divergence of one setting."""
    options = {key: case[key] for key in ("code", "block_size", "double_quant") if key in case}
    kind = case.get("kind")
    only = [name for name in decoder_linears(model) if name.endswith(kind)] if kind else None
    with fake_quantized(model, only=only, **options) as errors:
        found, _ = answer_logprobs(model, tokenizer, rows)
    change, standard_error = loss_change(reference, found, tokens)
    size, double = case.get("block_size", 64), case.get("double_quant", False)
    result = {
        "label": case["label"],
        "block_size": size,
        "bits_per_weight": bits_per_weight(size, double_quant=double),
        "weight_error": sum(errors.values()) / len(errors),
        "loss_change": change,
        "loss_change_standard_error": standard_error,
        "divergence": divergence(reference, found),
    }
    print({key: round(value, 5) if isinstance(value, float) else value for key, value in result.items()}, flush=True)
    return result


if __name__ == "__main__":
    run_script(main, __doc__)
