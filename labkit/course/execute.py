"""Executing solution notebooks and exporting them as pages that still move without a kernel."""

from __future__ import annotations

import copy
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from labkit.course.build import built_files, solution_folder, write
from labkit.files import write_text

CELL_TIMEOUT_S = 3600

# nbconvert's own page asks a CDN for RequireJS (old widgets), MathJax and Mermaid. The book writes formulas as text and
# needs none of them, and a page that loads nothing reads the same offline and behind a firewall.
OFFLINE = "offline.html.j2"
DROPPED = ("html_head_js_requirejs", "html_head_js_mathjax", "html_head_js_mermaidjs", "jupyter_widgets")
TEMPLATE = "{%- extends 'index.html.j2' -%}" + "".join(f"{{%- block {name} -%}}{{%- endblock -%}}" for name in DROPPED)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one execution went. ``peak_rss_bytes`` is the high-water mark of the kernel process's resident set."""

    lesson: str
    lang: str
    ok: bool
    seconds: float
    peak_rss_bytes: int | None
    error: str | None
    page: str | None = None


def solution_notebooks(lessons: list[str], lang: str) -> list[Path]:
    """Build the solution notebooks of ``lang`` and return the paths of the named lessons (all if none is named)."""
    files = built_files(langs=(lang,), solutions=True)
    write(files)
    return [path for path in sorted(files) if not lessons or path.stem in lessons]


def run_notebook(path: Path, *, lang: str, profile: str, html: Path | None = None) -> Result:
    """Execute one notebook in its own kernel, and export it if ``html`` names a folder.

    The executed notebook is kept under ``build/executed/``; an error stops the notebook, not the caller.

    Args:
        path: a solution notebook.
        lang: ``en`` or ``zh``.
        profile: the value of ``LABKIT_PROFILE`` for the kernel.
        html: folder for the exported page, or None.
    """
    with tempfile.TemporaryDirectory(prefix="labkit-runs-") as runs:  # nothing of an earlier execution is used again
        return _run(path, {"LABKIT_PROFILE": profile, "LABKIT_LANG": lang, "LABKIT_RUNS": runs}, html=html)


def _run(path: Path, settings: dict[str, str], *, html: Path | None) -> Result:
    notebook, lang = nbformat.read(path, as_version=4), settings["LABKIT_LANG"]
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    watch = _PeakRss(client)
    started, error = time.monotonic(), None
    try:
        with watch:
            client.execute(env=os.environ | settings)
    except CellExecutionError as failure:
        error = str(failure).strip()
    error = error or _hidden_error(notebook)
    executed = solution_folder(lang).parents[1] / "executed" / lang / path.name
    notebook.metadata.pop("widgets", None)  # see `export_page`
    write_text(executed, nbformat.writes(notebook))
    page = export_page(notebook, html / lang / f"{path.stem}.html", title=path.stem, lang=lang) if html else None
    return Result(
        lesson=path.stem,
        lang=lang,
        ok=error is None,
        seconds=round(time.monotonic() - started, 1),
        peak_rss_bytes=watch.peak_bytes,
        error=error,
        page=str(page) if page else None,
    )


def export_page(notebook: nbformat.NotebookNode, dest: Path, *, title: str, lang: str) -> Path:
    """Write ``notebook`` as one HTML file with everything inside it: it asks no other machine for anything.

    Saved widget state is left out: with it a page is blank without a network, and in the shape in which Colab saves it
    (without the level ``state``) nbconvert 7.17 stops.
    """
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    notebook = copy.copy(notebook)
    notebook.metadata = nbformat.from_dict({k: v for k, v in notebook.metadata.items() if k != "widgets"})
    loaders = [DictLoader({OFFLINE: TEMPLATE})]
    exporter = HTMLExporter(template_file=OFFLINE, extra_loaders=loaders, language_code=lang, sanitize_html=False)
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return write_text(dest, body)


def _hidden_error(notebook: nbformat.NotebookNode) -> str | None:
    # An exception inside an Output widget ends in the widget's state, and nbclient calls the cell a success.
    states = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for state in states.values():
        for output in state.get("state", {}).get("outputs", ()):
            if output.get("output_type") == "error":
                return f"in a widget: {output.get('ename')}: {output.get('evalue')}"
    return None


class _PeakRss:
    """Polls the kernel's resident set (Linux: VmHWM, which misses nothing between two looks)."""

    def __init__(self, client: NotebookClient) -> None:
        self.client, self.peak_bytes = client, None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> _PeakRss:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.wait(0.25):
            process = getattr(getattr(self.client.km, "provisioner", None), "process", None)
            if process is not None:
                self.peak_bytes = _high_water_bytes(process.pid) or self.peak_bytes


def _high_water_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # not Linux, or the kernel has just ended
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)
