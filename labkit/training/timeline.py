"""Live memory over one traced step, by component: what a ledger's books say about every moment, not the peak alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from labkit.errors import LabError
from labkit.theory.memory import COMPONENTS, PHASES
from labkit.training.ledger import Entry, Ledger

LOADED = COMPONENTS[:3]  # what is there when the model is loaded and adapted, and no step has been made


@dataclass(frozen=True)
class Timeline:
    """Bytes held by component at a row of moments of one step in a steady state.

    The first moment is the loaded model, alone; the second is the beginning of the step, when the optimizer's states
    and the batch are there; each later one is an allocation or a release, in order. `sampled` leaves some out.

    Attributes:
        components: component -> bytes at each moment (see `labkit.theory.memory.COMPONENTS`).
        starts: phase -> the moment at which it begins (see `labkit.theory.memory.PHASES`).
        moments: number of each moment among those of the whole step.
    """

    components: dict[str, np.ndarray]
    starts: dict[str, int]
    moments: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Bytes held at each moment, all components together."""
        return sum(self.components.values())

    @property
    def phases(self) -> dict[str, int]:
        """The largest total of each phase, in bytes."""
        return {phase: int(self.total[moment]) for phase, moment in self.peaks.items()}

    @property
    def peaks(self) -> dict[str, int]:
        """Phase -> the moment of its largest total, the first one where there are several."""
        total = self.total
        return {phase: first + int(total[first:last].argmax()) for phase, (first, last) in self.spans.items()}

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """First moment of each phase, and the one after its last: a phase also sees how the next one begins."""
        bounds = [self.starts[phase] for phase in PHASES] + [len(self.moments) - 1]
        return {
            phase: (bounds[place], bounds[place + 1] + (phase != "load")) for place, phase in enumerate(self.starts)
        }

    def at(self, moment: int) -> dict[str, int]:
        """Bytes by component at one moment."""
        return {name: int(sizes[moment]) for name, sizes in self.components.items()}

    def sampled(self, points: int = 400) -> Timeline:
        """A timeline of about ``points`` moments for a figure; each phase keeps its begin and its exact peak.

        Of every stretch of moments the largest and the smallest total stay, so no tooth of the curve is lost.

        Raises:
            LabError: fewer than 16 points.
        """
        if points < 16:
            raise LabError(f"points={points}", "a timeline needs at least 16 points", "try points=400")
        total, count = self.total, len(self.moments)
        kept = {0, 1, count - 1, *self.starts.values(), *self.peaks.values()}
        for stretch in np.array_split(np.arange(count), min(count, points // 2)):
            kept |= {int(stretch[total[stretch].argmax()]), int(stretch[total[stretch].argmin()])}
        chosen = np.array(sorted(kept))
        return Timeline(
            components={name: sizes[chosen] for name, sizes in self.components.items()},
            starts={phase: int(np.searchsorted(chosen, moment)) for phase, moment in self.starts.items()},
            moments=self.moments[chosen],
        )


def timeline(ledger: Ledger, *, widths: Iterable[int]) -> Timeline:
    """The timeline of a step that a ledger has seen, with its model and optimizer states booked by kind.

    Args:
        ledger: its phases ``forward``, ``backward`` and ``optimizer`` are marked.
        widths: sizes of the last dimension by which logits are known.
    """
    widths, length = set(widths), len(ledger.curve) + 1
    changes = {name: np.zeros(length + 1, dtype=np.int64) for name in COMPONENTS}
    for entry in ledger.entries:
        _enter(changes, entry, widths, ledger.starts)
    components = {name: change.cumsum()[:-1] for name, change in changes.items()}
    starts = {"load": 0} | {phase: index + 1 for phase, index in ledger.starts.items()}
    return Timeline(components=components, starts=starts, moments=np.arange(length))


def _enter(changes: dict[str, np.ndarray], entry: Entry, widths: set[int], starts: dict[str, int]) -> None:
    """Book one storage: when it appears, when it becomes a gradient, when it is released.

    Index i of the ledger's curve is moment i + 1.
    """
    first, last = (entry.since, -1 if entry.until is None else entry.until)
    if last == first:
        return  # released before the step began
    component = component_of(entry, widths, starts)
    first = 0 if component in LOADED and first == 0 else first + 1
    changes[component][first] += entry.size_bytes
    changes[component][last + 1 if last >= 0 else -1] -= entry.size_bytes
    if entry.gradient_since is not None and component != "gradients":
        turn = max(entry.gradient_since + 1, first)
        for name, sign in ((component, -1), ("gradients", 1)):
            changes[name][turn] += sign * entry.size_bytes
            changes[name][last + 1 if last >= 0 else -1] -= sign * entry.size_bytes


def component_of(entry: Entry, widths: set[int], starts: dict[str, int]) -> str:
    """The component of a storage, before it becomes a parameter's gradient if it ever does.

    Activations are what a forward pass made and the backward pass still needs, or what is made again under
    checkpointing; logits are as wide as the vocabulary or as the fused head's tile; the rest is temporary.
    """
    if entry.kind:
        return entry.kind
    if entry.shape[-1:] and entry.shape[-1] in widths and len(entry.shape) < 4:
        return "logits"
    outlives = entry.until is None or entry.until > starts["backward"]
    if entry.recorded and (entry.phase != "forward" or outlives):
        return "activations"
    return "temporary"
