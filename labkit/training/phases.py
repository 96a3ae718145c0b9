"""The phases of a fine-tuning run, which `labkit.training.run` orders: load, measure, train, save, measure, record.

A trained adapter is never lost: if the measurement after training fails, or the GPU runs out of memory after some
steps, what was trained is kept and the record says why.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from labkit.files import writing
from labkit.labels import text
from labkit.models.profiles import Profile, settled_method
from labkit.models.shapes import ModelShape
from labkit.theory.sizing import SETTLED
from labkit.training import evaluate, processes
from labkit.training.checkpoints import save_trained
from labkit.training.constraints import violations
from labkit.training.data import Example
from labkit.training.draft import Draft
from labkit.training.kept import identity
from labkit.training.measure import Meter
from labkit.training.record import RunRecord, hardware, versions
from labkit.training.resume import State
from labkit.training.room import free_cuda_memory, out_of_memory
from labkit.training.settle import as_begun, settled

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTTrainer

    from labkit.models.weights import Weights

OnEvent = Callable[[str, dict[str, Any]], None]
FORCED = "force it (--force, force=True)"


@dataclass(kw_only=True)
class Run:
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
        self.started = time.perf_counter()

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
        several = {"processes": processes.count()} if processes.count() > 1 else {}
        return identity(self.profile, rows, seed=self.seed, truncate=self.truncate) | several

    def check(
        self, shape: ModelShape, *, fixed: Collection[str] = (), begun: dict[str, Any] | None = None, force: bool
    ) -> None:
        """Settle the profile for this machine's GPU, unless ``force``, and refuse what cannot run; see `settled`.

        ``begun``: the settings of the run that is continued, which stay; ``fixed``: fields that were asked for.
        """
        from labkit.training.loading import capability_of, check_method, default_device, unused_gpus

        self.shape = shape
        processes.share(self.profile)  # refuses a batch that cannot be dealt out
        if idle := unused_gpus():
            self.say(
                text(
                    f"1 of {idle + 1} GPUs is used; `accelerate launch` uses several, see docs/several-gpus.md",
                    f"{idle + 1} 张显卡只用一张；想用多张，请用 `accelerate launch`，见 docs/several-gpus.zh.md",
                )
            )
        if begun:
            self.profile, fixed = as_begun(self.profile, begun.get("profile", {}), fixed=fixed), SETTLED
        if not force and (choice := settled(self.profile, shape=shape, fixed=fixed, otherwise=FORCED)):
            if not begun:  # one that was begun with force has its element type as ``auto``
                self.profile = choice.profile
            self.say(text(*choice.words) + (text("; as the run began", "；与开始训练时相同") if begun else ""))
        check_method(settled_method(self.profile), capability=capability_of(default_device()))

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
        state.started = self.started
        if kept := state.kept("before"):
            self.say(text("the measurement before training is taken from disk", "训练前的评测结果直接取自磁盘"))
            state.earlier = kept["total"]
        else:
            with self.phase("before"):
                scores, texts = self._explaining(self._scores, phase="before")
            times = {"seconds": self.seconds["before"], "total": state.total()}
            kept = state.keep("before", {"scores": scores, "texts": texts, **times})
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
        self.model, self.used, self.total = trainer.model, state.used, state.total
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
        if processes.is_first():
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
        self.seconds["total"] = round(self.total(), 2)  # with fetching the weights and saving, which are in no phase
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


def _samples(rows: Sequence[Example], before: Sequence[str], after: Sequence[str] | None) -> list[dict[str, Any]]:
    samples = []
    for place, row in enumerate(rows):
        texts = {"before": before[place], "after": after[place] if after else None}
        broken = {name: violations(row.constraints, text) for name, text in texts.items() if text is not None}
        sample = {"id": row.id, "instruction": row.instruction, "reference": row.response, **texts}
        samples.append(sample | {"violations": broken if row.constraints else None})
    return samples
