"""The explorers that move in the browser: each call displays one output (see `labkit.page.sliders`)."""

from __future__ import annotations

from labkit.page.lora_explorer import lora_explorer
from labkit.page.memory_explorer import memory_explorer
from labkit.page.nf4_explorer import nf4_explorer
from labkit.page.results_explorer import results_explorer

__all__ = ["lora_explorer", "memory_explorer", "nf4_explorer", "results_explorer"]
