"""A pytest plugin: nothing that the tests start may reach the network, and a run in which something tried has failed.

    python -m pytest -p scripts.offline.plugin --nbval-lax build/solutions/en

It closes the network to child processes, above all the kernels that execute notebooks (see ``sitecustomize.py`` beside
it), and lets the libraries try as they would on a student's machine: ``HF_HUB_OFFLINE`` is taken away. An attempt that
is caught and forgotten by the code that made it fails the run as well.
"""

import os
import tempfile
from pathlib import Path

import pytest

LOG = pytest.StashKey[Path]()


def pytest_configure(config):
    """Before any kernel starts."""
    handle, log = tempfile.mkstemp(prefix="offline-", suffix=".log")
    os.close(handle)
    config.stash[LOG] = Path(log)
    os.environ["OFFLINE_LOG"] = log
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ.pop("HF_HUB_OFFLINE", None)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    """Fail a run that passed but for the attempts."""
    if session.config.stash[LOG].read_text(encoding="utf-8") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    """Name every attempt."""
    attempts = sorted(set(config.stash[LOG].read_text(encoding="utf-8").splitlines()))
    terminalreporter.section(f"{len(attempts)} attempts to reach the network", red=bool(attempts), green=not attempts)
    for attempt in attempts:
        terminalreporter.line(attempt)
    config.stash[LOG].unlink()
