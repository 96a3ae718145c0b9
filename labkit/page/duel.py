"""Two methods against each other in a sweep's results, each at its own best learning rate: lesson 06."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.errors import LabError
from labkit.page.results import Results
from labkit.theory.intervals import Difference


@dataclass(frozen=True)
class Duel:
    """How two methods' held-out losses differ.

    Attributes:
        difference: the second method's loss minus the first's, paired over the seeds; below 0 the second is better.
        gain: how far the first method's training lowered the loss, on average (nats a token, above 0 if it learned).
        rates: method -> its best learning rate.
    """

    difference: Difference
    gain: float
    rates: dict[str, float]

    @property
    def percent(self) -> tuple[float, float, float]:
        """Mean, low and high of the difference, per cent of ``gain``."""
        scale = 100 / self.gain
        return self.difference.mean * scale, self.difference.low * scale, self.difference.high * scale

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` (the second method), or ``noise`` where the interval spans zero."""
        return {"lower": "better", "higher": "worse"}.get(self.difference.verdict, "noise")


def duel(race: Results, first: str = "lora", second: str = "dora") -> Duel:
    """``second`` against ``first``, each at the learning rate with the lowest mean loss over the seeds.

    The rates are chosen on the same seeds on which the difference is taken: a small favour to both.

    Args:
        race: trials that differ in kind, learning rate and seed only.
        first, second: kinds.

    Raises:
        LabError: a kind of which there is no trial.
    """
    rates = {cell.at["kind"]: cell.at["learning_rate"] for cell in race.best("kind")}
    if missing := {first, second} - rates.keys():
        rule = f"there is no finished trial of {', '.join(sorted(missing))}"
        raise LabError(f"duel({race.name}, {first}, {second})", rule, "select trials of both methods")
    one, two = (race.where(kind=kind, learning_rate=rates[kind]) for kind in (first, second))
    gains = one.values("gain")
    return Duel(two.against(one), sum(gains.values()) / len(gains), {kind: rates[kind] for kind in (first, second)})
