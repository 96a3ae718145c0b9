"""What a run has used so far, over all its sittings: kept in every checkpoint, so that a continued run counts on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from labkit.labels import text
from labkit.training.kept import differences
from labkit.training.record import versions
from labkit.training.saves import step_of

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Used:
    """What a run has used so far, over all its sittings.

    Attributes:
        seconds: of training, without what was lost after the last checkpoint.
        peak_memory: see `labkit.training.measure.peak_memory`; the largest of all sittings.
        resumed: the steps after which it was continued.
        total: seconds of everything so far, see `State.total`.
        versions: of the packages in the last sitting.
    """

    seconds: float = 0.0
    peak_memory: dict[str, int] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    total: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    def after(self, seconds: float, peak_memory: dict[str, int], *, total: float) -> Used:
        """The same with another sitting that trained for ``seconds``, and the new ``total``."""
        peaks = {name: max(size, self.peak_memory.get(name, 0)) for name, size in peak_memory.items()}
        return Used(round(self.seconds + seconds, 3), peaks, self.resumed, round(total, 3), versions())

    def other_versions(self) -> str:
        """Which packages have changed since, in a line for the student; empty if none has."""
        if not self.versions or not (changes := differences(self.versions, versions())):
            return ""
        changed = "; ".join(changes)
        return text(
            f"since then {changed}: a run in one go might have ended otherwise",
            f"与上次相比 {changed}：一口气训练完，结果可能会有出入",
        )


def progress_at(checkpoint: Path | None) -> Used:
    """What the run had used up to a checkpoint from which it is now continued; nothing without one."""
    if checkpoint is None:
        return Used()
    used = Used(**json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8")))
    return replace(used, resumed=[*used.resumed, step_of(checkpoint)])
