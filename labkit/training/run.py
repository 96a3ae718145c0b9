"""A whole fine-tuning run: check, load, measure, train, save, measure again, record. ``labkit sft`` is this function.

Nothing half-written is taken for a run: everything is made in a folder beside ``out`` and moved there in one rename. A
trained adapter is never lost: if the measurement after training fails, or the GPU runs out of memory after some steps,
what was trained is kept and the record says why. Checkpoints are kept beside ``out`` meanwhile, so that a run that was
killed can be continued (see `labkit.training.resume`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.files import writing
from labkit.models.methods import Method
from labkit.models.profiles import Profile, limit_threads, profile_of, settled_method
from labkit.models.shapes import ModelShape, shape_of
from labkit.training import evaluate
from labkit.training.checkpoints import located, save_trained, saved_bytes
from labkit.training.constraints import violations
from labkit.training.data import PUBLIC_SETS, Example, load
from labkit.training.draft import Draft, draft_folder
from labkit.training.kept import identity
from labkit.training.measure import Meter
from labkit.training.record import RECORD_FILE, RunRecord, hardware, read_record, versions
from labkit.training.resume import State, differences, finish, state_folder, unfinished
from labkit.training.room import free_cuda_memory, out_of_memory, refuse_small_gpu
from labkit.training.saves import disk_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTTrainer

    from labkit.models.weights import Weights

OnEvent = Callable[[str, dict[str, Any]], None]


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

    Args:
        profile: a profile or its name.
        out: a folder that does not exist yet, or is empty; with ``resume`` it may hold the finished run already.
        seed: the same seed on the same machine gives the same curve.
        resume: continue the run that was going on there, return the record if it is finished, start it otherwise.
        force: train even where the GPU is too small by prediction.
        truncate: cut rows longer than ``seq_len`` tokens instead of refusing them.
        weights: the base model's files; None finds or downloads the profile's.
        rows: training and held-out examples; None loads the profile's.
        on_event: called with ``"phase"`` {name}, ``"step"`` {step, loss, ...}, ``"before"`` and ``"after"`` {...}, and
            ``"note"`` {text}: what is reused and what was damaged (printed without ``on_event``).
        bar: show a progress bar on standard error while training.
        changes: see `adjusted`.

    Raises:
        LabError: bad input, an unusable ``out``, rows that are too long, a GPU that is too small by prediction; a run
            that goes on in ``out`` already, or was begun there with other settings.
    """
    profile = adjusted(profile_of(profile) if isinstance(profile, str) else profile, **changes)
    limit_threads(profile)
    run = _Run(
        profile=profile, seed=seed, truncate=truncate, bar=bar, tell=_print_notes if on_event is None else on_event
    )
    shape, out = shape_of(str(weights.folder) if weights else profile.model), Path(out)
    run.check(shape, force=force)
    run.train_rows, run.heldout_rows = rows or (rows_of(profile, "train"), rows_of(profile, "heldout"))
    with unfinished(state_folder(out), run.identity(), resume=resume, say=run.say) as state:
        if resume and (record := _finished(out, run)):
            finish(state)
            return record
        needed = saved_bytes(shape, profile) + disk_bytes(shape, profile)
        with draft_folder(out, needed_bytes=needed, replace=resume and _broken_off(out)) as draft:
            run.load(weights or located(profile))
            run.before(state)
            run.train(draft, state)
            record = run.after(draft)
        finish(state)
        return record


def _finished(out: Path, run: _Run) -> RunRecord | None:
    """The record of the finished run in ``out``, if there is one.

    Raises:
        LabError: it had other settings.
    """
    if not (out / RECORD_FILE).is_file() or (record := read_record(out)).error:
        return None
    asked = {name: value for name, value in run.identity().items() if name in record.settings}
    if changes := differences({name: record.settings[name] for name in asked}, asked):
        rule = f"the finished run there has other settings: {'; '.join(changes)}"
        raise LabError(str(out), rule, "name another folder")
    run.say(f"{out} is finished already (begun {record.date}): its record is used again")
    return record


def _broken_off(out: Path) -> bool:
    return (out / RECORD_FILE).is_file() and bool(read_record(out).error)


@dataclass(kw_only=True)
class _Run:
    """The phases of one run and what they have in common."""

    profile: Profile
    seed: int
    truncate: bool
    bar: bool
    tell: OnEvent
    seconds: dict[str, float] = field(default_factory=dict)
    train_rows: Sequence[Example] = ()
    heldout_rows: Sequence[Example] = ()

    def __post_init__(self) -> None:
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        self.started = time.perf_counter()  # fetching the weights and saving are in the total, and in no phase

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Meter]:
        self.tell("phase", {"name": name})
        with Meter() as meter:
            yield meter
        self.seconds[name] = round(meter.seconds, 2)

    def say(self, text: str) -> None:
        self.tell("note", {"text": text})

    def identity(self) -> dict[str, Any]:
        rows = [*self.train_rows, *self.heldout_rows]
        return identity(self.profile, rows, seed=self.seed, truncate=self.truncate)

    def check(self, shape: ModelShape, *, force: bool) -> None:
        from labkit.training.loading import capability_of, check_method, default_device

        self.shape = shape
        check_method(settled_method(self.profile), capability=capability_of(default_device()))
        if not force:
            refuse_small_gpu(shape, self.profile)

    def load(self, weights: Weights) -> None:
        from labkit.training.audit import refuse_long_rows
        from labkit.training.loading import load_base, load_tokenizer, quiet

        with self.phase("load"), quiet():
            self.weights = weights
            self.tokenizer = load_tokenizer(weights)
            seq_len = self.profile.seq_len
            self.cut = refuse_long_rows(self.train_rows, self.tokenizer, seq_len=seq_len, truncate=self.truncate)

            def base() -> PreTrainedModel:
                return load_base(weights, settled_method(self.profile), tokenizer=self.tokenizer)

            self.model = self._explaining(base, phase="load")

    def _explaining(self, work: Callable[[], Any], *, phase: str) -> Any:
        """What ``work`` returns, in a phase that leaves nothing to save if the GPU runs out of memory in it."""
        done: list[Any] = []
        if error := out_of_memory(lambda: done.append(work()), self.shape, self.profile, phase=phase):
            raise error
        return done[0]

    def before(self, state: State) -> None:
        if kept := state.kept("before"):
            self.say("the measurement before training is taken from disk")
        else:
            with self.phase("before"):
                scores, texts = self._explaining(self._scores, phase="before")
            kept = state.keep("before", {"scores": scores, "texts": texts, "seconds": self.seconds["before"]})
        self.seconds["before"] = kept["seconds"]
        self.scores_before, self.texts_before = kept["scores"], kept["texts"]
        self.tell("before", self.scores_before)

    def train(self, draft: Draft, state: State) -> None:
        from labkit.training.loading import quiet
        from labkit.training.recipe import build_trainer, curve_point, progress_callback

        def build() -> SFTTrainer:
            return build_trainer(
                self.model,
                self.tokenizer,
                self.profile,
                self.train_rows,
                state.folder,
                seed=self.seed,
                truncate=self.truncate,
                callbacks=[progress_callback(self.tell, bar=self.bar)],
            )

        with self.phase("train") as meter, quiet():
            trainer = self._explaining(build, phase="load")
            built = meter.seconds
            error = out_of_memory(lambda: state.train(trainer), self.shape, self.profile)
        self.model, self.used = trainer.model, state.used
        self.seconds["train"] = round(built + self.used.seconds, 2)
        self.curve = [curve_point(log) for log in trainer.state.log_history if "loss" in log]
        if error and not self.curve:
            raise error  # not one step was done: there is nothing to keep
        self.tokens_per_s = self.curve[-1]["tokens"] / self.used.seconds
        self._save(draft)
        if error:
            self._record(None, None, error=str(error)).write(draft.folder)
            raise error

    def _save(self, draft: Draft) -> None:
        free_cuda_memory(self.model)
        with writing(draft.folder):
            save_trained(self.model, self.profile, draft.folder)
        draft.keep = True

    def after(self, draft: Draft) -> RunRecord:
        try:
            with self.phase("after"):
                scores, texts = self._explaining(self._scores, phase="after")
        except BaseException as error:
            self._record(None, None, error=f"{type(error).__name__}: {error}").write(draft.folder)
            raise
        self.tell("after", scores)
        record = self._record(scores, texts)
        record.write(draft.folder)
        return record

    def _scores(self) -> tuple[dict[str, Any], list[str]]:
        rows = self.heldout_rows
        loss, tokens = evaluate.heldout_loss(self.model, self.tokenizer, rows, batch_size=evaluate.LOSS_BATCH)
        texts = evaluate.answer(
            self.model,
            self.tokenizer,
            [row.instruction for row in rows],
            max_new_tokens=self.profile.max_new_tokens,
            batch_size=evaluate.ANSWER_BATCH,
        )
        report = evaluate.follow_report(rows, texts)
        return {"heldout_loss": loss, "loss_tokens": tokens, "follow": report and asdict(report)}, texts

    def _record(self, scores: dict[str, Any] | None, texts: list[str] | None, *, error: str | None = None) -> RunRecord:
        self.seconds["total"] = round(time.perf_counter() - self.started, 2)
        return RunRecord(
            settings=self._settings(),
            versions=versions(),
            hardware=hardware(),
            date=self.date,
            seconds=self.seconds,
            trained_tokens=self.curve[-1]["tokens"],
            tokens_per_s=round(self.tokens_per_s, 2),
            peak_memory=self.used.peak_memory,
            curve=self.curve,
            before=self.scores_before,
            after=scores,
            samples=_samples(self.heldout_rows, self.texts_before, texts),
            resumed=self.used.resumed,
            error=error,
        )

    def _settings(self) -> dict[str, Any]:
        return self.identity() | {
            "source": self.weights.source,
            "train_rows": len(self.train_rows),
            "heldout_rows": len(self.heldout_rows),
            "truncated_rows": self.cut,
        }


def _print_notes(kind: str, event: dict[str, Any]) -> None:
    if kind == "note":
        print(event["text"])


def _samples(rows: Sequence[Example], before: Sequence[str], after: Sequence[str] | None) -> list[dict[str, Any]]:
    samples = []
    for place, row in enumerate(rows):
        texts = {"before": before[place], "after": after[place] if after else None}
        broken = {name: violations(row.constraints, text) for name, text in texts.items() if text is not None}
        sample = {"id": row.id, "instruction": row.instruction, "reference": row.response, **texts}
        samples.append(sample | {"violations": broken if row.constraints else None})
    return samples
