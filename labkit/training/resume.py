"""A run that can be continued: its unfinished state on disk, who may touch it, and where training goes on.

While `labkit.training.run` trains, the folder ``<out>.unfinished`` beside its destination holds the settings, the
checkpoints (see `labkit.training.saves`) and what was measured before training. It goes away when the run is published.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.files import read_json, write_json, writing
from labkit.labels import text
from labkit.training import processes
from labkit.training.continuing import train_from
from labkit.training.measure import peak_memory
from labkit.training.saves import checkpoints, newest_good, prune, seal, step_of

if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl import SFTTrainer

SETTINGS_FILE, PROGRESS_FILE, LOCK_FILE = "settings.json", "progress.json", "lock"
CHECKPOINTS_OF_A_RUN = 12  # about so many are written, whatever the number of steps
Say = Callable[[str], None]


def state_folder(out: Path | str) -> Path:
    """Where the state of the run into ``out`` is kept until it is finished."""
    out = Path(out)
    return out.with_name(f"{out.name}.unfinished")


def save_every(steps: int) -> int:
    """Optimizer steps from one checkpoint to the next."""
    return max(1, round(steps / CHECKPOINTS_OF_A_RUN))


@dataclass(frozen=True)
class Used:
    """What a run has used so far, over all its sittings.

    Attributes:
        seconds: of training, without what was lost after the last checkpoint.
        peak_memory: see `labkit.training.measure.peak_memory`; the largest of all sittings.
        resumed: the steps after which it was continued.
        total: seconds of everything so far, see `State.total`.
    """

    seconds: float = 0.0
    peak_memory: dict[str, int] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    total: float = 0.0

    def after(self, seconds: float, peak_memory: dict[str, int], *, total: float) -> Used:
        """The same with another sitting that trained for ``seconds``, and the new ``total``."""
        peaks = {name: max(size, self.peak_memory.get(name, 0)) for name, size in peak_memory.items()}
        return Used(round(self.seconds + seconds, 3), peaks, self.resumed, round(total, 3))


def begun_settings(out: Path | str) -> dict[str, Any] | None:
    """The settings of the unfinished run into ``out``; None where no training was saved."""
    folder = state_folder(out)
    return read_json(folder / SETTINGS_FILE) if checkpoints(folder) else None


def progress_at(checkpoint: Path | None) -> Used:
    """What the run had used up to a checkpoint from which it is now continued; nothing without one."""
    if checkpoint is None:
        return Used()
    used = Used(**json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8")))
    return replace(used, resumed=[*used.resumed, step_of(checkpoint)])


@dataclass
class State:
    """The unfinished state of one run, held by this process alone.

    Attributes:
        used: by all its sittings.
        started: when this sitting began, by `time.perf_counter`.
        earlier: seconds of the sittings before this one, up to what of their work is used again.
    """

    folder: Path
    say: Say = print
    used: Used = field(default_factory=Used)
    started: float = field(default_factory=time.perf_counter)
    earlier: float = 0.0

    def total(self) -> float:
        """Seconds of all sittings until now, without what was lost after the last checkpoint."""
        return self.earlier + time.perf_counter() - self.started

    def keep(self, name: str, value: Any) -> Any:
        """Write ``value`` as ``name``.json, atomically, and return it."""
        if processes.is_first():
            write_json(self.folder / f"{name}.json", value)
        return value

    def kept(self, name: str) -> Any | None:
        """What `keep` wrote; None if it never did, or if it cannot be read."""
        return read_json(self.folder / f"{name}.json")

    def train(self, trainer: SFTTrainer) -> None:
        """``trainer.train()`` from the newest good checkpoint, or from the start, saving checkpoints on the way.

        Raises:
            LabError: the disk is full or refuses a checkpoint; those already saved stay good.
        """
        from transformers.trainer_utils import SaveStrategy

        found = self._find(trainer.args.max_steps) if processes.is_first() else None
        checkpoint = processes.from_first(found)
        before, began = progress_at(checkpoint), time.perf_counter()
        self.earlier = max(self.earlier, before.total)

        def count() -> Used:
            self.used = before.after(time.perf_counter() - began, peak_memory(), total=self.total())
            return self.used

        trainer.args.output_dir, trainer.args.save_strategy = str(self.folder), SaveStrategy.STEPS
        trainer.args.save_steps = save_every(trainer.args.max_steps)
        trainer.add_callback(_sealing_callback(count))
        try:
            train_from(trainer, checkpoint)
        finally:
            count()

    def _find(self, steps: int) -> Path | None:
        """The newest good checkpoint; damaged or incomplete newer ones are named and removed."""
        checkpoint, faults = newest_good(self.folder)
        for line in faults:
            self.say(text(f"not usable: {line}", f"不能用：{line}"))
            shutil.rmtree(self.folder / line.partition(":")[0], ignore_errors=True)
        if checkpoint and step_of(checkpoint) >= steps:
            self.say(
                text(
                    f"trained already: {steps} of {steps} steps taken from {checkpoint} (force=True trains again)",
                    f"已经训练过：{steps} 步中的 {steps} 步取自 {checkpoint}（force=True 会重新训练）",
                )
            )
        elif checkpoint:
            step = step_of(checkpoint)
            self.say(
                text(f"continuing after step {step}, from {checkpoint}", f"从第 {step} 步之后接着训练（{checkpoint}）")
            )
        elif faults:
            self.say(text("no good checkpoint is left: training starts again", "没有完好的检查点了：从头开始训练"))
        return checkpoint


@contextlib.contextmanager
def unfinished(folder: Path, settings: dict[str, Any], *, resume: bool, say: Say = print) -> Iterator[State]:
    """Hold the state in ``folder`` while the block runs; the caller removes it with `finish` when all is published.

    Args:
        folder: see `state_folder`.
        settings: everything that decides the result, as plain JSON; a continued run must have the same.
        resume: continue what is there; without it a started run is refused. Where nothing is, both start.
        say: told what is reused and what is damaged.

    Raises:
        LabError: another process holds it; a run is there and ``resume`` is off; its settings differ (both values are
            named); the disk refuses.
    """
    from filelock import FileLock, Timeout

    if not processes.is_first():  # the first of several holds it for all
        yield State(folder, say)
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        rule = "another process is training in this folder"
        raise LabError(str(folder), rule, "wait for it, stop it, or name another folder") from None
    except NotImplementedError:
        say(
            text(
                f"{folder}: this disk has no locks; see to it that only one run at a time uses the folder",
                f"{folder}：这块磁盘不支持文件锁；请自己留意，同一时间只让一次训练使用这个文件夹",
            )
        )
    try:
        _same_settings(folder, settings, resume=resume)
        with _saying_what_is_left(folder, say):
            yield State(folder, say)
    finally:
        if not checkpoints(folder):
            shutil.rmtree(folder, ignore_errors=True)  # nothing worth keeping
        lock.release()


@contextlib.contextmanager
def _saying_what_is_left(folder: Path, say: Say) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if newest_good(folder)[0]:
            say(
                text(
                    f"what was trained so far is in {folder}; --resume (resume=True) continues it",
                    f"已经训练的部分在 {folder}；用 --resume（resume=True）可以接着训练",
                )
            )
        raise


def train_kept(
    trainer: SFTTrainer, folder: Path, settings: dict[str, Any], *, force: bool = False, say: Say = print
) -> Used:
    """Train as `State.train` does, and leave the checkpoints in ``folder``: asked again, a finished training is loaded.

    Args:
        trainer: not started yet.
        folder: for the checkpoints of this training alone.
        settings: see `unfinished`.
        force: remove what is there and train again.
        say: see `unfinished`.

    Raises:
        LabError: see `unfinished`.
    """
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    with unfinished(folder, settings, resume=True, say=say) as state:
        state.train(trainer)
    return state.used


def finish(state: State) -> None:
    """Remove the state of a run that is published."""
    if not processes.is_first():
        return
    for checkpoint in checkpoints(state.folder):
        shutil.rmtree(checkpoint, ignore_errors=True)


def _same_settings(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    path = folder / SETTINGS_FILE
    if not checkpoints(folder):  # whatever else is there cost little
        if not (resume and read_json(path) == settings):
            for left in folder.glob("*.json"):
                left.unlink()
        write_json(path, settings)
        return
    if not resume:
        fix = "continue it with --resume (resume=True), remove that folder, or name another"
        raise LabError(str(folder), "an unfinished run is there and its work is kept", fix)
    if changes := differences(read_json(path) or {}, settings):
        rule = f"the unfinished run there has other settings: {'; '.join(changes)}"
        raise LabError(str(folder), rule, "ask for the settings it began with, or name another folder")


def differences(before: dict[str, Any], now: dict[str, Any], at: str = "") -> list[str]:
    """In what two nested settings differ, e.g. ``["profile.steps was 48, now 96"]``."""
    changes = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += differences(old, new, f"{at}{name}.")
        elif old != new:
            changes.append(f"{at}{name} was {old!r}, now {new!r}")
    return changes


def _sealing_callback(used: Callable[[], Used]) -> TrainerCallback:
    """A callback that completes each checkpoint: what was `Used` beside it, the seal, and older ones away."""
    from transformers import TrainerCallback

    class Sealing(TrainerCallback):
        def on_save(self, args, state, control, **_):
            processes.meet()  # each process adds its random numbers to the checkpoint
            if state.is_world_process_zero:
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                write_json(checkpoint / PROGRESS_FILE, asdict(used()))
                seal(checkpoint)
                prune(args.output_dir)
            processes.meet()

    return Sealing()
