"""Worker processes with a time limit for each job and a memory limit for each process.

`concurrent.futures` cannot end one hanging job, and a hanging or dying job is what a hostile file is made for. Jobs and
results travel as JSON, so that nothing is unpickled on the way back.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

Job = dict[str, Any]
Handler = Callable[[Job], Any]
START_SECONDS = 120
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Lost(Exception):
    """A job without a result: it took too long, or took its process with it."""


def run_jobs(
    jobs: Sequence[Job], make_handler: Callable[..., Handler], arguments: tuple, *, workers: int, seconds: float,
    memory_gib: float,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """Yield (place of the job, result or `Lost`) as jobs end.

    Args:
        jobs: JSON objects.
        make_handler: called once in each worker with ``arguments``; returns what handles a job. Importable by name.
        arguments: picklable.
        workers: processes.
        seconds: per job.
        memory_gib: address space of a worker (where the system has such a limit).
    """
    context = multiprocessing.get_context("spawn")
    waiting, crew = list(range(len(jobs)))[::-1], []
    try:
        while waiting or any(worker.job is not None for worker in crew):
            crew = [worker for worker in crew if not worker.dead]
            wanted = min(workers, len(waiting) + sum(worker.job is not None for worker in crew))
            crew += [_Worker(context, make_handler, arguments, memory_gib) for _ in range(wanted - len(crew))]
            for worker in crew:
                if worker.ready and worker.job is None and waiting:
                    worker.give(waiting.pop(), jobs, seconds)
            wait([worker.pipe for worker in crew], timeout=0.2)
            for worker in crew:
                yield from worker.collect()
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    def __init__(self, context: Any, make_handler: Callable, arguments: tuple, memory_gib: float) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make_handler, arguments, memory_gib), daemon=True)
        self.process.start()
        theirs.close()
        self.ready, self.job, self.dead = False, None, False
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, place: int, jobs: Sequence[Job], seconds: float) -> None:
        self.job, self.deadline = place, time.monotonic() + seconds
        with contextlib.suppress(OSError):  # a worker that died just now is found by collect
            self.pipe.send_bytes(json.dumps(jobs[place]).encode())

    def collect(self) -> Iterator[tuple[int, Any]]:
        try:
            if self.pipe.poll():
                said = json.loads(self.pipe.recv_bytes())
                place, self.job = self.job, None
                if not self.ready:
                    self.ready = True
                elif place is not None:
                    yield place, said
                return
        except (EOFError, OSError):
            if not self.ready:
                raise RuntimeError("a grading worker did not start") from None
            yield from self._lose("it ended the process that read it (too much memory?)")
            return
        if not self.ready and time.monotonic() > self.deadline:
            raise RuntimeError("a grading worker did not start")
        if self.job is not None and time.monotonic() > self.deadline:
            yield from self._lose("reading it took too long")

    def _lose(self, why: str) -> Iterator[tuple[int, Any]]:
        place, self.job = self.job, None
        self.end()
        if place is not None:
            yield place, Lost(why)

    def end(self) -> None:
        self.dead = True
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, make_handler: Callable, arguments: tuple, memory_gib: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    for name in THREAD_VARIABLES:  # each worker has a core: more threads of torch would wait for each other
        os.environ.setdefault(name, "1")
    handle = make_handler(*arguments)
    _limit_memory(memory_gib)
    pipe.send_bytes(b"null")
    while True:
        try:
            job = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(json.dumps(handle(job)).encode())


def _limit_memory(memory_gib: float) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows and macOS have no such limit
        import resource

        n_bytes = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))
