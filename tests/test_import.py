"""`import labkit` is cheap: a student's first cell must not wait for torch."""

import subprocess
import sys

import pytest

import labkit


def test_importing_labkit_loads_nothing_heavy():
    heavy = [
        "torch",
        "transformers",
        "ipywidgets",
        "numpy",
        "matplotlib",
        "IPython",
        "peft",
        "trl",
        "datasets",
        "typer",
    ]
    code = f"import sys, labkit; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists():
    for name in labkit.__all__:
        assert getattr(labkit, name) is not None
    assert set(labkit.__all__) <= set(dir(labkit))
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = labkit.nothing_like_that
