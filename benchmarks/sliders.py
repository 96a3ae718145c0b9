"""How long an explorer takes from an input event to a painted frame, in headless Chromium, per control.

python benchmarks/sliders.py     # writes data/measurements/sliders.json

``update_ms`` is the JavaScript: from the event to the changed DOM, layout included. ``paint_ms`` runs on until the
frame has been painted. Events are sent at the start of a frame, where Chromium delivers a user's; the message that
is posted then arrives after that frame's paint. Painting in the compositor and the screen's own delay are not in it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Frame, sync_playwright

from labkit.page import lora_explorer, memory_explorer, nf4_explorer
from labkit.page.sliders import Explorer
from labkit.training.record import write_measurement

ROUNDS = 60
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


def main() -> None:
    """Measure the three explorers at their starting values, and the memory explorer where it has to search."""
    tight = memory_explorer.make_explorer(kind="lora", checkpointing=False, loss="full")
    made = {
        "memory": memory_explorer.make_explorer(),
        "memory, does not fit": tight,
        "lora": lora_explorer.make_explorer(),
        "nf4": nf4_explorer.make_explorer(),
    }
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        rows = [_measure(browser, name, explorer, Path(folder)) for name, explorer in made.items()]
        version = browser.version
        browser.close()
    report = {
        "versions": {"chromium": version, "playwright": importlib.metadata.version("playwright")},
        "events_per_control": ROUNDS,
        "explorers": rows,
    }
    write_measurement("benchmarks/sliders.py", report)
    for row in rows:
        print(row)


def _measure(browser: Any, name: str, explorer: Explorer, folder: Path) -> dict[str, Any]:
    output = explorer.html()
    file = folder / "explorer.html"
    file.write_text(f"<!DOCTYPE html><meta charset='utf-8'>{output}", encoding="utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto(file.as_uri())
    frame = page.locator("iframe").element_handle().content_frame()
    frame.wait_for_selector("html.live #chart[aria-label]")
    took = _all_controls(frame)
    page.close()
    return {"explorer": name, "output_kb": round(len(output.encode()) / 1000, 1), **took}


def _all_controls(frame: Frame) -> dict[str, float]:
    update, paint = [], []
    for control in frame.evaluate("explorer.spec.controls"):
        took = frame.evaluate(MEASURE, [control["name"], ROUNDS])
        update += took["update"]
        paint += took["paint"]
    return {
        f"{kind}_ms_{label}": round(pick(times), 2)
        for kind, times in (("update", update), ("paint", paint))
        for label, pick in (("median", statistics.median), ("p90", lambda found: statistics.quantiles(found, n=10)[-1]))
    }


if __name__ == "__main__":
    main()
