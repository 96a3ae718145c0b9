"""Tokens a second and memory of the fine-tuning recipe against the script that a user of TRL would write.

    python benchmarks/sft_speed.py     # writes data/measurements/sft_speed.json; two minutes, or five on a busy machine
    python benchmarks/sft_speed.py --quick     # the tiny profile, few steps, nothing written

`plain_trainer` is that script: TRL, PEFT, bitsandbytes and the same settings, nothing of the book but its rows and its
chat template. Each side trains in a process of its own, and the two take turns step by step, so that other programs on
the machine drop out of the ratio of a step; more still out of that of the processor time. The recipe saves a checkpoint
every few steps, as `labkit sft` does; the plain script, as TRL would in a run of this length, saves none on the way.
Steps that save count only in the ratio that says so.

Before anything is written, both curves must be equal: the same tokens, and losses and gradient norms within 1e-5. In
float32 a sum is known to 6e-8; the recipe's LM head multiplies fewer rows, which may add up in another order.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.console import QuickFlag, run_script
from labkit.models.profiles import PROFILES, Profile
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.measure import peak_rss_bytes
from labkit.training.record import write_measurement
from labkit.training.resume import save_every, train_kept
from labkit.training.run import rows_of

if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl import SFTTrainer

STEPS, QUICK_STEPS = 25, 6  # the first warms up
SIDES = ("recipe", "plain")
TOLERANCE = 1e-5
SEED = 0


def plain_trainer(profile: Profile, out: Path) -> SFTTrainer:
    """QLoRA by TRL's documentation, with the numbers of ``profile``."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from labkit.models.weights import locate
    from labkit.training.template import install

    folder, method = locate(profile).folder, profile.method
    tokenizer = install(AutoTokenizer.from_pretrained(folder))  # the same chat template, hence the same tokens
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=method.double_quant,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantization, device_map="cpu", use_safetensors=True
    )
    said = [(row.instruction, row.response) for row in rows_of(profile, "train")]
    rows = [
        {"prompt": [{"role": "user", "content": asked}], "completion": [{"role": "assistant", "content": answer}]}
        for asked, answer in said
    ]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(out),
            max_steps=profile.steps,
            per_device_train_batch_size=profile.batch,
            gradient_accumulation_steps=profile.accumulation,
            learning_rate=profile.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(0.1 * profile.steps),
            max_length=profile.seq_len,
            gradient_checkpointing=profile.checkpointing,
            bf16=False,
            use_cpu=True,
            seed=SEED,
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    for parameter in trainer.model.parameters():  # TRL casts a quantized model's adapters to bfloat16
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def recipe_trainer(profile: Profile, out: Path) -> SFTTrainer:
    """The same with the book's code."""
    from labkit.models.weights import locate
    from labkit.training.loading import load_base, load_tokenizer
    from labkit.training.recipe import build_trainer

    weights = locate(profile)
    tokenizer = load_tokenizer(weights)
    model = load_base(weights, profile.method, tokenizer=tokenizer, device="cpu")
    return build_trainer(model, tokenizer, profile, rows_of(profile, "train"), out, seed=SEED)


def _child(side: str, profile: Profile, steps: int, out: Path, parent: Connection) -> None:
    """A process that trains ``steps`` steps, each when the parent says so, and then says what it found."""
    import torch

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        trainer = (recipe_trainer if side == "recipe" else plain_trainer)(profile, out)
        trainer.add_callback(_gate(parent, steps))
        if side == "recipe":
            train_kept(trainer, out, {}, say=lambda _: None)
        else:
            trainer.train()
    curve = [log for log in trainer.state.log_history if "loss" in log]
    parent.send({"curve": curve, "peak_bytes": peak_rss_bytes(), "threads": torch.get_num_threads()})


def _gate(parent: Connection, steps: int) -> TrainerCallback:
    """Waits before every step until the parent lets it in, and ends the training after ``steps``."""
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            parent.send(time.process_time())
            parent.recv()

        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= steps

        def on_train_end(self, args, state, control, **_):
            parent.send(time.process_time())

    return Gate()


class Side:
    """One side in its process; `step` lets it do one step, logging and saving included."""

    def __init__(self, side: str, profile: Profile, steps: int, out: Path) -> None:
        context = get_context("spawn")  # nothing of this process in the new one
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_child, args=(side, profile, steps, out, other), daemon=True)
        self.process.start()
        other.close()  # a child that dies then ends the wait for it
        self.cpu_seconds: list[float] = []  # used until each gate

    def await_gate(self) -> None:
        self.cpu_seconds.append(self.connection.recv())

    def step(self) -> None:
        self.connection.send("go")
        self.await_gate()

    def end(self) -> dict[str, Any]:
        """Its curve, peak and threads, when all steps are done."""
        found = self.connection.recv()
        self.process.join()
        return found


def compare(profile: Profile, steps: int) -> dict[str, Any]:
    """Both sides in turns; ratios are the recipe's by the plain script's.

    Raises:
        AssertionError: the two curves differ.
    """
    with tempfile.TemporaryDirectory() as place:
        sides = {name: Side(name, profile, steps, Path(place, name)) for name in SIDES}
        for side in sides.values():
            side.await_gate()
        seconds = take_turns({name: side.step for name, side in sides.items()}, rounds=steps - 1)
        found = {name: side.end() for name, side in sides.items()}
    curves = [found[name]["curve"] for name in SIDES]
    peaks = {name: found[name]["peak_bytes"] for name in SIDES}
    tokens = int(curves[0][-1]["num_tokens"] - curves[0][0]["num_tokens"])
    totals = {name: sum(seconds[name]) for name in SIDES}
    cpu = {name: [after - before for before, after in pairwise(side.cpu_seconds)][1:] for name, side in sides.items()}
    every = save_every(profile.steps)
    unsaved = [place for place in range(steps - 1) if (place + 2) % every]  # place 0 is the second step

    def ratio(times: dict[str, list[float]]) -> dict[str, float]:
        return asdict(time_ratio(*([times[name][place] for place in unsaved] for name in SIDES)))

    return {
        "model": profile.model,
        "method": profile.method.kind,
        "threads": found["recipe"]["threads"],
        "steps": steps - 1,
        "tokens": tokens,
        "largest_difference": difference(*curves),
        "time_of_a_step": ratio(seconds),
        "cpu_time_of_a_step": ratio(cpu),
        "checkpoints": steps - 1 - len(unsaved),
        "cpu_time_with_checkpoints": sum(cpu["recipe"]) / sum(cpu["plain"]),
        "tokens_per_s": {name: round(tokens / totals[name], 1) for name in SIDES},
        "peak_bytes": peaks,
        "memory": peaks["recipe"] / peaks["plain"],
    }


def difference(curve: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest relative difference of a loss or gradient norm.

    Raises:
        AssertionError: it is above `TOLERANCE`, or the two saw other tokens or learning rates.
    """
    exactly = [[(log["step"], log["num_tokens"], log["learning_rate"]) for log in logs] for logs in (curve, other)]
    assert exactly[0] == exactly[1], exactly
    pairs = [(a[name], b[name]) for a, b in zip(curve, other, strict=True) for name in ("loss", "grad_norm")]
    assert all(abs(a - b) <= TOLERANCE * abs(b) for a, b in pairs), pairs  # not so for NaN
    return max(abs(a - b) / abs(b) for a, b in pairs)


def main(*, quick: QuickFlag = False) -> None:
    """Compare, print and write."""
    found = compare(PROFILES["tiny"], QUICK_STEPS) if quick else compare(PROFILES["laptop"], STEPS)
    for name, value in found.items():
        print(f"{name:22} {value}")
    if not quick:
        write_measurement("benchmarks/sft_speed.py", found)


if __name__ == "__main__":
    run_script(main, __doc__)
