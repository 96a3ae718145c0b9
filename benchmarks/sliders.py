"""How long until an explorer is there, and from an input event to a painted frame, in headless Chromium.

    python benchmarks/sliders.py     # writes data/measurements/sliders.json; a few minutes
    python benchmarks/sliders.py --quick     # one explorer, few events, nothing written

``first_slider``: a new Python process that imports, computes the tables and writes the output, beside one that imports
ipywidgets and makes a slider, both in processor time. ``live_ms``: then, in the browser, from the page's request to the
moment when the explorer is live.
``update_ms`` is the JavaScript: from the event to the changed DOM, layout included. ``paint_ms`` runs on until the
frame has been painted. Events are sent at the start of a frame, where Chromium delivers a user's; the message that
is posted then arrives after that frame's paint. Painting in the compositor and the screen's own delay are not in it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import Frame, sync_playwright

from labkit.console import QuickFlag, run_script
from labkit.page import lora_explorer, memory_explorer, nf4_explorer
from labkit.page.sliders import Explorer
from labkit.training.interleaved import programs_time, take_turns, time_ratio
from labkit.training.record import write_measurement

ROUNDS, STARTS = 60, 5
QUICK_ROUNDS, QUICK_STARTS = 4, 2
WIDGET = "import ipywidgets; ipywidgets.IntSlider()"
EXPLORER = "from labkit.page import {0}; {0}.make_explorer().html()"
MEASURE = """async ([name, rounds]) => {
  const input = document.getElementById("control-" + name), took = { update: [], paint: [] };
  const last = explorer.spec.controls.find(control => control.name === name).texts.length - 1;
  const frame = () => new Promise(requestAnimationFrame);
  const posted = () => new Promise(done => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
  });
  for (let round = 0; round < rounds; round += 1) {
    if (input.type === "checkbox") input.checked = !input.checked;
    else input.value = round % (last + 1) === Number(input.value) ? (round + 1) % (last + 1) : round % (last + 1);
    await frame();
    const start = performance.now();
    input.dispatchEvent(new Event("input", { bubbles: true }));
    document.body.getBoundingClientRect();
    took.update.push(performance.now() - start);
    await posted();
    took.paint.push(performance.now() - start);
  }
  return took;
}"""


def measure(*, quick: bool = False) -> dict[str, Any]:
    """The three explorers at their starting values, and the memory explorer where it has to search."""
    made = {"lora": lora_explorer.make_explorer()}
    if not quick:
        tight = memory_explorer.make_explorer(kind="lora", checkpointing=False, loss="full")
        made |= {"memory": memory_explorer.make_explorer(), "memory, does not fit": tight}
        made |= {"nf4": nf4_explorer.make_explorer()}
    rounds, starts = (QUICK_ROUNDS, QUICK_STARTS) if quick else (ROUNDS, STARTS)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        rows = [_measure(browser, name, explorer, Path(folder), rounds) for name, explorer in made.items()]
        version = browser.version
        browser.close()
    return {
        "versions": {"chromium": version, "playwright": importlib.metadata.version("playwright")},
        "events_per_control": rounds,
        "first_slider": first_slider([name for name in made if "," not in name], starts),
        "explorers": rows,
    }


def first_slider(names: list[str], starts: int) -> dict[str, Any]:
    """Processor seconds of a new Python that ends with an explorer's output, and how many times those with a widget."""
    codes = {"ipywidgets": WIDGET} | {name: EXPLORER.format(f"{name}_explorer") for name in names}
    steps = {name: partial(subprocess.run, [sys.executable, "-c", code], check=True) for name, code in codes.items()}
    seconds = take_turns(steps, rounds=starts, clock=programs_time)
    return {
        name: {
            "median_cpu_seconds": round(statistics.median(times), 2),
            "by_ipywidgets": asdict(time_ratio(times, seconds["ipywidgets"])),
        }
        for name, times in seconds.items()
    }


def main(*, quick: QuickFlag = False) -> None:
    """Measure, print and write."""
    found = measure(quick=quick)
    for row in [*found["first_slider"].items(), *found["explorers"]]:
        print(row)
    if not quick:
        write_measurement("benchmarks/sliders.py", found)


def _measure(browser: Any, name: str, explorer: Explorer, folder: Path, rounds: int) -> dict[str, Any]:
    output = explorer.html()
    file = folder / "explorer.html"
    file.write_text(f"<!DOCTYPE html><meta charset='utf-8'>{output}", encoding="utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    started = time.perf_counter()
    page.goto(file.as_uri())
    frame = page.locator("iframe").element_handle().content_frame()
    frame.wait_for_selector("html.live #chart[aria-label]")
    live = {"live_ms": round(1000 * (time.perf_counter() - started), 1)}
    took = _all_controls(frame, rounds)
    page.close()
    return {"explorer": name, "output_kb": round(len(output.encode()) / 1000, 1), **live, **took}


def _all_controls(frame: Frame, rounds: int) -> dict[str, float]:
    update, paint = [], []
    for control in frame.evaluate("explorer.spec.controls"):
        took = frame.evaluate(MEASURE, [control["name"], rounds])
        update += took["update"]
        paint += took["paint"]
    return {
        f"{kind}_ms_{label}": round(pick(times), 2)
        for kind, times in (("update", update), ("paint", paint))
        for label, pick in (("median", statistics.median), ("p90", lambda found: statistics.quantiles(found, n=10)[-1]))
    }


if __name__ == "__main__":
    run_script(main, __doc__)
