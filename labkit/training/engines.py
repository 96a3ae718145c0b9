"""Where the trials of a sweep run: in this process, or on a Ray cluster. Both are ``concurrent.futures`` executors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from labkit.errors import LabError

ENGINES = ("local", "ray")


class SerialExecutor(Executor):
    """Runs each call at once, in this process: ``submit`` returns when it is done."""

    capacity = 1  # calls that it is worth handing over at a time

    def submit(self, function: Callable, /, *args: Any, **options: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def engine(name: str) -> Iterator[Executor]:
    """The executor called ``local`` or ``ray``, shut down at the end.

    Raises:
        LabError: another name, no Ray installed, or no cluster to be found.
    """
    if name not in ENGINES:
        raise LabError(f"engine={name!r}", f"an engine is one of {', '.join(ENGINES)}", "use --engine local")
    with SerialExecutor() as executor:
        yield executor
