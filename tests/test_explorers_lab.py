"""Explorers in a real JupyterLab: run live, without a kernel, in a notebook that JupyterLab does not trust.

The rank view is the other kind: its slider asks the kernel, and the kernel's numbers are compared with numpy's.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from labkit.page.memory_figures import predict_choice

SOURCE = 'from labkit.page.explorers import memory_explorer\n\nmemory_explorer(model="qwen3-1.7b", batch=1)'
FRAME = ".labkit-explorer iframe"
KERNEL_SOURCE = """import torch

from labkit.page.widgets import rank_widget

rank_widget(torch.outer(torch.arange(1.0, 33.0), torch.ones(16)) + torch.eye(32, 16), name="a matrix")"""
HANDLE, STATUS = ".jp-OutputArea .noUi-handle", ".jp-OutputArea [role=status]"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on loopback with a token, its own settings and no memory of trusted notebooks: (url, token)."""
    if not os.environ.get("CI"):
        pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (pip install labkit[lab])")
    folder, own = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    for name, source in (("kernel", KERNEL_SOURCE), ("live", SOURCE)):
        fresh = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        fresh.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(fresh, folder / f"{name}.ipynb")
    NotebookClient(fresh, timeout=120, kernel_name="python3").execute()
    nbformat.write(fresh, folder / "received.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    command += [f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    places = {f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    places["JUPYTERLAB_SETTINGS_DIR"] = places["JUPYTERLAB_WORKSPACES_DIR"] = str(own / "lab")
    with open(own / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    try:
        yield _wait_for(server, own)
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(server, own):
    for _ in range(240):
        for file in (own / "runtime").glob("jpserver-*.json"):
            described = json.loads(file.read_text())
            try:
                _ask(described["url"], described["token"], "api/status")
            except OSError:
                continue
            return described["url"], described["token"]
        assert server.poll() is None, (own / "log").read_text()[-2000:]
        time.sleep(0.25)
    raise AssertionError("JupyterLab did not start: " + (own / "log").read_text()[-2000:])


def _ask(url, token, path, method="GET"):
    request = urllib.request.Request(url + path, method=method, headers={"Authorization": f"token {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or "null")


def open_notebook(visit, lab, name):
    url, token = lab
    own = name.partition(".")[0]  # a workspace of its own, or the tabs of the test before would come back
    seen = visit(f"{url}lab/workspaces/{own}/tree/{name}?token={token}", allowed=url)
    seen.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    return seen


def run_first_cell(page, lab, shown=FRAME):
    """Shift+Enter once the kernel listens; a key that JupyterLab swallowed while it was still loading is sent again."""
    for _ in range(240):
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in _ask(*lab, "api/kernels")):
            break
        page.wait_for_timeout(250)
    for _ in range(4):
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        for _ in range(80):
            if page.locator(shown).count():
                return
            page.wait_for_timeout(250)
    raise AssertionError("the cell did not run")


def move_and_compare(frame):
    """Every slider one step by keyboard; the number on the page is the one that Python predicts."""
    for name in ("rank", "batch", "seq_len"):
        before = frame.locator("tfoot").inner_text()
        state = frame.evaluate(f"explorer.state.{name}")
        frame.locator(f"#control-{name}").press("ArrowRight" if state < 5 else "ArrowLeft")
        assert frame.evaluate(f"explorer.state.{name}") != state
        assert frame.locator("tfoot").inner_text() != before
    written = frame.locator("#typed").inner_text().removeprefix("choice = ")
    choice = eval(written, {"dict": dict, "True": True, "False": False})
    assert frame.evaluate("explorer.result.bytes") == predict_choice(choice).peak_allocated_bytes


def test_live_it_moves_with_and_without_its_kernel(lab, visit):
    seen = open_notebook(visit, lab, "live.ipynb")
    page = seen.page
    run_first_cell(page, lab)
    frame = page.locator(FRAME).element_handle().content_frame()
    frame.wait_for_selector("html.live #chart[aria-label]")
    move_and_compare(frame)
    assert seen.errors == []
    kernels = _ask(*lab, "api/kernels")
    assert kernels
    for kernel in kernels:
        _ask(*lab, f"api/kernels/{kernel['id']}", method="DELETE")
    assert _ask(*lab, "api/kernels") == []
    move_and_compare(frame)
    assert seen.refused == []


def test_untrusted_it_is_a_figure_with_its_text(lab, visit):
    seen = open_notebook(visit, lab, "received.ipynb")
    image = seen.page.locator(".jp-OutputArea figure img")
    image.wait_for(timeout=30_000)
    assert "Predicted peak memory: qwen3-1.7b qlora" in image.get_attribute("alt")
    assert image.evaluate("image => image.complete && image.naturalWidth > 100")
    assert seen.page.locator(".jp-OutputArea iframe").count() == 0
    assert len(seen.page.frames) == 1
    assert seen.refused == []


def test_a_slider_that_asks_the_kernel_shows_what_numpy_counts(lab, visit):
    seen = open_notebook(visit, lab, "kernel.ipynb")
    page = seen.page
    run_first_cell(page, lab, shown=HANDLE)
    sigma = np.linalg.svd(np.outer(np.arange(1.0, 33.0), np.ones(16)) + np.eye(32, 16), compute_uv=False)
    for key, rank in (("Home", 1), ("ArrowRight", 2), ("End", 16)):
        page.locator(HANDLE).first.press(key)
        page.wait_for_function(
            "([at, rank]) => document.querySelector(at).innerText.startsWith(rank)", arg=[STATUS, f"rank {rank}:"]
        )
        kept = (sigma[:rank] ** 2).sum() / (sigma**2).sum()
        assert f"{kept:.1%} of the energy" in page.locator(STATUS).first.inner_text()
    assert page.locator(".jp-OutputArea figure img").get_attribute("alt")
    assert (seen.errors, seen.refused) == ([], [])
