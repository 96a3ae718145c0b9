"""Tokens a second and memory of the fine-tuning recipe against the script that a user of TRL would write.

    python benchmarks/sft_speed.py     # writes data/measurements/sft_speed.json; about ten minutes
    python benchmarks/sft_speed.py --quick     # the tiny profile, few steps, nothing written

`plain_trainer` is that script: TRL, PEFT, bitsandbytes and the same settings, nothing of the book but its rows and its
chat template. Each side trains in a process of its own, and the two take turns step by step, so that other programs on
the machine drop out of the ratio of a step. Both must take the same rows to the same losses: that is asserted before
anything is written. The recipe saves checkpoints as `labkit sft` does; the plain script, like TRL's default in a run of
this length, saves none on the way.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.models.profiles import PROFILES, Profile
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.measure import peak_rss_bytes
from labkit.training.record import write_measurement
from labkit.training.resume import save_every, train_kept
from labkit.training.run import rows_of

if TYPE_CHECKING:
    from trl import SFTTrainer

STEPS, STARTS = 25, 3
QUICK_STEPS, QUICK_STARTS = 5, 1
SIDES = ("recipe", "plain")
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
        folder, dtype=torch.float32, quantization_config=quantization, device_map="cpu"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": row.instruction}],
            "completion": [{"role": "assistant", "content": row.response}],
        }
        for row in rows_of(profile, "train")
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
            gradient_checkpointing=False,
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
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        started = time.perf_counter()
        trainer = (recipe_trainer if side == "recipe" else plain_trainer)(profile, out)
        built = {"seconds": time.perf_counter() - started, "peak_bytes": peak_rss_bytes()}
        trainer.add_callback(_gate(parent, steps))
        if not steps:
            parent.send(built)
        elif side == "recipe":
            train_kept(trainer, out, {}, say=lambda _: None)
        else:
            trainer.train()
        curve = [log for log in trainer.state.log_history if "loss" in log]
        parent.send({"built": built, "curve": curve, "peak_bytes": peak_rss_bytes()})


def _gate(parent: Connection, steps: int) -> Any:
    """Waits before every step until the parent lets it in, and stops the training after ``steps``."""
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            parent.send("waiting")
            parent.recv()

        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= steps

        def on_train_end(self, args, state, control, **_):
            parent.send("trained")

    return Gate()


class Side:
    """One side in its process; `step` lets it do one step, logging and saving included."""

    def __init__(self, side: str, profile: Profile, steps: int, out: Path) -> None:
        context = get_context("spawn")  # a process that begins with nothing of this one
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_child, args=(side, profile, steps, out, other), daemon=True)
        self.process.start()
        other.close()  # so that a child that dies ends the wait
        self.first = self.connection.recv()

    def step(self) -> None:
        self.connection.send("go")
        self.connection.recv()

    def end(self) -> dict[str, Any]:
        """What it found, when its steps are done."""
        found = self.connection.recv()
        self.process.join()
        return found


def train_in_turns(profile: Profile, steps: int) -> dict[str, Any]:
    """Both sides, step by step in turns."""
    with tempfile.TemporaryDirectory() as place:
        sides = {name: Side(name, profile, steps, Path(place, name)) for name in SIDES}
        seconds = take_turns({name: side.step for name, side in sides.items()}, rounds=steps - 1)
        found = {name: side.end() for name, side in sides.items()}
    return {"seconds": seconds, **found}


if __name__ == "__main__":
    import sys
    profile = PROFILES[sys.argv[1]]
    found = train_in_turns(profile, int(sys.argv[2]))
    for name in SIDES:
        print(name, found[name]["built"], found[name]["peak_bytes"], sum(found["seconds"][name]))
        for log in found[name]["curve"]: print(log)
    print(found["seconds"])
    print(time_ratio(found["seconds"]["recipe"], found["seconds"]["plain"]))
