"""labkit: the helper package of the lab book on parameter-efficient fine-tuning.

Importing it is cheap (no torch, transformers or ipywidgets): the names below are fetched when first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# TRL reports every trainer to Hugging Face. A course has no business to; whoever wants it sets the variable to 0.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from labkit.errors import LabError
    from labkit.models.methods import Method, Step
    from labkit.models.profiles import current_profile
    from labkit.page.exercises import check, hint, predict, record_run, reveal
    from labkit.page.figures import show
    from labkit.page.start import start

_HOME = {
    "LabError": "labkit.errors",
    "Method": "labkit.models.methods",
    "Step": "labkit.models.methods",
    "current_profile": "labkit.models.profiles",
    "check": "labkit.page.exercises",
    "hint": "labkit.page.exercises",
    "predict": "labkit.page.exercises",
    "record_run": "labkit.page.exercises",
    "reveal": "labkit.page.exercises",
    "show": "labkit.page.figures",
    "start": "labkit.page.start",
}
__all__ = [
    "LabError",
    "Method",
    "Step",
    "__version__",
    "check",
    "current_profile",
    "hint",
    "predict",
    "record_run",
    "reveal",
    "show",
    "start",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
