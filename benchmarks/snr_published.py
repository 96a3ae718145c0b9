"""How alike two scans rank the modules of a type: ours of SmolLM2-135M-Instruct, and the public one of SmolLM-135M.

    python benchmarks/snr_published.py FILE     # writes data/results/snr_against_published.json; seconds

FILE is ``model_snr_results/snr_results_HuggingFaceTB-SmolLM-135M.json`` of github.com/cognitivecomputations/spectrum
(commit 9598a8dbc9dbd37fde2625a672e64eaadf88f3fb). The two models have the same shape, and that is all: SmolLM2 was
trained anew, and ours is dequantized from 4 bits. Only the orders are compared; the file itself is not kept here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from scipy.stats import spearmanr

from labkit.console import run_script
from labkit.files import write_json
from labkit.models.methods import TARGETS
from labkit.paths import checkout
from labkit.theory.selection import select
from labkit.training.record import provenance
from labkit.training.scan import read_scan

RESULTS = checkout() / "data" / "results"
SOURCE = {
    "repository": "github.com/cognitivecomputations/spectrum",
    "path": "model_snr_results/snr_results_HuggingFaceTB-SmolLM-135M.json",
    "commit": "9598a8dbc9dbd37fde2625a672e64eaadf88f3fb",
}


def published(path: Path) -> dict[str, float]:
    """Module -> score, of the linears in such a file."""
    found = {}
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
        kind = name.rpartition(".")[2]
        if kind in TARGETS and math.isfinite(entry["snr"]):
            found[f"{name.split('.')[2]}.{kind}"] = entry["snr"]
    return found


def compare(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, dict[str, float]]:
    """Per type: Spearman's rho with its p, and how many of the highest quarter both have, beside chance."""
    top = [set(select(scores, top_percent=25)) for scores in (ours, theirs)]
    found = {}
    for kind in TARGETS:
        modules = sorted(module for module in ours if module.endswith(f".{kind}") and module in theirs)
        rho, p = spearmanr([ours[module] for module in modules], [theirs[module] for module in modules])
        chosen = [len(some & set(modules)) for some in top]
        both = len(top[0] & top[1] & set(modules))
        by_chance = chosen[0] * chosen[1] / len(modules)
        row = {"modules": len(modules), "rho": round(float(rho), 3), "p": float(f"{p:.2g}")}
        found[kind] = row | {"of_the_highest": chosen[0], "in_both": both, "by_chance": round(by_chance, 2)}
    return found


def main(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The published scan.")]) -> None:
    """Compare with ``file``, print and write."""
    types = compare(read_scan(RESULTS / "snr_smollm2_135m.jsonl").scores, published(file))
    for kind, row in types.items():
        print(kind, row)
    result = provenance("benchmarks/snr_published.py") | {"against": SOURCE, "types": types}
    write_json(RESULTS / "snr_against_published.json", result)


if __name__ == "__main__":
    run_script(main, __doc__)
