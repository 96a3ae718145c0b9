"""A grid file: which fine-tuning runs a sweep compares, written in TOML and checked before anything is loaded.

A ``[[grid]]`` block lists values; its trials are all their combinations. Several blocks make one sweep, and a trial
that two blocks name runs once. ``[shared]`` holds what all blocks have in common.
"""

from __future__ import annotations

import difflib
import itertools
import json
import random
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from labkit.errors import LabError
from labkit.models.methods import TARGETS, Method, parse_layers, parse_targets
from labkit.models.profiles import Profile, current_profile
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.resident import adapter_tensors, n_elements
from labkit.training.kept import digest
from labkit.training.run import adjusted, alpha_for
from labkit.training.scan import selected

T = TypeVar("T")
Many = Annotated[
    list[T], Field(min_length=1), BeforeValidator(lambda value: value if isinstance(value, list) else [value])
]
ORDERS = ("shuffled", "seeds", "grid")
GROUPS = {"attention": TARGETS[:4], "mlp": TARGETS[4:]}
MATCH_TOLERANCE = 0.05  # how far a trial may be from the parameter count that the grid asks for
OF_PROFILE = ("model", "data", "language", "train_rows", "eval_rows", "steps", "batch", "accumulation", "seq_len")
OF_METHOD = ("rank", "alpha", "dropout", "targets")
EXCLUSIVE = (("rank", "params"), ("alpha", "scale"), ("targets", "modules"), ("layers", "modules"))


class Block(BaseModel):
    """The values of one block; a key with several is swept. ``scale`` is alpha/r held fixed, ``params`` the number of
    trainable parameters from which the rank follows. ``modules`` are linears (``3.up_proj,...``) or a selection by
    Spectrum's score (``high 25``, ``low 25``, ``random 25 SEED``; see `scan.selected`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = ""
    kind: Many[str] | None = None
    rank: Many[int] | None = None
    params: Many[int] | None = None
    alpha: Many[float] | None = None
    scale: Many[float] | None = None
    rslora: Many[bool] | None = None
    dropout: Many[float] | None = None
    targets: Many[str] | None = None
    layers: Many[str] | None = None
    modules: Many[str] | None = None
    adapter_dtype: Many[str] | None = None
    double_quant: Many[bool] | None = None
    learning_rate: Many[float] | None = None
    steps: Many[int] | None = None
    batch: Many[int] | None = None
    accumulation: Many[int] | None = None
    seq_len: Many[int] | None = None
    train_rows: Many[int] | None = None
    eval_rows: Many[int] | None = None
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)

    def values(self) -> dict[str, list[Any]]:
        """key -> values, only of the keys that were given."""
        return {key: value for key, value in self if value is not None and key != "name"}


class GridFile(BaseModel):
    """A whole file; see `read_grid`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    profile: str | None = None
    order: Literal["shuffled", "seeds", "grid"] = "shuffled"
    follow: bool = False
    shared: Block = Block()
    grid: list[Block] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep.

    Args:
        profile: sizes, learning rate and method, as for lesson 04's run.
        seed: seeds init, dropout and the order of rows.
        follow: also let the model answer, and count the answers that keep every rule (slow on a CPU).
        blocks: names of the grid's blocks that it belongs to; not part of what it is.
    """

    profile: Profile
    seed: int = 0
    follow: bool = False
    blocks: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, flat and as plain JSON, without what the method does not use."""
        profile, method = self.profile, self.profile.method
        found = {"profile": profile.name} | {name: getattr(profile, name) for name in OF_PROFILE}
        found |= {"dtype": profile.dtype, "kind": method.kind, "learning_rate": profile.learning_rate}
        if method.uses_adapters:
            found |= {name: getattr(method, name) for name in OF_METHOD}
        found |= _unusual(method) | {"seed": self.seed}
        if self.follow:
            found |= {"follow": True, "max_new_tokens": profile.max_new_tokens}
        return json.loads(json.dumps(found))

    @property
    def id(self) -> str:
        """A hash of the settings: the same trial has the same id in every grid."""
        return digest({**self.settings, **_as_float(self.settings)})


def _as_float(settings: dict[str, Any]) -> dict[str, float]:
    return {name: float(settings[name]) for name in ("alpha", "learning_rate", "dropout") if name in settings}


def _unusual(method: Method) -> dict[str, Any]:
    """The method's other fields where they differ from their defaults: a field that is added later changes no id."""
    skipped = {"kind", "dtype", *OF_METHOD}
    mine = {item.name: getattr(method, item.name) for item in fields(method) if item.name not in skipped}
    return {name: value for name, value in mine.items() if value != getattr(Method(kind="lora"), name)}


def read_grid(path: Path | str, *, profile: str | None = None) -> list[Trial]:
    """The trials of a grid file, in the order in which they should run, each once.

    Args:
        path: a TOML file.
        profile: overrides the file's profile.

    Raises:
        LabError: no such file, not TOML, an unknown key (with the nearest known one), a value out of its range.
    """
    path = Path(path)
    grid = _validated(path)
    base = current_profile(profile or grid.profile)
    trials: dict[str, Trial] = {}
    for place, block in enumerate(grid.grid):
        name = block.name or f"block {place + 1}"
        for trial in _block_trials(path, name, _merged(grid.shared, block), base, follow=grid.follow):
            known = trials.get(trial.id, trial)
            trials[trial.id] = replace(known, blocks=tuple(dict.fromkeys((*known.blocks, name))))
    return ordered(list(trials.values()), grid.order)


def ordered(trials: list[Trial], order: str) -> list[Trial]:
    """``grid``: as written. ``seeds``: all settings with the first seed, then with the next. ``shuffled``: so, and
    within a seed in a random order that is always the same. A sweep that stops early is then still a fair sample."""
    if order == "grid":
        return trials
    if order == "shuffled":
        random.Random(0).shuffle(trials := sorted(trials, key=lambda trial: trial.id))
    return sorted(trials, key=lambda trial: trial.seed)


def _merged(shared: Block, block: Block) -> dict[str, list[Any]]:
    mine, common = block.values(), shared.values()
    for pair in EXCLUSIVE:
        if any(key in mine for key in pair):
            common = {key: value for key, value in common.items() if key not in pair}
    return common | mine


def _block_trials(path: Path, name: str, values: dict, base: Profile, *, follow: bool) -> list[Trial]:
    where = f'{path}, block "{name}"'
    for pair in EXCLUSIVE:
        if all(key in values for key in pair):
            raise LabError(where, f"{pair[1]} settles {pair[0]}", f"give {pair[0]} or {pair[1]}, not both")
    seeds = values.pop("seeds", list(base.seeds))
    trials = []
    for combination in itertools.product(*values.values()):
        try:
            profile = _with(base, dict(zip(values, combination, strict=True)))
        except LabError as error:
            raise LabError(f"{where}: {error.given}", error.rule, error.fix) from error
        trials += [Trial(profile=profile, seed=seed, follow=follow) for seed in seeds]
    return trials


def _with(base: Profile, changes: dict[str, Any]) -> Profile:
    """``base`` with one combination of a block's values."""
    if "targets" in changes:
        changes["targets"] = GROUPS.get(changes["targets"].strip()) or parse_targets(changes["targets"])
    if "layers" in changes:
        changes["layers"] = parse_layers(changes["layers"])
    if "modules" in changes:
        changes["modules"] = selected(changes["modules"], base.model)
    scale, params = changes.pop("scale", None), changes.pop("params", None)
    if scale is None and "alpha" not in changes:
        scale = base.method.scale
    profile = adjusted(base, **changes)
    if params is not None:
        profile = adjusted(
            profile, rank=rank_for(shape_of(profile.model), profile.method, params), alpha=changes.get("alpha")
        )
    if scale is not None:
        profile = adjusted(profile, alpha=alpha_for(scale, profile.method))
    return profile


def rank_for(shape: ModelShape, method: Method, params: int) -> int:
    """The rank with which the method trains as nearly ``params`` parameters as it can.

    Raises:
        LabError: no rank comes within 5 %, or the method has no rank.
    """
    given = f"params={params}"
    if not method.uses_adapters:
        raise LabError(given, f"{method.kind} has no rank to match it with", "leave params out")
    one, two = (trained(shape, replace(method, rank=rank)) for rank in (1, 2))
    rank = max(1, round((params - (2 * one - two)) / (two - one)))
    count = trained(shape, replace(method, rank=rank))
    if abs(count - params) > MATCH_TOLERANCE * params:
        rule = f"rank {rank} on {','.join(method.targets)} trains {count} parameters, more than 5 % away"
        raise LabError(given, rule, f"choose a larger count, or one near {count}")
    return rank


def trained(shape: ModelShape, method: Method) -> int:
    """Parameters that the adapters of ``method`` train."""
    return n_elements(adapter_tensors(shape, method))


def _validated(path: Path) -> GridFile:
    try:
        return GridFile(**tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise LabError(str(path), f"the grid cannot be read ({error.strerror})", "name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LabError(str(path), f"this is not TOML ({error})", "see data/grids for examples") from error
    except ValidationError as error:
        raise _explained(path, error.errors()[0]) from None


def _explained(path: Path, error: dict[str, Any]) -> LabError:
    places = [part for part in error["loc"] if isinstance(part, int) or part.isidentifier()]
    where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in places)
    if error["type"] == "extra_forbidden":
        known = GridFile.model_fields if len(places) == 1 else Block.model_fields
        near = difflib.get_close_matches(str(places[-1]), known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}? " if near else ""
        return LabError(f"{path}: {where}", "a grid has no such key", f"{fix}known keys: {', '.join(known)}")
    if error["type"] == "missing":
        return LabError(f"{path}: {where}", "it is missing", "add a [[grid]] block with at least one key")
    given = f"{path}: {where}={error['input']!r}"
    return LabError(given, error["msg"][0].lower() + error["msg"][1:], "see data/grids for examples")
