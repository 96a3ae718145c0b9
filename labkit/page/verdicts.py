"""How a claim's verdict follows from its numbers: what the lecture says, with a tolerance, against computed values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from labkit.errors import LabError

Value = int | float | bool
VERDICTS = ("right", "right in one convention", "imprecise", "wrong", "no source found")
ABOUT = 0.10  # "~16" means 16 give or take a tenth
NEAR = 0.30  # a value so far from the nearest number of the lecture makes it imprecise, farther away wrong


@dataclass(frozen=True, kw_only=True)
class Says:
    """What a claim says: a number or a range, or that something holds.

    Args:
        low, high: the lecture's range, both alike for one number; None for a claim that is true or false.
        about: the lecture writes "~" or "约": `ABOUT` is allowed on both sides.
        digit: otherwise the value of the last digit that it prints; half of it is allowed.
        word: how the lecture writes a number that is not in digits.
        holds: what the readings should be, for a claim that is true or false.

    Raises:
        LabError: neither a range nor ``holds``, or a range without a tolerance.
    """

    low: float | None = None
    high: float | None = None
    about: bool = False
    digit: float | None = None
    word: str = ""
    holds: bool | None = None

    def __post_init__(self) -> None:
        numeric = self.low is not None and self.high is not None and self.low <= self.high
        if numeric == (self.holds is not None) or (numeric and self.about == (self.digit is not None)):
            rule = "a claim says low <= high with either about or digit, or that something holds"
            raise LabError(f"says {asdict(self)}", rule, "mend labkit/page/lecture.toml")

    def allowed(self) -> tuple[float, float]:
        """The range with its tolerance."""
        if self.about:
            return self.low - ABOUT * abs(self.low), self.high + ABOUT * abs(self.high)
        return self.low - self.digit / 2, self.high + self.digit / 2

    def agrees(self, value: Value) -> bool:
        """Whether a value is what the claim says."""
        if self.holds is not None:
            return value is self.holds
        low, high = self.allowed()
        return low <= value <= high

    def is_near(self, value: Value) -> bool:
        """Whether a number misses the range by at most `NEAR` of its nearer end."""
        if self.holds is not None:
            return False
        end = self.low if value < self.low else self.high
        return abs(value - end) <= NEAR * abs(end)


def judge(says: Says, values: Sequence[Value], *, parts: bool = False) -> str:
    """The verdict on a claim, from its values under every convention that it does not rule out.

    All agree: right. Some do: right in one convention, or imprecise if the values are parts of one statement. None
    does, but a number comes near: imprecise. Else: wrong.

    Raises:
        LabError: there is no value.
    """
    if not values:
        raise LabError("no readings", "a verdict is computed from at least one value", "give the claim a reading")
    agreeing = sum(says.agrees(value) for value in values)
    if agreeing == len(values):
        return "right"
    if agreeing:
        return "imprecise" if parts else "right in one convention"
    return "imprecise" if any(says.is_near(value) for value in values) else "wrong"
