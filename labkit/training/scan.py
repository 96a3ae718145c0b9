"""A Spectrum scan of a whole model, one matrix after the other; what is done is on the disk, and is never done again.

The file is JSON lines (`labkit.jsonl`): a head that says what is scanned, how, when and on what, then one row a matrix.
No torch: the process needs the interpreter, one piece of a matrix, and the Gram matrix of the shorter side k: 8 k^2
bytes in float64, 4 k^2 in float32 for sides above 6,144. That is 0.2 GB for Qwen3-32B's 5,120.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.jsonl import append_row, locked, read_rows, repair
from labkit.models.methods import TARGETS, parse_modules
from labkit.models.stored import StoredTensor, model_path, stored_tensors
from labkit.paths import data_folder
from labkit.theory import selection
from labkit.theory.spectrum import judge, values_of_blocks

METHOD = "singular values by the Gram matrix; score of cognitivecomputations/spectrum; edge sigma(sqrt n + sqrt m)"
BLOCK_ELEMENTS = 2**21  # 16 MiB in float64
FLOAT32_ABOVE = 6144  # shorter sides: a float64 Gram matrix of 8,192 would be 0.5 GiB, and LAPACK needs work beside it


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the scan found in one matrix; see `labkit.theory.spectrum.Signal` for the last seven.

    Attributes:
        module: ``"3.up_proj"``; outside the decoder layers ``"embed_tokens"``, ``"lm_head"`` or the tensor's name.
        layer: None outside the decoder layers.
        kind: ``up_proj`` and so on: scores are compared inside one kind only.
        shape: (out, in).
        stored: element type in the file.
        snr: None stands for an infinite score, which JSON cannot hold.
    """

    module: str
    layer: int | None
    kind: str
    shape: tuple[int, int]
    stored: str
    snr: float | None
    threshold: float
    share_above: float
    edge: float
    sigma: float
    n_spikes: int
    largest: float


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan, finished or not.

    Attributes:
        head: model, method, date, hardware, versions, and how many matrices there are.
        rows: in the order of the file.
    """

    head: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def scores(self) -> dict[str, float]:
        """Module -> score, of the linears of the decoder layers."""
        return {
            row.module: math.inf if row.snr is None else row.snr
            for row in self.rows
            if row.layer is not None and row.kind in TARGETS
        }

    @property
    def complete(self) -> bool:
        """Whether every matrix of the model is there."""
        return len(self.rows) == self.head["matrices"]


def matrices(tensors: Sequence[StoredTensor]) -> tuple[list[StoredTensor], list[StoredTensor]]:
    """The tensors to scan, and those that are neither matrices nor vectors (experts stacked in one tensor).

    Vectors (norms, biases) are left out silently: they have one singular value. The repository gives them an infinite
    score.
    """
    scanned = [tensor for tensor in tensors if len(tensor.shape) == 2]
    return scanned, [tensor for tensor in tensors if len(tensor.shape) > 2]


def scan(
    tensors: Sequence[StoredTensor],
    *,
    model: str,
    out: Path | None = None,
    restart: bool = False,
    on_row: Callable[[int, int, Row], None] | None = None,
) -> Scan:
    """Score every matrix among ``tensors``; with ``out`` go on where an earlier scan of the same files stopped.

    Args:
        tensors: from `labkit.models.stored.stored_tensors`.
        model: what the head calls the model.
        out: JSONL file.
        restart: forget what ``out`` holds.
        on_row: called with (number done, number of matrices, row) after each.

    Raises:
        LabError: no matrices; ``out`` is a scan of something else; a tensor that cannot be read.
    """
    todo, _ = matrices(tensors)
    if not todo:
        raise LabError(model, "it holds no matrices", "name a model with weights")
    fresh = Scan(head=_head(todo, model), rows=())
    with locked(out) if out else nullcontext():
        done = _resumed(out, fresh, restart=restart) if out else fresh
        known, rows = {row.module: row for row in done.rows}, []
        for number, tensor in enumerate(todo, start=1):
            name = module_name(tensor)
            if name not in known:
                known[name] = score(tensor)
                if out:
                    append_row(out, asdict(known[name]))
            rows.append(known[name])
            if on_row:
                on_row(number, len(todo), known[name])
    return Scan(head=done.head, rows=tuple(rows))


def module_name(tensor: StoredTensor) -> str:
    """How a scan calls a tensor: ``"3.up_proj"``, ``"embed_tokens"``."""
    layer, kind = tensor.module
    return kind if layer is None else f"{layer}.{kind}"


def score(tensor: StoredTensor) -> Row:
    """One matrix, streamed.

    Raises:
        LabError: it cannot be read, or holds numbers that are not finite; the error names it.
    """
    dtype = "float32" if min(tensor.shape) > FLOAT32_ABOVE else "float64"
    try:
        values = values_of_blocks(tensor.blocks(BLOCK_ELEMENTS), tensor.shape, dtype=dtype)
    except LabError as error:
        raise LabError(f"{tensor.path.name}, {tensor.name}", error.rule, error.fix) from error
    layer, kind = tensor.module
    found = asdict(judge(values, tensor.shape))
    found["snr"] = found["snr"] if math.isfinite(found["snr"]) else None
    return Row(module=module_name(tensor), layer=layer, kind=kind, shape=tensor.shape, stored=tensor.kind, **found)


def selected(text: str, model: str) -> tuple[str, ...]:
    """Modules by a short text: ``high 25`` or ``low 25`` (percent of each type), ``random 25 3`` (seed 3), or names.

    Raises:
        LabError: it is none of these, or the model has no scan; see `scores_of`.
    """
    order, *rest = text.split() or [""]
    if order not in selection.ORDERS:
        return parse_modules(text)
    try:
        percent, *seed = (float(number) for number in rest)
        if len(seed) != (order == "random"):
            raise ValueError
    except ValueError as error:
        rule = "a selection is an order and a percentage, and for random a seed"
        raise LabError(f"modules={text!r}", rule, "write high 25, low 25 or random 25 0") from error
    return selection.select(scores_of(model), top_percent=percent, order=order, seed=int(*seed or [0]))


@cache
def scores_of(model: str) -> dict[str, float]:
    """Module -> score: SmolLM2-135M's shipped ones, else of a scan made now (seconds for the tiny model).

    Raises:
        LabError: there is neither a scan nor the weights.
    """
    shipped = data_folder() / "results" / f"snr_{model.replace('-', '_')}.jsonl"
    if shipped.is_file():
        return read_scan(shipped).scores
    name, path = model_path(model)
    tensors = [tensor for tensor in stored_tensors(path) if tensor.is_linear]
    return scan(tensors, model=name).scores


def read_scan(path: Path | str) -> Scan:
    """A scan file; a last line that was cut off by a kill is left out.

    Raises:
        LabError: it is missing, or no scan.
    """
    lines = read_rows(path)
    try:
        rows = tuple(Row(**line | {"shape": tuple(line["shape"])}) for line in lines[1:])
        return Scan(head=lines[0]["scan"], rows=rows)
    except (KeyError, TypeError, IndexError) as error:
        raise LabError(
            str(path), "this is not a scan by labkit snr", "name another file, or delete this one"
        ) from error


def _head(todo: Sequence[StoredTensor], model: str) -> dict[str, Any]:
    from labkit.training.record import processor, versions

    return {
        "model": model,
        "files": _files(todo),
        "matrices": len(todo),
        "fingerprint": _fingerprint(todo),
        "method": METHOD,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": processor(),
        "versions": versions(("labkit", "numpy", "scipy", "gguf")),
    }


def _files(todo: Sequence[StoredTensor]) -> dict[str, int]:
    """File name -> bytes."""
    return {tensor.path.name: tensor.path.stat().st_size for tensor in todo}


def _fingerprint(todo: Sequence[StoredTensor]) -> str:
    """Of names, shapes, types, places and the first bytes of each matrix: another model, or version of it, differs."""
    seen = hashlib.sha256()
    for tensor in todo:
        seen.update(f"{tensor.name} {tensor.shape} {tensor.kind} {tensor.offset}".encode())
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            seen.update(file.read(64))
    return seen.hexdigest()[:16]


def _resumed(out: Path, fresh: Scan, *, restart: bool) -> Scan:
    """The earlier scan in ``out``, without a line that was cut off; or a new file with a head."""
    repair(out)
    if not restart and out.exists() and read_rows(out):
        earlier = read_scan(out)
        if earlier.head.get("fingerprint") != fresh.head["fingerprint"]:
            rule = f"it is a scan of {earlier.head.get('model')}, or of another version of this model"
            raise LabError(str(out), rule, "name another file, or start again with --restart")
        return earlier
    out.unlink(missing_ok=True)
    append_row(out, {"scan": fresh.head})
    return fresh
