"""The one error class that labkit raises on purpose.

A student should read one line: what was given, which rule it broke, how to mend it.
"""

from __future__ import annotations


class LabError(Exception):
    """An error that teaches: it echoes the input, names the rule, says the fix.

    Args:
        given: what the user gave, echoed, e.g. ``"rank=0"``.
        rule: the rule that it broke, e.g. ``"rank must be at least 1"``.
        fix: what to do instead, e.g. ``"try rank=8"``.

    Example:
        >>> print(LabError("rank=0", "rank must be at least 1", "try rank=8"))
        rank=0: rank must be at least 1. Fix: try rank=8.
    """

    def __init__(self, given: str, rule: str, fix: str) -> None:
        self.given, self.rule, self.fix = given, rule, fix
        super().__init__(f"{given}: {rule}. Fix: {fix}.")

    def __reduce__(self):  # exceptions with several arguments must say how to be pickled (worker processes)
        return (type(self), (self.given, self.rule, self.fix))
