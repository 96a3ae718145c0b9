"""Where the trials of a sweep run: in this process, or on a Ray cluster. Both are ``concurrent.futures`` executors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from labkit.errors import LabError

ENGINES = ("local", "ray")
RETRIES = 20  # how often Ray runs a call again whose node or process died; an exception of the call is an answer


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


class RayExecutor(Executor):
    """Runs calls on the Ray cluster that this process is connected to: one GPU each where the cluster has any.

    A call whose node or process dies runs again elsewhere. On CPUs Ray keeps its processes, so a base model that one
    of them has loaded serves the trials after it. With a GPU each call has a process of its own (Ray's default): so
    none holds on to a GPU that has been given to another.

    Args:
        cpus: CPU cores of a call where there are no GPUs; with GPUs each call also takes its share of the cores.
        use_gpus: False for work that needs none: then the cores alone say how many calls run at once.
    """

    def __init__(self, *, cpus: float = 1, use_gpus: bool = True) -> None:
        import ray

        self._ray = ray
        found = ray.cluster_resources()
        self.gpus = int(found.get("GPU", 0)) if use_gpus else 0
        cores = found.get("CPU", 1)
        self.cpus = max(1, cores // self.gpus) if self.gpus else cpus
        self._remote = ray.remote(_call).options(
            num_gpus=1 if self.gpus else 0, num_cpus=self.cpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )

    @property
    def capacity(self) -> int:
        """How many calls the cluster can run at once now, and one more to keep it busy; nodes may come and go."""
        found = self._ray.cluster_resources()
        places = found.get("GPU", 0) if self.gpus else found.get("CPU", 1) // self.cpus
        return max(1, int(places)) + 1

    def submit(self, function: Callable, /, *args: Any, **options: Any) -> Future:
        return self._remote.remote(function, args, options).future()


def _call(function: Callable, args: tuple, options: dict[str, Any]) -> Any:
    return function(*args, **options)


@contextlib.contextmanager
def engine(name: str, *, use_gpus: bool = True) -> Iterator[Executor]:
    """The executor called ``local`` or ``ray``, shut down at the end; ``use_gpus`` as `RayExecutor` has it.

    ``ray`` means a cluster that is running: the one that ``RAY_ADDRESS`` names, or the one on this machine. Every node
    needs labkit and the model's weights.

    Raises:
        LabError: another name, no Ray installed, or no cluster to be found.
    """
    if name not in ENGINES:
        raise LabError(f"engine={name!r}", f"an engine is one of {', '.join(ENGINES)}", "use --engine local")
    if name == "local":
        yield SerialExecutor()
        return
    with _connected():
        yield RayExecutor(use_gpus=use_gpus)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Connected to a cluster; one that this process was connected to before stays so."""
    try:
        import ray
    except ImportError as error:
        raise LabError(
            "engine='ray'", "Ray is not installed", 'pip install "labkit[ray]", or --engine local'
        ) from error
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        rule = f"no Ray cluster can be reached ({str(error).strip().splitlines()[0]})"
        raise LabError("engine='ray'", rule, "ray start --head, or set RAY_ADDRESS; or --engine local") from error
    try:
        yield
    finally:
        ray.shutdown()
