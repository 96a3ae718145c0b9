"""A GPU that ran out of memory although the step was predicted to fit: what was where, and what would help."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from labkit.errors import LabError
from labkit.models.profiles import Profile, settled_method
from labkit.models.shapes import ModelShape
from labkit.theory.fitting import GIB, RESERVE_GIB
from labkit.theory.memory import moments, predict
from labkit.theory.sizing import advice, in_short
from labkit.training.evaluate import ANSWER_BATCH, LOSS_BATCH

MEASUREMENTS = ("before", "after")  # phases of a run that train nothing


def out_of_memory(
    work: Callable[[], Any], shape: ModelShape, profile: Profile, *, phase: str | None = None
) -> LabError | None:
    """Call ``work``; if the GPU runs out of memory, the error that explains it, else None.

    The error is returned, and torch's is let go first: its traceback holds the tensors of the step that failed, and
    the caller wants that memory to save what was trained.
    """
    import torch

    try:
        work()
    except torch.OutOfMemoryError as error:
        return explained(error, shape, profile, phase=phase or phase_of(error))
    return None


def explained(error: BaseException, shape: ModelShape, profile: Profile, *, phase: str) -> LabError:
    """An out-of-memory error in the words of the prediction: the phase, its parts, and what would make it fit.

    ``phase`` is one of a step, or ``before`` or ``after``: the measurement of held-out rows around the training.
    """
    parts = predicted_parts(shape, profile, phase)
    named = ", ".join(f"{name.replace('_', ' ')} {size / GIB:.2f}" for name, size in parts.items())
    there = f"predicted there, in GiB: {named}, {sum(parts.values()) / GIB:.2f} in all"
    if phase in MEASUREMENTS:
        there += f"; beside it a batch of up to {LOSS_BATCH} rows for the loss, or {ANSWER_BATCH} for the answers"
        fix = "measure fewer rows at once (eval_rows=8 in run_sft), or stop other programs on the GPU"
    else:
        fix = advice(shape, profile, free_bytes=_tighter(shape, profile))
    rule = f"the GPU ran out of memory in the phase {phase} ({_first_line(error)}); {there}"
    return LabError(in_short(shape, profile), rule, fix)


def phase_of(error: BaseException) -> str:
    """``optimizer``, ``backward`` or ``forward``: where in a step an error was raised, from its traceback.

    Recomputing a checkpointed layer is part of the backward pass, whatever it recomputes.
    """
    files, trace = [], error.__traceback__
    while trace:
        files.append(trace.tb_frame.f_code.co_filename.replace("\\", "/"))
        trace = trace.tb_next
    if any("/optim/" in file for file in files):
        return "optimizer"
    if any(file.endswith(("/torch/_tensor.py", "/autograd/__init__.py", "/autograd/graph.py")) for file in files):
        return "backward"
    return "forward"


def predicted_parts(shape: ModelShape, profile: Profile, phase: str) -> dict[str, int]:
    """Bytes by component at the largest predicted moment of a phase, largest first, without empty ones.

    A measurement holds the loaded model; before the training it has no adapters yet.
    """
    passed = moments(shape, settled_method(profile), profile.step)
    moment = "load" if phase in MEASUREMENTS else phase
    held = max((parts for name, parts in passed if name == moment), key=lambda parts: sum(parts.values()))
    if phase == "before":
        held = {name: size for name, size in held.items() if name != "adapters"}
    return dict(sorted(((name, size) for name, size in held.items() if size), key=lambda item: -item[1]))


def _tighter(shape: ModelShape, profile: Profile) -> int:
    """Room to advise for: what the GPU has, but less than the prediction that turned out too low."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else math.inf
    peak = predict(shape, settled_method(profile), profile.step).peak_allocated_bytes
    return min(total, peak - 1 + int(RESERVE_GIB * GIB))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")


def free_cuda_memory(model: Any) -> None:
    """Drop gradients and cached blocks, so that saving finds room."""
    import torch

    model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
