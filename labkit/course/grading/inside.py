"""What runs inside the sandbox: executes a notebook with nbclient, then calls the student's functions.

It starts as the sandbox's only program, before any student code. The job comes in on standard input; the report goes
out on a descriptor that the kernel process neither inherits nor can open: this process is not dumpable, so the system
keeps its memory and its descriptors from other processes of the same user. It knows inputs of hidden cases and no
expected value.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from typing import Any

PR_SET_DUMPABLE = 4
MARK = "labkit-answers "
MAX_OUTPUT, MAX_SAID = 200_000, 300


def main() -> None:
    """Read the job, run it, write the report."""
    report = _hide_report()
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    _limit(job["limits"])
    found = run(job)
    with os.fdopen(report, "wb") as out:
        out.write(json.dumps(found).encode())


def _hide_report() -> int:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    report = os.dup(1)  # not inheritable
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    return report


def _limit(limits: dict[str, Any]) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, int(limits["memory_gib"] * 2**30)),
        (resource.RLIMIT_CPU, int(limits["cpu_seconds"])),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_FSIZE, int(limits["disk_mib"] * 2**20)),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 1024),
    ):
        resource.setrlimit(kind, (most, most))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """``{"cells": […], "answers": {question: […]}, "ended": why or None}`` of one notebook."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    limits, found = job["limits"], {"cells": [], "answers": {}, "ended": None}
    notebook = nbformat.reads(job["notebook"], as_version=4)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    )
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count, cell.metadata = [], None, nbformat.from_dict({})
    client = NotebookClient(
        notebook, timeout=limits["cell_seconds"], kernel_name="python3", allow_errors=True, interrupt_on_timeout=False
    )
    replies: list[
        dict[str, Any]
    ] = []  # a flooded kernel may lose its error's output; its reply still says that it failed
    client.on_cell_executed = lambda execute_reply, **_: replies.append(execute_reply["content"])
    try:
        with client.setup_kernel():
            for place, cell in enumerate(notebook.cells):
                client.execute_cell(cell, place)
                found["cells"].append(_seen(cell, replies[-1] if replies else {}))
            for id, calls in job["calls"].items():
                found["answers"][id] = _call(client, notebook, calls)
            client.set_widgets_metadata()
    except CellTimeoutError:
        found["ended"] = f"a cell took longer than {limits['cell_seconds']:g} s"
    except DeadKernelError:
        found["ended"] = "the kernel died"
    except Exception as error:  # whatever a hostile kernel makes of the protocol ends this run, with a name
        found["ended"] = f"{type(error).__name__}: {error}"[:MAX_SAID]
    found["widget_error"] = _widget_error(notebook)
    return found


def _call(client: Any, notebook: Any, calls: dict[str, Any]) -> list[Any] | None:
    import nbformat

    source = (
        "import labkit.course.grading.probe as _probe\n"
        f"_probe.answer(globals().get({calls['function']!r}), {json.dumps(json.dumps(calls['inputs']))})"
    )
    cell = nbformat.v4.new_code_cell(source)
    notebook.cells.append(cell)
    client.execute_cell(cell, len(notebook.cells) - 1)
    notebook.cells.pop()
    text = "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout")[-MAX_OUTPUT:]
    line = next((line for line in reversed(text.splitlines()) if line.startswith(MARK)), None)
    try:
        return json.loads(line.removeprefix(MARK)) if line else None
    except ValueError:
        return None


def _seen(cell: Any, reply: dict[str, Any]) -> dict[str, Any]:
    error = next((output for output in cell.outputs if output.output_type == "error"), None)
    if error is None and reply.get("status", "ok") != "ok":
        error = reply
    return {"error": f"{error.get('ename')}: {error.get('evalue')}"[:MAX_SAID] if error else None}


def _widget_error(notebook: Any) -> str | None:
    states = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for state in states.values():
        for output in state.get("state", {}).get("outputs", ()):
            if output.get("output_type") == "error":
                return f"{output.get('ename')}: {output.get('evalue')}"[:MAX_SAID]
    return None


if __name__ == "__main__":
    main()
