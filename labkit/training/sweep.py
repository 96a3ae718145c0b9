"""A sweep: the trials of a grid that a results file does not have yet, run and appended one by one.

Whatever ends a sweep (Ctrl-C, SIGKILL, a full disk), the same call goes on where it was: a trial is in the file whole
or not at all. A trial that fails is a row with its error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.jsonl import append_row, locked, read_rows, repair
from labkit.training.engines import SerialExecutor
from labkit.training.grid import Trial
from labkit.training.trial import MAX_ERROR, blank_row, run_trial

Row = dict[str, Any]


@dataclass
class Progress:
    """Where a sweep is: trials in all, found done at the start, run in this call, and how many of these failed."""

    total: int
    found: int
    ran: int = 0
    failed: int = 0
    started: float = 0.0

    @property
    def left(self) -> int:
        """Trials that still have to run."""
        return self.total - self.found - self.ran

    @property
    def seconds(self) -> float:
        """Since this call began."""
        return time.perf_counter() - self.started

    @property
    def seconds_left(self) -> float | None:
        """By the mean of the trials so far; None before the first."""
        return self.left * self.seconds / self.ran if self.ran else None


def run_sweep(
    trials: Sequence[Trial],
    path: Path | str,
    *,
    executor: Executor | None = None,
    run: Callable[[Trial], Row] = run_trial,
    retry: bool = False,
    force: bool = False,
    on_row: Callable[[Row | None, Progress], None] | None = None,
) -> Progress:
    """Run what is missing in the results file and append it there.

    Args:
        trials: see `grid.read_grid`; one that appears twice runs once.
        path: the JSONL file; it is made if it does not exist.
        executor: where trials run; None means this process.
        run: what makes a row of a trial.
        retry: run failed trials again; their new rows replace the old ones for `jsonl.read_rows`.
        force: run every trial again, likewise.
        on_row: called once at the start (with None) and after each row.

    Raises:
        LabError: another sweep has the file, a damaged line in it, or the disk refuses.
    """
    tell = on_row or (lambda *_: None)
    unique = {trial.id: trial for trial in trials}
    with locked(path):
        repair(path)
        rows = read_rows(path) if Path(path).exists() else []
        done = set() if force else {row.get("id") for row in rows if not (retry and row.get("error"))}
        waiting = deque(trial for id, trial in unique.items() if id not in done)
        progress = Progress(len(unique), len(unique) - len(waiting), started=time.perf_counter())
        tell(None, progress)
        for row in _completed(waiting, executor or SerialExecutor(), run):
            append_row(path, row)
            progress.ran += 1
            progress.failed += row["error"] is not None
            tell(row, progress)
    return progress


def _completed(waiting: deque[Trial], executor: Executor, run: Callable[[Trial], Row]):
    """The rows as they get ready; never more trials are handed over than the executor has places."""
    running: dict[Future, Trial] = {}
    while waiting or running:
        while waiting and len(running) < max(1, _capacity(executor)):
            trial = waiting.popleft()
            running[executor.submit(run, trial)] = trial
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield _row_of(future, running.pop(future))


def _capacity(executor: Executor) -> int:
    return getattr(executor, "capacity", None) or getattr(executor, "_max_workers", 1)


def _row_of(future: Future, trial: Trial) -> Row:
    """What came back; a worker that died for good is a row with its error."""
    if error := future.exception():
        return blank_row(trial) | {"error": f"{type(error).__name__}: {error}".strip()[:MAX_ERROR]}
    return future.result()
