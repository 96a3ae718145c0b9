"""A bubblewrap sandbox: no network, a read-only system, nothing of the instructor's, limits on all that grows.

Root runs the command as a user of its own without any capability, because the kernel counts no processes against root;
anybody else gets a user namespace. Memory, processes and time of the whole tree are watched from outside as well.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from labkit.course.grading.rubric import RerunLimits
from labkit.course.grading.workers import THREAD_VARIABLES
from labkit.errors import LabError
from labkit.paths import PACKAGE, data_folder

HINT = "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap)"
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts")
HOME = "/sandbox"  # the only place that student code can write to
NOBODY = 60_123  # a user id that nobody has; of a sandbox started by root
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """How a sandboxed run ended: its report's bytes, and why it was stopped (None: it ended by itself)."""

    report: bytes
    stopped: str | None
    seconds: float


@functools.cache
def starter() -> tuple[str, ...]:
    """The bwrap command line that works on this machine, up to the mounts.

    Raises:
        LabError: there is no bubblewrap, or the kernel refuses it.
    """
    program = shutil.which("bwrap")
    if program is None or not sys.platform.startswith("linux"):
        raise LabError("--rerun", "student code runs only inside a sandbox, and bubblewrap is not here", HINT)
    common = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
    common += ("--new-session", "--die-with-parent", "--hostname", "sandbox", "--clearenv")
    ways = [(program, "--unshare-user", "--uid", "1000", "--gid", "1000", *common)]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        ways.insert(0, (program, *common, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"))
    said = ""
    for way in ways:
        tried = subprocess.run([*way, "--ro-bind", "/", "/", "--", "true"], capture_output=True, text=True)
        if tried.returncode == 0:
            return way
        said = tried.stderr.strip()[:200]
    fix = (
        "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, AppArmor), or leave --rerun out"
    )
    raise LabError("--rerun", f"bubblewrap cannot start here ({said})", fix)


def command(limits: RerunLimits) -> list[str]:
    """The whole command line: mounts, environment, and the program inside."""
    arguments = list(starter())
    for path in SYSTEM:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        else:
            arguments += ["--ro-bind-try", path, path]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    # Private folders first: what is mounted after them (a Python somewhere under /tmp, say) stays visible.
    for path, mib in (("/dev/shm", 16), ("/tmp", 16), (HOME, limits.disk_mib)):
        arguments += ["--perms", "1777", "--size", str(int(mib * 2**20)), "--tmpfs", path]
    for prefix in sorted({sys.prefix, sys.base_prefix} - {"/usr"}):
        for parent in reversed(Path(prefix).parents[:-1]):  # bwrap would make them for root alone
            arguments += ["--perms", "0755", "--dir", str(parent)]
        arguments += ["--ro-bind", prefix, prefix]
    arguments += ["--perms", "0755", "--dir", "/book"]
    arguments += ["--ro-bind", str(PACKAGE), "/book/labkit", "--ro-bind", str(data_folder()), "/book/data"]
    arguments += ["--chdir", HOME]
    arguments += ["--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in _environment().items():
        arguments += ["--setenv", name, value]
    drop = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    inside = [sys.executable, "-m", "labkit.course.grading.inside"]
    return [*arguments, "--", *([*drop, "--no-new-privs"] if "--unshare-user" not in arguments else []), *inside]


def _environment() -> dict[str, str]:
    threads = dict.fromkeys(THREAD_VARIABLES, "1")
    return threads | {
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "HOME": HOME, "TMPDIR": HOME, "LANG": "C.UTF-8", "USER": "student",
        "PYTHONPATH": "/book", "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": f"{HOME}/.mpl",
        "LABKIT_PROFILE": "tiny", "HF_HUB_OFFLINE": "1", "IPYTHONDIR": f"{HOME}/.ipython", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def run_inside(job: dict[str, Any], limits: RerunLimits) -> Outcome:
    """Run one job inside (see `labkit.course.grading.inside`); never longer, larger or louder than ``limits``."""
    started = time.monotonic()
    text = json.dumps(job | {"limits": limits.model_dump()}).encode()
    process = subprocess.Popen(
        command(limits), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True
    )
    watch = _Watch(process, limits)
    with watch:
        feeder = threading.Thread(target=_feed, args=(process, text), daemon=True)
        feeder.start()
        report = process.stdout.read(int(limits.report_mib * 2**20) + 1)
    if len(report) > limits.report_mib * 2**20 and watch.stopped is None:
        report, watch.stopped = b"", "its report was too long"
    return Outcome(report, watch.stopped, time.monotonic() - started)


def _feed(process: subprocess.Popen, text: bytes) -> None:
    try:
        process.stdin.write(text)
        process.stdin.close()
    except OSError:  # it ended before it had read its job; the report will be empty
        pass


class _Watch:
    """Ends the whole sandbox when it takes too long, too much memory or too many processes."""

    def __init__(self, process: subprocess.Popen, limits: RerunLimits) -> None:
        self.process, self.limits, self.stopped = process, limits, None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.process.kill()  # the namespace's first process; the kernel ends everything in it
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                continue

    def _look(self) -> None:
        deadline = time.monotonic() + self.limits.notebook_seconds
        while not self._over.wait(LOOK_SECONDS):
            if time.monotonic() > deadline:
                return self._stop(f"it took longer than {self.limits.notebook_seconds:g} s")
            n_processes, n_bytes = _tree(self.process.pid)
            if n_processes > self.limits.processes:
                return self._stop(f"it started more than {self.limits.processes} processes")
            if n_bytes > self.limits.memory_gib * 2**30:
                return self._stop(f"it took more than {self.limits.memory_gib:g} GiB of memory")

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.process.kill()


def _tree(pid: int) -> tuple[int, int]:
    """Processes below ``pid``, and their resident bytes together."""
    try:
        members = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0, 0
    n_bytes = 0
    for member in members:
        try:
            n_bytes += member.memory_info().rss
        except psutil.Error:
            continue
    return len(members), n_bytes
