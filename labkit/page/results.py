"""A sweep's results file, read: selections, means with intervals over seeds, paired differences, tables.

`Results` holds trials with their settings; `labkit.page.results_figures` draws them, `labkit.page.results_explorer`
makes them move. The runs of ``data/results`` were made by ``labkit sweep`` from the grids of ``data/grids``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.jsonl import Row, read_rows
from labkit.models.methods import TARGETS
from labkit.paths import data_folder
from labkit.theory.intervals import Difference, Interval, paired_difference, t_interval

SETTINGS = (
    *("model", "kind", "targets", "layers", "modules", "rslora", "rank", "alpha", "dropout", "learning_rate"),
    *("steps", "batch", "accumulation", "seq_len", "train_rows", "eval_rows", "data", "language"),
    *("adapter_dtype", "double_quant", "dtype", "follow", "max_new_tokens"),
)
SHORT = {"all": TARGETS, "attention": TARGETS[:4], "mlp": TARGETS[4:]}
LOSS = "heldout_loss_after"


@dataclass(frozen=True)
class Cell:
    """Trials that differ in nothing but the seed.

    Attributes:
        at: the settings by which was grouped.
        by_seed: seed -> value.
        interval: of their mean, by Student's t.
        failed: trials of the group without a value.
    """

    at: dict[str, Any]
    by_seed: dict[int, float]
    interval: Interval | None
    failed: int = 0


@dataclass(frozen=True)
class Results:
    """Trials of one or more sweeps.

    Attributes:
        rows: see `labkit.training.trial.run_trial`.
        name: what a table or a figure calls them.
    """

    rows: tuple[Row, ...]
    name: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the grid's blocks, in the order of the rows."""
        return tuple(dict.fromkeys(block for row in self.rows for block in row.get("blocks", ())))

    @property
    def failed(self) -> tuple[Row, ...]:
        """Trials that ended with an error."""
        return tuple(row for row in self.rows if row.get("error"))

    @property
    def swept(self) -> tuple[str, ...]:
        """The settings that vary here and do not follow from one that stands before them in `SETTINGS`."""
        found: list[str] = []
        for name in SETTINGS:
            values = [setting(row, name) for row in self.rows]
            if len(set(values)) > 1 and not any(_follows(name, other, self.rows) for other in found):
                found.append(name)
        return tuple(found)

    def where(self, *, block: str | None = None, **settings: Any) -> Results:
        """The trials of a block with these settings; a list or set means any of its values.

        ``targets`` may be a short name: all, attention or mlp.

        Raises:
            LabError: no such block or setting, or nothing left.
        """
        if block is not None and block not in self.blocks:
            raise LabError(f"block={block!r}", f"this file has the blocks {', '.join(self.blocks)}", "choose one")
        rows = [row for row in self.rows if block is None or block in row.get("blocks", ())]
        for name, wanted in settings.items():
            _known(name, rows)
            choice = {_plain(value) for value in (wanted if isinstance(wanted, list | set) else [wanted])}
            rows = [row for row in rows if setting(row, name) in choice]
        if not rows:
            given = ", ".join(f"{name}={value!r}" for name, value in {"block": block, **settings}.items() if value)
            raise LabError(given, "no trial has these settings", "look at .swept and .blocks")
        return Results(tuple(rows), self.name)

    def cells(self, *by: str, value: str = LOSS) -> list[Cell]:
        """Means over the seeds, one cell a combination of the settings ``by`` (default: what is `swept`), sorted.

        Args:
            by: names of settings.
            value: a number of a row (``heldout_loss_after``, ``trainable_params`` …), ``seconds.train``, ``gain`` (how
                far the held-out loss fell), or a setting.

        Raises:
            LabError: a group holds one seed twice: then ``by`` leaves out a setting that matters.
        """
        by = by or self.swept
        groups: dict[tuple, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(setting(row, name) for name in by), []).append(row)
        order = sorted(groups, key=lambda group: [_sort_key(item) for item in group])
        return [_cell(dict(zip(by, group, strict=True)), groups[group], value) for group in order]

    def best(self, *by: str, over: str = "learning_rate", value: str = LOSS) -> list[Cell]:
        """For each combination of ``by``, its cell at the value of ``over`` with the lowest mean.

        Only complete groups compete: a setting of which a seed diverged is out.
        """
        found: dict[tuple, Cell] = {}
        for cell in self.cells(*by, over, value=value):
            key = tuple(cell.at[name] for name in by)
            known = found.get(key)
            if cell.interval and not cell.failed and (known is None or cell.interval.mean < known.interval.mean):
                found[key] = cell
        return list(found.values())

    def values(self, value: str = LOSS) -> dict[int, float]:
        """seed -> value, of trials that differ in nothing else.

        Raises:
            LabError: they do differ in something else.
        """
        return self.cells(*self.swept, value=value)[0].by_seed if not self.swept else _refuse_mixture(self.swept)

    def against(self, other: Results, *, value: str = LOSS) -> Difference:
        """These trials minus the ``other`` ones, paired over the seeds (see `labkit.theory.intervals`)."""
        return paired_difference(other.values(value), self.values(value))

    @property
    def provenance(self) -> str:
        """Hardware, versions and days of these runs, in one line."""
        machines = {row["hardware"].get("gpu") or _cpu(row["hardware"]) for row in self.rows if row.get("hardware")}
        days = sorted({row["date"][:10] for row in self.rows if row.get("date")})
        torch = {row["versions"].get("torch", "?") for row in self.rows if row.get("versions")}
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "?"
        return f"{', '.join(sorted(machines))}; torch {', '.join(sorted(torch))}; {span}"


def load_results(*names: str | Path) -> Results:
    """The trials of results files: paths, or names of the book's own (``rank_tiny`` is data/results/rank_tiny.jsonl).

    Raises:
        LabError: no such file, or a damaged one.
    """
    paths = [_path(name) for name in names]
    rows = [row for path in paths for row in read_rows(path)]
    return Results(tuple(rows), ", ".join(path.stem for path in paths))


def shipped(*stems: str) -> list[Results]:
    """Those of the book's own results that this copy has, e.g. ``shipped("rank_tiny", "rank_laptop")``."""
    return [load_results(stem) for stem in stems if _path(stem).is_file()]


def setting(row: Row, name: str) -> Any:
    """A setting of a trial in a form that can be compared and grouped; None where the trial has no such setting."""
    return _plain(row["settings"].get(name, False if name == "rslora" else None))


def number(row: Row, value: str) -> float | None:
    """A number of a trial; see `Results.cells` for the names. None where it is missing."""
    if value == "gain":
        before, after = row.get("heldout_loss_before"), row.get(LOSS)
        return None if before is None or after is None else before - after
    found: Any = {**row["settings"], **row}
    for part in value.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return None if found is None or (row.get("error") and value == LOSS) else float(found)


def label(name: str, value: Any) -> str:
    """A setting and its value as a reader says it: ``rank 16``, ``MLP only``, ``learning rate 0.01``."""
    if name in ("targets", "kind", "model"):
        return {"attention": "attention only", "mlp": "MLP only", "all": "all linears"}.get(value, str(value))
    if name == "rslora":
        return "rsLoRA" if value else "LoRA"
    return f"{name.replace('_', ' ')} {value:g}" if isinstance(value, int | float) else f"{name} {value}"


def rows_of_table(results: Results, *, down: str, across: str, value: str = LOSS, digits: int = 3) -> list[tuple]:
    """A table with a head: one line a value of ``down``, one column a value of ``across``, each ``mean ± half width``.

    The half width is that of the 95 % t interval over the seeds; a cell with failed trials says how many.
    """
    cells = {(cell.at[down], cell.at[across]): cell for cell in results.cells(down, across, value=value)}
    downs, acrosses = (sorted({key[i] for key in cells}, key=_sort_key) for i in (0, 1))
    head = (f"{down.replace('_', ' ')} \\ {across.replace('_', ' ')}", *(_short(value) for value in acrosses))
    body = [(_short(x), *(_shown(cells.get((x, y)), digits) for y in acrosses)) for x in downs]
    return [head, *body]


def print_rows(rows: Sequence[tuple]) -> None:
    """Print a table of text with its columns aligned."""
    widths = [max(len(str(row[place])) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(item).rjust(width) for item, width in zip(row, widths, strict=True)).rstrip())


def _shown(cell: Cell | None, digits: int) -> str:
    if cell is None:
        return "–"
    lost = f" ({cell.failed} failed)" if cell.failed else ""
    if cell.interval is None:
        return f"–{lost}"
    spread = "" if cell.interval.n == 1 else f" ± {cell.interval.half_width:.{digits}f}"
    return f"{cell.interval.mean:.{digits}f}{spread}{lost}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _cell(at: dict[str, Any], rows: Iterable[Row], value: str) -> Cell:
    by_seed: dict[int, float] = {}
    failed = 0
    for row in rows:
        found, seed = number(row, value), row["settings"]["seed"]
        if seed in by_seed:
            rule = f"two trials with seed {seed} are in one group, so they differ in something else"
            raise LabError(f"groups by {', '.join(at) or 'nothing'}", rule, "group by .swept, or select with .where")
        if found is None:
            failed += 1
        else:
            by_seed[seed] = found
    return Cell(at, by_seed, t_interval(list(by_seed.values())) if by_seed else None, failed)


def _refuse_mixture(swept: Sequence[str]) -> dict[int, float]:
    rule = f"these trials differ in {', '.join(swept)}"
    raise LabError("values of several settings", rule, "select one of each with .where")


def _follows(name: str, other: str, rows: Sequence[Row]) -> bool:
    """Whether one value of ``other`` never goes with two of ``name``."""
    pairs = {(setting(row, other), setting(row, name)) for row in rows}
    return len(pairs) == len({pair[0] for pair in pairs})


def _known(name: str, rows: Sequence[Row]) -> None:
    found = {key for row in rows for key in row["settings"]} | {"rslora"}
    if name not in found:
        raise LabError(f"{name}=…", f"these trials have the settings {', '.join(sorted(found))}", "use one of these")


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        names = tuple(value)
        return next((short for short, full in SHORT.items() if full == names), ",".join(map(str, names)))
    return value


def _sort_key(value: Any) -> tuple:
    return (value is not None, isinstance(value, str), value if value is not None else 0)


def _cpu(hardware: dict[str, Any]) -> str:
    return f"{hardware.get('cores', '?')} CPU cores of an {hardware.get('cpu', 'unknown processor')}"


def _path(name: str | Path) -> Path:
    given = Path(name)
    return given if given.suffix else data_folder() / "results" / f"{name}.jsonl"
