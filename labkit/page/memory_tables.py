"""The memory formula as tables for a browser: what each moment of a step holds, evaluated over the explorer's axes.

`labkit.theory.memory.moments` is the one place where the formula is written. Here it is evaluated, with every axis at
some reference value but one or two, and the differences are written down (see `labkit.page.tables`). That this adds up
again for settings that were not evaluated is not taken on trust: `_verify` compares some of them each time the tables
are made, and the tests many.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

from labkit.errors import LabError
from labkit.models.methods import LOSSES, TARGETS, Method, Step
from labkit.models.shapes import shape_of
from labkit.page.tables import Pool, trace, value
from labkit.theory.fitting import LADDER
from labkit.theory.memory import COMPONENTS, PHASES, moments, predict
from labkit.theory.resident import optimizer_bytes, trainable_tensors

AXES: dict[str, tuple] = {
    "model": LADDER,
    "kind": ("full", "lora", "qlora", "dora", "qdora"),
    "rank": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "targets": (("q_proj", "v_proj"), TARGETS[:4], TARGETS[4:], TARGETS),
    "batch": (1, 2, 4, 8, 16, 32),
    "seq_len": (128, 256, 512, 1024, 2048, 4096, 8192),
    "checkpointing": (False, True),
    "optimizer": ("sgd", "adamw", "adamw_8bit", "paged_adamw_8bit"),
    "loss": LOSSES,
}
TOKENS = tuple(sorted({batch * length for batch, length in product(AXES["batch"], AXES["seq_len"])}))
VARYING = tuple(name for name in COMPONENTS if name != "optimizer_states")
Entries = list[list]  # [component, index in the pool of lines, moments at which it is held]


@cache
def memory_tables() -> dict[str, Any]:
    """All tables, with indices in the order of `AXES`.

    ``phases[kind]``: the phase of each moment; ``steps[model][kind][targets][checkpointing]`` and
    ``losses[model][kind][loss]``: `Entries`, which add up; ``lines``: see `tables.trace`;
    ``holds[kind]``: whether a moment holds the optimizer's states; ``states[model][kind][targets][optimizer]``: index
    of a list by rank in ``ranked``. Full fine-tuning has one row of targets and one rank, because it uses neither.

    Raises:
        LabError: the formula is not of the form that the tables can hold.
    """
    lines, ranked = Pool(), Pool()
    cells = list(product(AXES["model"], AXES["kind"]))
    made = {cell: _cell(*cell, lines, ranked) for cell in cells}
    tables = {
        name: [[made[model, kind][name] for kind in AXES["kind"]] for model in AXES["model"]]
        for name in ("steps", "losses", "states")
    }
    held = [_held("qwen3-8b", kind, optimizer="adamw") for kind in AXES["kind"]]
    tables["phases"] = [[PHASES.index(phase) for phase, _ in passed] for passed in held]
    tables["holds"] = [["optimizer_states" in components for _, components in passed] for passed in held]
    tables |= {"lines": lines.entries, "ranked": ranked.entries}
    _verify(tables)
    return tables


def look_up(tables: dict[str, Any], at: dict[str, int]) -> list[dict[str, int]]:
    """Bytes by component of every moment at the indices ``at``: what the browser does, for `_verify`."""
    model, kind = at["model"], at["kind"]
    adapted = AXES["kind"][kind] != "full"
    targets, rank_index = (at["targets"], at["rank"]) if adapted else (0, 0)
    tokens, rank = AXES["batch"][at["batch"]] * AXES["seq_len"][at["seq_len"]], AXES["rank"][rank_index]
    found = [dict.fromkeys(COMPONENTS, 0) for _ in tables["phases"][kind]]
    step = tables["steps"][model][kind][targets][at["checkpointing"]]
    for component, line, held in step + tables["losses"][model][kind][at["loss"]]:
        for moment in held:
            found[moment][COMPONENTS[component]] += value(tables["lines"][line], tokens, rank)
    states = tables["ranked"][tables["states"][model][kind][targets][at["optimizer"]]][rank_index]
    for components, holds in zip(found, tables["holds"][kind], strict=True):
        components["optimizer_states"] = states if holds else 0
    return found


def setting(at: dict[str, int]) -> tuple[str, Method, Step]:
    """Model name, method and step at the indices ``at``."""
    chosen = {name: AXES[name][index] for name, index in at.items() if name in AXES}
    method = Method(kind=chosen["kind"], rank=chosen["rank"], targets=chosen["targets"])
    step = Step(**{name: chosen[name] for name in ("batch", "seq_len", "optimizer", "checkpointing", "loss")})
    return chosen["model"], method, step


def _cell(model: str, kind: str, lines: Pool, ranked: Pool) -> dict[str, list]:
    """The tables of one model and one kind of method."""
    targets = AXES["targets"] if kind != "full" else AXES["targets"][-1:]
    ranks = AXES["rank"] if kind != "full" else AXES["rank"][:1]
    steps = [
        [_entries(_Evaluated(model, kind, ranks, targets=linears, checkpointing=on), lines) for on in (False, True)]
        for linears in targets
    ]
    losses = [_entries(_LossChange(model, kind, loss), lines) for loss in AXES["loss"]]
    states = [[ranked.add(_states(model, kind, linears, ranks, o)) for o in AXES["optimizer"]] for linears in targets]
    return {"steps": steps, "losses": losses, "states": states}


def _states(model: str, kind: str, targets: tuple[str, ...], ranks: tuple[int, ...], optimizer: str) -> list[int]:
    methods = (Method(kind=kind, rank=rank, targets=targets) for rank in ranks)
    return [optimizer_bytes(trainable_tensors(shape_of(model), method), optimizer) for method in methods]


def _held(model: str, kind: str, *, rank: int = 1, targets: tuple[str, ...] = TARGETS, **step: Any) -> list:
    return moments(shape_of(model), Method(kind=kind, rank=rank, targets=targets), Step(**step))


class _Evaluated:
    """`moments` without optimizer states and with the first loss, as a function of tokens and rank, remembered."""

    def __init__(self, model: str, kind: str, ranks: tuple[int, ...], **options: Any) -> None:
        self.model, self.kind, self.ranks, self.options = model, kind, ranks, options
        self._seen: dict[tuple[int, int], list] = {}

    def all(self, tokens: int, rank: int) -> list:
        key = tokens, rank
        if key not in self._seen:
            options = {"optimizer": "sgd", "loss": AXES["loss"][0], **self.options}
            self._seen[key] = _held(self.model, self.kind, rank=rank, seq_len=tokens, **options)
        return self._seen[key]

    def get(self, moment: int, component: str, tokens: int, rank: int) -> int:
        return self.all(tokens, rank)[moment][1].get(component, 0)


class _LossChange(_Evaluated):
    """What another loss adds to the first, whatever the targets, the rank and checkpointing."""

    def __init__(self, model: str, kind: str, loss: str) -> None:
        super().__init__(model, kind, AXES["rank"][:1], loss=loss)
        self.first = _Evaluated(model, kind, self.ranks)

    def get(self, moment: int, component: str, tokens: int, rank: int) -> int:
        return super().get(moment, component, tokens, rank) - self.first.get(moment, component, tokens, rank)


def _entries(evaluated: _Evaluated, lines: Pool) -> Entries:
    """The lines of all moments and components that are not zero throughout."""
    n_moments = len(evaluated.all(TOKENS[0], evaluated.ranks[0]))
    entries: dict[tuple[int, int], list[int]] = {}
    for moment, component in product(range(n_moments), VARYING):
        line = trace(
            lambda tokens, rank, at=(moment, component): evaluated.get(*at, tokens, rank), TOKENS, evaluated.ranks
        )
        if line != [[[TOKENS[0], 0, 0]], 0, 0]:
            entries.setdefault((COMPONENTS.index(component), lines.add(line)), []).append(moment)
    return [[*key, held] for key, held in entries.items()]


def _verify(tables: dict[str, Any]) -> None:
    """Settings that no table was made from, one a model and kind, against `predict`.

    Raises:
        LabError: the parts do not add up.
    """
    for at in _far_settings():
        model, method, step = setting(at)
        peak = max((sum(held.values()) for held in look_up(tables, at)), default=0)
        if peak != predict(shape_of(model), method, step).peak_allocated_bytes:
            rule = "the parts of the memory formula no longer add up axis by axis"
            raise LabError(f"{model}, {method.kind}", rule, "give the axes that now interact a common table")


def _far_settings() -> Iterator[dict[str, int]]:
    for number, (model, kind) in enumerate(product(range(len(AXES["model"])), range(len(AXES["kind"])))):
        walk = {name: (7 * number + 3 * place) % len(axis) for place, (name, axis) in enumerate(AXES.items())}
        yield walk | {"model": model, "kind": kind}
