"""A run that can be continued: its unfinished state on disk, who may touch it, and where training goes on.

While `labkit.training.run` trains, the folder ``<out>.unfinished`` beside its destination holds the settings, the
checkpoints (see `labkit.training.saves`) and what was measured before training. It goes away when the run is published.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.files import read_json, write_json, writing
from labkit.labels import text
from labkit.training import processes
from labkit.training.continuing import train_from
from labkit.training.kept import differences, read_checked, write_checked
from labkit.training.measure import peak_memory
from labkit.training.saves import checkpoints, newest_good, prune, seal, step_of
from labkit.training.used import PROGRESS_FILE, Used, progress_at

if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl import SFTTrainer

SETTINGS_FILE, LOCK_FILE = "settings.json", "lock"
CHECKPOINTS_OF_A_RUN = 12  # about so many are written, whatever the number of steps
Say = Callable[[str], None]


def state_folder(out: Path | str) -> Path:
    """Where the state of the run into ``out`` is kept until it is finished."""
    out = Path(out)
    return out.with_name(f"{out.name}.unfinished")


def save_every(steps: int) -> int:
    """Optimizer steps from one checkpoint to the next."""
    return max(1, round(steps / CHECKPOINTS_OF_A_RUN))


def begun_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the unfinished run whose state is in ``folder``; None where no training was saved.

    Raises:
        LabError: training was saved, and its settings can be read neither there nor in a checkpoint.
    """
    if not (saved := checkpoints(folder)):
        return None
    for place in (folder, *saved):
        if isinstance(settings := read_json(place / SETTINGS_FILE), dict):
            return settings
    rule = "the settings of the unfinished run there cannot be read, so nothing says which run it was"
    raise LabError(str(folder), rule, "remove that folder to start again, or name another")


@dataclass
class State:
    """The unfinished state of one run, held by this process alone.

    Attributes:
        settings: everything that decides the result; each checkpoint carries them.
        in_cell: a notebook's cell is what trains, so that the words are about cells.
        used: by all its sittings.
        started: when this sitting began, by `time.perf_counter`.
        earlier: seconds of the sittings before this one, up to what of their work is used again.
    """

    folder: Path
    settings: dict[str, Any]
    say: Say = print
    in_cell: bool = False
    used: Used = field(default_factory=Used)
    started: float = field(default_factory=time.perf_counter)
    earlier: float = 0.0

    def total(self) -> float:
        """Seconds of all sittings until now, without what was lost after the last checkpoint."""
        return self.earlier + time.perf_counter() - self.started

    def keep(self, name: str, value: Any) -> Any:
        """Write ``value`` as ``name``.json, with a checksum, and return it."""
        if processes.is_first():
            write_checked(self.folder / f"{name}.json", value)
        return value

    def kept(self, name: str) -> Any | None:
        """What `keep` wrote; None if it never did, or if the file is damaged, which is said."""
        path = self.folder / f"{name}.json"
        if found := read_checked(path):
            return found["value"]
        if path.exists():
            self.say(text(f"not usable: {path.name} is damaged", f"不能用：{path.name} 已损坏"))
        return None

    def train(self, trainer: SFTTrainer) -> None:
        """``trainer.train()`` from the newest good checkpoint, or from the start, saving checkpoints on the way.

        Raises:
            LabError: the disk is full or refuses a checkpoint; those already saved stay good.
        """
        from transformers.trainer_utils import SaveStrategy

        found = self._find(trainer.args.max_steps) if processes.is_first() else None
        checkpoint = processes.from_first(found)
        before, began = progress_at(checkpoint), time.perf_counter()
        if changed := before.other_versions():
            self.say(changed)
        self.earlier = max(self.earlier, before.total)

        def count() -> Used:
            self.used = before.after(time.perf_counter() - began, peak_memory(), total=self.total())
            return self.used

        trainer.args.output_dir, trainer.args.save_strategy = str(self.folder), SaveStrategy.STEPS
        trainer.args.save_steps = save_every(trainer.args.max_steps)
        trainer.add_callback(_sealing_callback(count, self.settings))
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
                    f"trained already: {steps} of {steps} steps taken from {checkpoint}",
                    f"已经训练过：{steps} 步中的 {steps} 步取自 {checkpoint}",
                )
                + (text(" (force=True trains again)", "（force=True 会重新训练）") if self.in_cell else "")
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
def unfinished(
    folder: Path,
    settings: dict[str, Any],
    *,
    resume: bool,
    force: bool = False,
    in_cell: bool = False,
    say: Say = print,
) -> Iterator[State]:
    """Hold the state in ``folder`` while the block runs; the caller removes it with `finish` when all is published.

    Args:
        folder: see `state_folder`.
        settings: everything that decides the result, as plain JSON; a continued run must have the same.
        resume: continue what is there; without it a started run is refused. Where nothing is, both start.
        force: remove what is there first.
        in_cell: see `State`.
        say: told what is reused and what is damaged.

    Raises:
        LabError: another process holds it, or it holds something else; a run is there and ``resume`` is off; its
            settings differ (both values are named); the disk refuses.
    """
    from filelock import FileLock, Timeout

    if not processes.is_first():  # the first of several holds it for all
        yield State(folder, settings, say)
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_a_strangers(folder)
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
        if force:
            prune(folder, keep=0)
        _same_settings(folder, settings, resume=resume)
        state = State(folder, settings, say, in_cell)
        with _saying_what_is_left(state):
            yield state
    finally:
        if not checkpoints(folder):
            shutil.rmtree(folder, ignore_errors=True)  # nothing worth keeping
        lock.release()


def _refuse_a_strangers(folder: Path) -> None:
    """Somebody's own folder may have this name; a state has its lock from its first moment."""
    if any(folder.iterdir()) and not any((folder / name).exists() for name in (LOCK_FILE, SETTINGS_FILE)):
        rule = "a run keeps its unfinished work here, and this holds something else"
        raise LabError(str(folder), rule, "move that away, or name another folder for the run")


@contextlib.contextmanager
def _saying_what_is_left(state: State) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if newest_good(state.folder)[0]:
            where = text(f"what was trained so far is in {state.folder}; ", f"已经训练的部分在 {state.folder}；")
            how = (
                text("run the cell again to go on", "再运行一次这个单元格就接着训练")
                if state.in_cell
                else text("--resume (resume=True) continues it", "用 --resume（resume=True）可以接着训练")
            )
            state.say(where + how)
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
    with unfinished(folder, settings, resume=True, force=force, in_cell=True, say=say) as state:
        state.train(trainer)
    return state.used


def finish(state: State) -> None:
    """Remove the state of a run that is published."""
    if processes.is_first():
        prune(state.folder, keep=0)


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
    if changes := differences(begun_settings(folder) or {}, settings):
        rule = f"the unfinished run there has other settings: {'; '.join(changes)}"
        raise LabError(str(folder), rule, "ask for the settings it began with, or name another folder")
    if read_json(path) != settings:
        write_json(path, settings)  # it was damaged


def _sealing_callback(used: Callable[[], Used], settings: dict[str, Any]) -> TrainerCallback:
    """A callback that completes each checkpoint: settings, what was `Used`, then the seal; older ones go away."""
    from transformers import TrainerCallback

    class Sealing(TrainerCallback):
        def on_save(self, args, state, control, **_):
            processes.meet()  # each process adds its random numbers to the checkpoint
            if state.is_world_process_zero:
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                write_json(checkpoint / PROGRESS_FILE, asdict(used()))
                write_json(checkpoint / SETTINGS_FILE, settings)
                seal(checkpoint)
                prune(args.output_dir)
            processes.meet()

    return Sealing()
