"""One trial of a sweep: lesson 04's run without its folder, on base weights that a process loads once.

A trial gives the same numbers alone and after others: it seeds everything anew, and what the trainer wraps, patches and
hooks is a copy of the module tree whose frozen weights are the loaded ones.
"""

from __future__ import annotations

import copy
import gc
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.models.methods import Method
from labkit.models.profiles import limit_threads, settled_method
from labkit.models.shapes import shape_of
from labkit.theory.sizing import SETTLED, peak_bytes
from labkit.training import evaluate
from labkit.training.checkpoints import located
from labkit.training.evaluate import ANSWER_BATCH, LOSS_BATCH
from labkit.training.grid import Trial
from labkit.training.measure import Meter
from labkit.training.record import hardware, versions
from labkit.training.run import rows_of
from labkit.training.settle import settled

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from labkit.models.weights import Weights

DIGITS = 6  # significant digits of a stored loss
MAX_ERROR = 600  # characters of a stored error
AGAIN = "in a sweep, change the grid's keys; --retry runs what failed again"

_bases: dict[tuple, _Base] = {}  # the one base model that this process keeps


@dataclass
class _Base:
    """A base model that no trial changes, and what was measured on it."""

    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    method: Method
    scores: dict[tuple, dict[str, Any]] = field(default_factory=dict)
    _model: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded where it is not."""
        from labkit.training.loading import load_base

        if self._model is None:
            self._model = load_base(self.weights, self.method, tokenizer=self.tokenizer)
        return self._model

    def for_training(self, method: Method) -> PreTrainedModel:
        """A model to train: with adapters a new module tree around the same weights, else the model, given away."""
        model = self.model
        if not method.uses_adapters or method.kbit_prepare:
            self._model = None
            return model
        shared = [*model.parameters(), *model.buffers()]
        return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def run_trial(trial: Trial, *, weights: Weights | None = None, rows: tuple | None = None) -> dict[str, Any]:
    """Train and measure; an error becomes a part of the row.

    Args:
        trial: what to run.
        weights: the base model's files; None finds or downloads the profile's.
        rows: training and held-out examples; None loads the profile's.

    Returns:
        A row of a results file: ``id``, ``settings``, ``blocks``, ``trainable_params``, ``heldout_loss_before`` and
        ``_after`` (nats per answer token, of ``heldout_tokens`` tokens), ``constraint_rate_before`` and ``_after`` (of
        ``constraint_rows``; None where it was not asked for), ``curve`` (the training loss by step), ``tokens``
        (trained, without padding), ``seconds`` by phase (0 where the process had it already), ``peak_memory`` (see
        `measure.peak_memory`, of the training; and ``predicted_bytes`` in closed form), ``computed_in``, ``split``
        (``batch``, ``accumulation`` and ``checkpointing`` as settled for this machine's GPU), ``versions``,
        ``hardware``, ``date`` (UTC), ``error`` (None, or one line: then what is missing is None).
    """
    run = _Run(trial)
    try:
        run.go(weights, rows)
    except Exception as error:
        run.row["error"] = f"{type(error).__name__}: {error}".strip()[:MAX_ERROR]
    finally:
        run.close()
    return run.row


class _Run:
    """The phases of one trial; ``row`` fills as they pass."""

    def __init__(self, trial: Trial) -> None:
        limit_threads(trial.profile)
        self.profile, self.trial = trial.profile, trial
        self.method = settled_method(trial.profile)
        self.row = blank_row(trial) | {"computed_in": self.method.dtype, "versions": versions(), "hardware": hardware()}

    def settle(self, weights: Weights) -> None:
        """A trial is named by what it asks for; how this machine's GPU splits its rows stands in the row."""
        if choice := settled(self.profile, shape=shape_of(str(weights.folder)), otherwise=AGAIN):
            self.profile = choice.profile
        self.row["split"] = {name: getattr(self.profile, name) for name in SETTLED if name != "dtype"}

    def phase(self, name: str, work: Callable[[], Any]) -> Any:
        with Meter() as meter:
            result = work()
        self.row["seconds"][name] = round(meter.seconds, 2)
        if name == "train":
            self.row["peak_memory"] |= meter.peak_bytes
        return result

    def go(self, weights: Weights | None, rows: tuple | None) -> None:
        from labkit.training.loading import quiet

        with quiet(), tempfile.TemporaryDirectory() as folder:
            weights = weights or located(self.profile)
            self.settle(weights)
            train_rows, heldout = rows or (rows_of(self.profile, "train"), rows_of(self.profile, "heldout"))
            base = self.phase("load", lambda: _base(weights, self.method))
            self._score(self.phase("before", lambda: self._scores_before(base, heldout)), "before")
            trainer = self.phase("build", lambda: self._trainer(base, train_rows, folder))
            self._count(trainer.model, weights)
            self.phase("train", lambda: self._train(trainer))
            self._score(self.phase("after", lambda: self._scores(trainer.model, base.tokenizer, heldout)), "after")

    def _scores_before(self, base: _Base, heldout: list) -> dict[str, Any]:
        key = (tuple(row.id for row in heldout), self.trial.follow, self.profile.max_new_tokens)
        if key not in base.scores:
            base.scores[key] = self._scores(base.model, base.tokenizer, heldout)
        return base.scores[key]

    def _scores(self, model: Any, tokenizer: Any, heldout: list) -> dict[str, Any]:
        loss, tokens = evaluate.heldout_loss(model, tokenizer, heldout, batch_size=LOSS_BATCH)
        found = {"heldout_loss": loss, "heldout_tokens": tokens, "constraint_rate": None, "constraint_rows": None}
        if self.trial.follow:
            asked, limit = [row.instruction for row in heldout], self.profile.max_new_tokens
            texts = evaluate.answer(model, tokenizer, asked, max_new_tokens=limit, batch_size=ANSWER_BATCH)
            if report := evaluate.follow_report(heldout, texts):
                found |= {"constraint_rate": report.rate, "constraint_rows": report.rows}
        return found

    def _score(self, scores: dict[str, Any], when: str) -> None:
        loss = scores["heldout_loss"]
        if not math.isfinite(loss):
            rule = "the loss is not a finite number: the run diverged"
            raise LabError(f"held-out loss {when} training", rule, "use a smaller learning rate")
        self.row |= {f"heldout_loss_{when}": _rounded(loss), f"constraint_rate_{when}": scores["constraint_rate"]}
        self.row |= {name: scores[name] for name in ("heldout_tokens", "constraint_rows")}

    def _trainer(self, base: _Base, train_rows: list, folder: str) -> Any:
        from transformers import set_seed

        from labkit.training.recipe import build_trainer

        set_seed(self.trial.seed)
        model = base.for_training(self.method)
        return build_trainer(model, base.tokenizer, self.profile, train_rows, folder, seed=self.trial.seed)

    def _count(self, model: Any, weights: Weights) -> None:
        self.row["trainable_params"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.row["peak_memory"]["predicted_bytes"] = peak_bytes(shape_of(str(weights.folder)), self.profile)

    def _train(self, trainer: Any) -> None:
        from labkit.training.recipe import curve_point

        trainer.train()
        curve = [curve_point(log) for log in trainer.state.log_history if "loss" in log]
        self.row["curve"] = [_rounded(point["loss"]) for point in curve]
        self.row["tokens"] = curve[-1]["tokens"]

    def close(self) -> None:
        """What a trainer leaves behind is full of cycles: collect it, so that the next trial finds the memory free."""
        gc.collect()
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()


def blank_row(trial: Trial) -> dict[str, Any]:
    """The row of a trial of which nothing is known yet."""
    unknown = ("trainable_params", "heldout_tokens", "constraint_rows", "tokens")
    scores = [f"{name}_{when}" for name in ("heldout_loss", "constraint_rate") for when in ("before", "after")]
    return {
        "id": trial.id,
        "blocks": list(trial.blocks),
        "settings": trial.settings,
        **dict.fromkeys((*unknown, *scores)),
        "curve": [],
        "seconds": {},
        "peak_memory": {},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "error": None,
    }


def _base(weights: Weights, method: Method) -> _Base:
    """The base model for this method, loaded; another one's place is taken."""
    key = (str(weights.folder), method.quantized, method.dtype, method.double_quant and method.quantized)
    if key not in _bases:
        from labkit.training.loading import load_tokenizer

        _bases.clear()
        gc.collect()
        _bases[key] = _Base(weights, load_tokenizer(weights), replace(method, kbit_prepare=False))
    _ = _bases[key].model
    return _bases[key]


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.{DIGITS}g}")
