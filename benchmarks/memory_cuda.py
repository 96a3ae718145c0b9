"""Closed form and dry run against a GPU: {0.6B, 1.7B, 8B} x {full, LoRA, QLoRA, DoRA} x checkpointing, one step each.

    python benchmarks/memory_cuda.py                # writes data/measurements/<gpu>.json; about ten minutes
    python benchmarks/memory_cuda.py --rehearse     # the same code on a tiny twin; without a GPU nothing is measured

Models are twins with random weights, so nothing is downloaded; rank 16 on all linears, one sequence of 2,048 tokens,
fused AdamW, the fused loss. A row that does not fit the GPU is a row that says so. The file is written after every row,
and rows that are in it already are not run again; delete it to start anew. No GPU was at hand when this was written.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from labkit.console import run_script
from labkit.files import write_json
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape, shape_of
from labkit.paths import checkout
from labkit.theory.memory import PHASES
from labkit.training.comparison import NOT_MEASURED, compared, ran_out
from labkit.training.dryrun import trace_step
from labkit.training.real_step import Measured, measure_twin
from labkit.training.record import hardware, provenance

MIB = 2**20
MODELS = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-8b")
KINDS = ("full", "lora", "qlora", "dora")
TINY = ModelShape("tiny-twin", "qwen3", 4096, 64, 192, 2, 2, 1, 32, tied_embeddings=True, qk_norm=True)
NO_CUDA = "no CUDA GPU, so there is nothing to measure; --rehearse runs the same code on a tiny twin without one"


@dataclass(frozen=True)
class Setting:
    """One row of the matrix."""

    shape: ModelShape
    method: Method
    step: Step

    @property
    def key(self) -> str:
        """Its name in the file."""
        checkpointing = "checkpointed" if self.step.checkpointing else "not checkpointed"
        return f"{self.shape.name} {self.method.kind} {checkpointing}"


def matrix(shapes: list[ModelShape], *, seq_len: int) -> list[Setting]:
    """Every model with every method, checkpointed and not."""
    return [
        Setting(shape, Method(kind=kind, rank=16, dropout=0.0), Step(seq_len=seq_len, checkpointing=on))
        for shape in shapes
        for kind in KINDS
        for on in (True, False)
    ]


def row_of(setting: Setting) -> dict[str, Any]:
    """One row: predicted, traced and measured bytes of each phase, or why nothing was measured."""
    traced = trace_step(setting.shape, setting.method, setting.step)
    measured, error = _measured(setting)
    found = compared(traced, measured)
    return {"key": setting.key, **found.as_dict(), "notes": found.notes(), "error": error}


def _measured(setting: Setting) -> tuple[Measured | None, str | None]:
    try:
        measured = measure_twin(setting.shape, setting.method, setting.step)
    except torch.OutOfMemoryError as error:  # its traceback holds tensors: it must not outlive this function
        return None, ran_out(error)
    return measured, None if measured else NOT_MEASURED


def file_of(folder: Path, *, rehearse: bool) -> Path:
    """``<gpu>.json`` in ``folder``, in the letters of a file name."""
    name = "rehearsal" if rehearse else torch.cuda.get_device_name()
    return folder / f"{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.json"


def run(settings: list[Setting], path: Path) -> dict[str, Any]:
    """Run what is not in the file yet, and write the file after every row."""
    head = provenance("benchmarks/memory_cuda.py") | {"machine": hardware()}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known and known["versions"] != head["versions"]:
        raise SystemExit(f"{path} was made with other versions: move it away, or install those again")
    report = {**head, "rows": known.get("rows", [])}
    done = {row["key"] for row in report["rows"]}
    for setting in settings:
        if setting.key in done:
            continue
        report["rows"].append(row_of(setting))
        write_json(path, report)
        print(line_of(report["rows"][-1]), flush=True)
    return report


def line_of(row: dict[str, Any]) -> str:
    """A row in one line: the peak of the closed form, of the dry run and of the GPU, in MiB, and what is left."""
    peak = max(row["phases"], key=lambda phase: phase["traced_bytes"])
    predicted, traced = (peak[f"{name}_bytes"] / MIB for name in ("predicted", "traced"))
    start = f"{row['key']:38} {peak['phase']:9} closed form {predicted:9,.1f}  dry run {traced:9,.1f}  measured "
    if row["error"]:
        return start + row["error"]
    measured, left = peak["measured_bytes"] / MIB, peak["left_bytes"] / MIB
    return f"{start}{measured:9,.1f}  dry run / measured {traced / measured:.3f}  left {left:+,.1f}: {peak['cause']}"


def summary(report: dict[str, Any]) -> str:
    """How far both are from what was measured, over all phases of all rows that were measured."""
    lines = []
    phases = [phase for row in report["rows"] for phase in row["phases"] if phase["measured_bytes"]]
    for name in ("predicted", "traced"):
        off = [abs(phase[f"{name}_bytes"] / phase["measured_bytes"] - 1) for phase in phases]
        if off:
            within = sum(share <= 0.03 for share in off) / len(off)
            lines.append(f"{name}: {len(off)} phases, {within:.0%} within 3 %, the worst off by {max(off):.1%}")
    ran_out = sum("out of memory" in (row["error"] or "") for row in report["rows"])
    return "\n".join([*lines, f"rows: {len(report['rows'])}, out of memory: {ran_out}, phases: {', '.join(PHASES)}"])


def main(
    *,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="A tiny twin; without a GPU nothing is measured.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the file (default: data/measurements; rehearsals: build).")
    ] = None,
) -> None:
    """Measure the matrix, or rehearse it."""
    if not rehearse and not torch.cuda.is_available():
        sys.exit(NO_CUDA)
    folder = out or checkout() / ("build" if rehearse else "data/measurements")
    settings = matrix([TINY], seq_len=64) if rehearse else matrix([*map(shape_of, MODELS)], seq_len=2048)
    path = file_of(folder, rehearse=rehearse)
    print(summary(run(settings, path)), f"\n{path}")


if __name__ == "__main__":
    run_script(main, __doc__)
