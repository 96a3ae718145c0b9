"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from labkit.console import JsonFlag, ProfileFlag, err, escape, gib, out, print_json, print_table


def sft(
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for adapter, record and samples; default: the durable disk's runs/PROFILE."),
    ] = None,
    profile: ProfileFlag = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in this folder, or start it.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank; alpha keeps its ratio to it unless given.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Numerator of the scale alpha/rank.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows per forward pass.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Forward passes per optimizer step.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens per row at most; longer rows are refused.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Recompute activations in the backward pass.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    data: Annotated[str | None, typer.Option(help="book, a public set's name, or a JSONL file.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds init, dropout and order.")] = 0,
    force: Annotated[bool, typer.Option(help="Train with the profile as written, whatever memory is free.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune the profile's model (lesson 04's run without a notebook) and write a run record.

    On a GPU, batch with accumulation, checkpointing and element type are chosen by the memory that is free, and said;
    what you set yourself is kept.
    """
    from labkit.models.places import runs_folder
    from labkit.models.profiles import current_profile
    from labkit.training.processes import is_first
    from labkit.training.run import run_sft

    asked = {"steps": steps, "rank": rank, "alpha": alpha, "batch": batch, "accumulation": accumulation}
    asked |= {"seq_len": seq_len, "checkpointing": checkpointing, "learning_rate": learning_rate, "data": data}
    changes = {name: value for name, value in asked.items() if value is not None}
    chosen = current_profile(profile)
    folder = folder or runs_folder() / chosen.name
    options = {"seed": seed, "resume": resume, "force": force, "bar": not as_json}
    record = run_sft(chosen, folder, on_event=_say_event, **options, **changes)
    if not is_first():
        return
    if as_json:
        print_json(record.as_dict())
        return
    print_table(f"run {folder}", ("", "before", "after"), _before_after(record.before, record.after))
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in record.seconds.items())
    peak = ", ".join(f"{name} {gib(n_bytes)} GiB" for name, n_bytes in record.peak_memory.items())
    out.print(f"{seconds}; {record.tokens_per_s:.0f} tokens/s; {peak}")
    out.print(f"adapter, record.json and samples.md are in {folder}")


def _say_event(kind: str, event: dict[str, Any]) -> None:
    if kind == "phase":
        err.print(f"{event['name']} …")
    if kind == "note":
        err.print(escape(event["text"]), soft_wrap=True)


def _before_after(before: dict[str, Any], after: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    scores = [before, after or {}]
    losses = [f"{score['heldout_loss']:.3f}" if score else "–" for score in scores]
    follows = [score.get("follow") for score in scores]
    rates = [f"{f['rate']:.0%} ({f['low']:.0%} to {f['high']:.0%})" if f else "–" for f in follows]
    return [("held-out loss, nats a token", *losses), ("rows with every rule kept (95 %)", *rates)]
