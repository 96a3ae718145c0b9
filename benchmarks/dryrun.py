"""Seconds and memory of `labkit dryrun` as a user starts it, and how many times faster the closed form is.

    python benchmarks/dryrun.py     # writes data/measurements/dryrun.json; two minutes or three

Each run is a new process, imports included, and its time is the processor's. The sizes are those of ``--seq-len 2048``,
rank 16. Memory is the largest resident set of the process, which it says itself at its end; nothing of the model is in
it. Repeated, and the fastest kept, because other programs may run on the machine. For the closed form, both answer in
one process and take turns, after imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from labkit.console import run_script
from labkit.models.methods import Method, Step
from labkit.models.shapes import shape_of
from labkit.theory.memory import Prediction, predict
from labkit.training.dryrun import trace
from labkit.training.interleaved import programs_time, take_turns, time_ratio
from labkit.training.record import write_measurement

REPEATS, ROUNDS = 3, 5
RUNS = [
    ("qwen3-1.7b", "lora", ["--loss", "full", "--no-checkpointing"]),
    ("qwen3-1.7b", "qlora", []),
    ("qwen3-1.7b", "dora", []),
    ("qwen3-8b", "full", []),
    ("qwen3-8b", "qlora", []),
]
CHILD = """
import sys
from labkit.cli import main
from labkit.training.measure import peak_rss_bytes
try:
    main()
finally:
    print(peak_rss_bytes(), file=sys.stderr)
"""


def run(model: str, method: str, options: list[str]) -> dict:
    """One process: processor seconds from start to end, the largest resident set, the peak it found."""
    command = [sys.executable, "-c", CHILD, "dryrun", "--model", model, "--method", method, "--json"]
    command += ["--rank", "16", "--seq-len", "2048", *options]
    before = programs_time()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cpu_seconds = programs_time() - before
    peak_bytes = json.loads(done.stdout)["peak_allocated_bytes"]
    return {"cpu_seconds": cpu_seconds, "max_rss_bytes": int(done.stderr.split()[-1]), "peak_bytes": peak_bytes}


def best(model: str, method: str, options: list[str]) -> dict:
    """The fastest of `REPEATS`."""
    fastest = min((run(model, method, options) for _ in range(REPEATS)), key=lambda done: done["cpu_seconds"])
    return {"model": model, "method": method, "options": " ".join(options), **fastest}


def beside_closed_form(model: str, method: Method, step: Step, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """How many times as long the dry run takes as the formula, and by how much the formula's peak is off."""
    setting, peaks = (shape_of(model), method, step), {}

    def peak(name: str, find: Callable[..., Prediction]) -> None:
        peaks[name] = find(*setting).peak_allocated_bytes

    steps = {"dry run": lambda: peak("dry run", trace), "formula": lambda: peak("formula", predict)}
    seconds = take_turns(steps, rounds=rounds, clock=time.process_time)
    off = peaks["formula"] / peaks["dry run"] - 1
    ratio = time_ratio(seconds["dry run"], seconds["formula"])
    return {"model": model, "method": method.kind, "formula_off_by": off, "times_as_long": asdict(ratio)}


def main() -> None:
    """Run all and write what they took."""
    runs = [best(*each) for each in RUNS]
    step = Step(batch=4, seq_len=2048)
    beside = [beside_closed_form(model, Method(kind=method, rank=16), step) for model, method, more in RUNS if not more]
    findings = {"runs": runs, "beside_closed_form": beside}
    write_measurement("benchmarks/dryrun.py", findings, note="processor time")
    for each in runs:
        memory = f"{each['max_rss_bytes'] / 2**20:.0f} MiB"
        print(each["model"], each["method"], each["options"], f"{each['cpu_seconds']:.1f} s", memory)
    for each in beside:
        print(each)


if __name__ == "__main__":
    run_script(main, __doc__)
