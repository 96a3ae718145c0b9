"""How full fine-tuning, LoRA and DoRA change lengths and directions of the weights of SmolLM2-135M.

    nice python benchmarks/dora_correlation.py     # about ten minutes on one core

Writes data/measurements/dora_correlation_laptop.json. For each method and seed 12 steps, watched at four moments, all
linears of all layers; the points of the query matrices are kept, which are those of the paper's figure 2. Full
fine-tuning trains the linears only, at a tenth of the learning rate, as in lesson 02.
"""

from __future__ import annotations

import gc
from dataclasses import asdict
from typing import Any

from labkit.console import run_script
from labkit.models.profiles import PROFILES, settled_method
from labkit.models.weights import locate
from labkit.theory.dora import correlate
from labkit.training.evaluate import heldout_loss
from labkit.training.loading import load_base, load_tokenizer, quiet
from labkit.training.recipe import build_trainer
from labkit.training.record import write_measurement
from labkit.training.run import adjusted, rows_of
from labkit.training.updates import train_only_linears
from labkit.training.weight_changes import Changes, chosen, train_watched

STEPS, SEEDS = 12, (0, 1, 2)
KINDS = {"full": 0.1, "lora": 1.0, "dora": 1.0}  # times the profile's learning rate


def watched(profile, kind: str, seed: int) -> dict[str, Any]:
    """One run: the held-out loss after it, and every matrix's change at four moments."""
    rate = KINDS[kind] * profile.learning_rate
    run = adjusted(profile, kind=kind, dtype="float32", dropout=0.0, steps=STEPS, learning_rate=rate)
    tokenizer = load_tokenizer(weights := locate(profile))
    rows = rows_of(profile, "train")[: STEPS * run.rows_per_step]
    with quiet():
        model = load_base(weights, settled_method(run), tokenizer=tokenizer)
        trainer = build_trainer(model, tokenizer, run, rows, "runs", seed=seed)
    only = train_only_linears(trainer.model) if kind == "full" else ()
    found = train_watched(trainer, only=only)
    loss, _ = heldout_loss(trainer.model, tokenizer, rows_of(profile, "heldout"))
    points = [
        {"step": step, "name": name, "direction": round(change.direction, 7), "magnitude": round(change.magnitude, 7)}
        for step, changes in found.items()
        for name, change in changes.items()
        if name.endswith("q_proj")
    ]
    settings = {"kind": kind, "seed": seed, "learning_rate": rate, "heldout_loss": round(loss, 4)}
    return settings | {"correlations": correlations(found), "points": points}


def correlations(found: Changes) -> list[dict[str, Any]]:
    """For the query, the value and all matrices: at all moments or at the last, lengths as they are or relative."""
    return [
        {"targets": targets or "all", "last": last, "relative": relative}
        | {key: round(value, 4) for key, value in asdict(correlate(changes, relative=relative)).items()}
        for targets in ("q_proj", "v_proj", "")
        for last in (False, True)
        for changes in [chosen(found, *filter(None, [targets]), last=last)]
        for relative in (False, True)
    ]


def main() -> None:
    """All runs, written after each."""
    profile, runs = PROFILES["laptop"], []
    for seed in SEEDS:
        for kind in KINDS:
            runs.append(watched(profile, kind, seed))
            gc.collect()
            report = {
                "model": profile.hub_id,
                "settings": {
                    "steps": STEPS,
                    "rank": profile.method.rank,
                    "dropout": 0.0,
                    "rows_per_step": profile.batch,
                },
                "runs": runs,
            }
            made_by, name = "benchmarks/dora_correlation.py", "dora_correlation_laptop"
            write_measurement(made_by, report, name=name)
            print(kind, seed, runs[-1]["heldout_loss"], *runs[-1]["correlations"], sep="\n  ", flush=True)


if __name__ == "__main__":
    run_script(main, __doc__)
