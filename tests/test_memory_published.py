"""benchmarks/memory_published.py: its file is what the closed form says today, and both documents say what it says."""

import json
import re

import pytest

from benchmarks import memory_published
from labkit.paths import checkout

STORED = json.loads((checkout() / "data/measurements/memory_published.json").read_text(encoding="utf-8"))
PAGES = [checkout() / "docs" / name for name in ("memory.md", "memory.zh.md")]


def test_the_stored_rows_are_what_is_predicted_today():
    assert memory_published.qwen_rows() == STORED["qwen"]
    assert memory_published.unsloth_rows() == STORED["unsloth"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_both_pages_carry_the_stored_figures(page):
    text = page.read_text(encoding="utf-8")
    cells = {cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")}
    for row in STORED["qwen"]:
        pairs = list(zip(row["predicted_gb"], row["published_gb"], strict=True))
        shown = [
            f"{predicted:.1f} / {published:.1f}" for place, (predicted, published) in enumerate(pairs) if place != 1
        ]
        assert [pair for pair in shown if pair not in cells] == []
        slopes = f"{row['predicted_mb_per_token']:.3f} / {row['published_mb_per_token']:.3f}"
        assert re.search(re.escape(slopes) + r"\s?[(（]", text)
    for row in STORED["unsloth"]:
        assert {f"{row['published_context']:,}", f"{row['predicted_gib']:.2f}"} <= cells
        assert f"{row['gpu_gb'] - row['predicted_gib']:.2f}" in cells
