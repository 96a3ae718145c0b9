"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.console import JsonFlag, ProfileFlag, err, escape, gib, out, print_json, print_table
from labkit.labels import text

if TYPE_CHECKING:
    from labkit.training.record import RunRecord

TIMES_ZH = {"load": "载入", "before": "训练前评测", "train": "训练", "after": "训练后评测", "total": "合计"}
PEAKS_ZH = {
    "cuda_max_allocated_bytes": "显存峰值（已分配）",
    "cuda_max_reserved_bytes": "显存峰值（预留）",
    "process_peak_rss_bytes": "内存峰值",
}


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
    columns = ("", text("before", "训练前"), text("after", "训练后"))
    print_table(text(f"run {folder}", f"训练 {folder}"), columns, _before_after(record.before, record.after))
    out.print(_used(record))
    where = text(
        f"adapter, record.json and samples.md are in {folder}", f"适配器、record.json 和 samples.md 都在 {folder}"
    )
    out.print(escape(where))


def _used(record: RunRecord) -> str:
    """Time, speed and peak memory of a run in one line."""
    parts = [f"{text(name, TIMES_ZH[name])} {value:.0f} {text('s', '秒')}" for name, value in record.seconds.items()]
    speed = f"{record.tokens_per_s:.0f}"
    peaks = [f"{_peak_name(name)} {gib(n_bytes)} GiB" for name, n_bytes in record.peak_memory.items()]
    comma = text(", ", "，")
    groups = [comma.join(parts), text(f"{speed} tokens/s", f"每秒 {speed} 个词元"), comma.join(peaks)]
    return text("; ", "；").join(groups)


def _peak_name(name: str) -> str:
    return text(name.removesuffix("_bytes").replace("_", " "), PEAKS_ZH[name])


def _say_event(kind: str, event: dict[str, Any]) -> None:
    if kind == "phase":
        err.print(f"{text(event['name'], TIMES_ZH[event['name']])} …")
    if kind == "note":
        err.print(escape(event["text"]), soft_wrap=True)


def _before_after(before: dict[str, Any], after: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    scores = [before, after or {}]
    losses = [f"{score['heldout_loss']:.3f}" if score else "–" for score in scores]
    follows = [score.get("follow") for score in scores]
    rates = [_rate(follow) if follow else "–" for follow in follows]
    loss = text("held-out loss, nats a token", "留出集损失（每个回答词元，nat）")
    return [(loss, *losses), (text("rows with every rule kept (95 %)", "遵守全部规则的回答（95% 区间）"), *rates)]


def _rate(follow: dict[str, Any]) -> str:
    rate, low, high = (f"{follow[name]:.0%}" for name in ("rate", "low", "high"))
    return text(f"{rate} ({low} to {high})", f"{rate}（{low}–{high}）")
