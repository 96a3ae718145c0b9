"""A whole fine-tuning run: check, load, measure, train, save, measure again, record. ``labkit sft`` is this function.

Nothing half-written is taken for a run: everything is made in a folder beside ``out`` and moved there in one rename.
Checkpoints are kept beside ``out`` meanwhile, so that a run that was killed can be continued (see
`labkit.training.resume`). Under ``accelerate launch`` every process runs this function, and the first one writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import Method
from labkit.models.profiles import Profile, limit_threads, profile_of
from labkit.models.shapes import shape_of
from labkit.training import processes
from labkit.training.checkpoints import located, saved_bytes
from labkit.training.data import PUBLIC_SETS, Example, load
from labkit.training.draft import draft_folder
from labkit.training.phases import OnEvent, Run
from labkit.training.record import RECORD_FILE, RunRecord, read_record
from labkit.training.resume import State, begun_settings, differences, finish, state_folder, unfinished
from labkit.training.saves import disk_bytes

if TYPE_CHECKING:
    from labkit.models.weights import Weights


def adjusted(profile: Profile, **changes: Any) -> Profile:
    """``profile`` with some of its own or its method's values changed, e.g. ``adjusted(p, steps=20, rank=4)``.

    A new rank without a new alpha keeps the factor of the update: alpha/rank, or with ``rslora`` alpha/sqrt(rank).

    Raises:
        LabError: a name that neither has, or a value that they refuse.
    """
    of_method = {item.name for item in fields(Method)}
    known = {item.name for item in fields(Profile)} | of_method
    for name in changes:
        if name not in known:
            raise LabError(f"{name}={changes[name]!r}", "no setting of a run has this name", f"use {_listed(known)}")
    mine = {name: changes.pop(name) for name in list(changes) if name in of_method and name != "dtype"}
    method = changes.pop("method", profile.method)
    if "rank" in mine and "alpha" not in mine:
        mine["alpha"] = None  # lets Method refuse a bad rank before it is multiplied
        wished = replace(method, **mine)
        mine["alpha"] = alpha_for(method.scale, wished)
    return replace(profile, **changes, method=replace(method, **mine))


def alpha_for(scale: float, method: Method) -> float:
    """The alpha with which ``method``'s rank (and rsLoRA) gives the update this factor."""
    return scale * method.alpha / method.scale


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def rows_of(profile: Profile, split: str) -> list[Example]:
    """The profile's rows of a split: at most ``train_rows`` or ``eval_rows``, the same ones every time."""
    limit = profile.train_rows if split == "train" else profile.eval_rows
    if profile.data in PUBLIC_SETS:
        return load(profile.data, split, limit=limit)
    rows = load(profile.data, split, language=profile.language)
    return rows if len(rows) <= limit else load(profile.data, split, language=profile.language, limit=limit)


def run_sft(
    profile: Profile | str,
    out: Path | str,
    *,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    truncate: bool = False,
    weights: Weights | None = None,
    rows: tuple[Sequence[Example], Sequence[Example]] | None = None,
    on_event: OnEvent | None = None,
    bar: bool = True,
    **changes: Any,
) -> RunRecord:
    """Fine-tune the profile's model, measure it before and after, and write ``out``.

    ``out`` then holds ``adapter/`` (``model/`` for full fine-tuning), ``record.json`` and ``samples.md``.

    On a GPU element type, batch with accumulation and checkpointing are settled by the memory that is free there (see
    `labkit.theory.sizing`), said as a note, and recorded; what ``changes`` name stays.

    Args:
        profile: a profile or its name.
        out: a folder that does not exist yet, or is empty; with ``resume`` it may hold the finished run already.
        seed: the same seed on the same machine gives the same curve.
        resume: continue the run that was going on there, with the settings that it began with; return the record if it
            is finished; start it otherwise.
        force: settle nothing, and train even where the GPU is too small by prediction.
        truncate: cut rows longer than ``seq_len`` tokens instead of refusing them.
        weights: the base model's files; None finds or downloads the profile's.
        rows: training and held-out examples; None loads the profile's.
        on_event: called with ``"phase"`` {name}, ``"step"`` {step, loss, ...}, ``"before"`` and ``"after"`` {...}, and
            ``"note"`` {text}: what was settled, what is reused and what was damaged (printed without ``on_event``).
        bar: show a progress bar on standard error while training.
        changes: see `adjusted`.

    Raises:
        LabError: bad input, an unusable ``out``, rows that are too long, a GPU that is too small by prediction; a run
            that goes on in ``out`` already, or was begun there with other settings.
    """
    profile, out = adjusted(profile_of(profile) if isinstance(profile, str) else profile, **changes), Path(out)
    limit_threads(profile)
    tell = _print_notes if on_event is None else on_event
    tell = tell if processes.is_first() else _tell_nobody
    finished = _finished(out) if resume else None
    begun = finished.settings if finished else begun_settings(out) if resume else None
    run = Run(profile=profile, seed=seed, truncate=truncate, bar=bar and processes.is_first(), tell=tell)
    shape = shape_of(str(weights.folder) if weights else profile.model)
    run.check(shape, fixed=changes, begun=begun, force=force or finished is not None)
    run.train_rows, run.heldout_rows = rows or (rows_of(profile, "train"), rows_of(profile, "heldout"))
    with unfinished(state_folder(out), run.identity(), resume=resume, say=run.say) as state:
        if finished:
            _compare(finished, run, out)
        record = finished or _carry_out(run, out, state, weights=weights, replacing=resume and _broken_off(out))
        finish(state)
        return record


def _carry_out(run: Run, out: Path, state: State, *, weights: Weights | None, replacing: bool) -> RunRecord:
    """All phases of the run, published as ``out``."""
    needed = saved_bytes(run.shape, run.profile) + disk_bytes(run.shape, run.profile)
    with draft_folder(out, needed_bytes=needed, replace=replacing) as draft:
        run.load(weights or located(run.profile))
        run.before(state)
        run.train(draft, state)
        return run.after(draft)


def _finished(out: Path) -> RunRecord | None:
    """The record of the finished run in ``out``, if there is one."""
    if not (out / RECORD_FILE).is_file() or (record := read_record(out)).error:
        return None
    return record


def _compare(finished: RunRecord, run: Run, out: Path) -> None:
    """Whether the run in ``out`` is the one that was asked for.

    Raises:
        LabError: it had other settings.
    """
    asked = {name: value for name, value in run.identity().items() if name in finished.settings}
    if changes := differences({name: finished.settings[name] for name in asked}, asked):
        rule = f"the finished run there has other settings: {'; '.join(changes)}"
        raise LabError(str(out), rule, "name another folder")
    run.say(
        text(
            f"{out} is finished already (begun {finished.date}): its record is used again",
            f"{out} 已经训练完了（{finished.date} 开始）：直接使用它的记录",
        )
    )


def _broken_off(out: Path) -> bool:
    return (out / RECORD_FILE).is_file() and bool(read_record(out).error)


def _print_notes(kind: str, event: dict[str, Any]) -> None:
    if kind == "note":
        print(event["text"])


def _tell_nobody(kind: str, event: dict[str, Any]) -> None:
    """The first of several processes speaks for all."""
