"""The three profiles: which model, data and sizes one and the same lesson runs with on this machine."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace

from labkit.errors import LabError
from labkit.models.methods import DTYPE_BYTES, Method, Step

LANGUAGES = ("en", "zh", "both")
VARIABLE = "LABKIT_PROFILE"
AMPERE = (8, 0)  # the first CUDA compute capability with bfloat16 units


def _at_least(field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        rule = f"{field} must be a whole number, at least {least}"
        raise LabError(f"{field}={value!r}", rule, f"try {field}={max(least, 8)}")


def _one_of(field: str, value: object, allowed: tuple[str | bool, ...]) -> None:
    if value not in allowed:
        rule = f"{field} must be one of {', '.join(map(str, allowed))}"
        raise LabError(f"{field}={value!r}", rule, f"try {allowed[0]}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything in which a run on one kind of machine differs from a run on another.

    How a step is computed on a GPU (element type, batch with accumulation, checkpointing) is settled by the memory that
    is free there, see `labkit.theory.sizing`; what it computes stays.

    Args:
        name: what ``LABKIT_PROFILE`` is set to.
        model: catalogue name of the model (see `labkit.models.shapes`).
        hub_id: ``owner/name`` on the Hugging Face Hub; empty for the book's own model.
        modelscope_id: ``owner/name`` on ModelScope; empty where the model is not fetched from there.
        data: ``book`` (the instruction set in ``data/``) or the name of a public set.
        language: rows to train on: ``en``, ``zh`` or ``both``.
        train_rows: training rows at most.
        eval_rows: held-out rows that loss and constraint-following are measured on.
        steps: optimizer steps.
        batch: sequences per forward pass.
        accumulation: forward passes per optimizer step.
        seq_len: tokens per sequence at most.
        checkpointing: recompute activations in the backward pass: about a third more arithmetic, far less memory.
        learning_rate: peak learning rate of the adapters.
        method: the fine-tuning method; its dtype counts only through `settled_method`.
        ranks: ranks that the ablation lessons compare.
        seeds: seeds that the ablation lessons repeat every run over.
        dtype: element type of the computation, or ``auto``: what the GPU has units for (see `compute_dtype`).
        max_new_tokens: tokens of a generated answer at most.
        cpu_threads: threads for arithmetic on the CPU; None leaves them to torch (see `limit_threads`).
        needs_cuda: the model is too large to train on a CPU in a lesson's time.

    Raises:
        LabError: a value outside its range, echoed with the rule and a fix.
    """

    name: str
    model: str
    hub_id: str = ""
    modelscope_id: str = ""
    data: str = "book"
    language: str = "both"
    train_rows: int
    eval_rows: int
    steps: int
    batch: int
    accumulation: int = 1
    seq_len: int
    checkpointing: bool = False
    learning_rate: float
    method: Method
    ranks: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    dtype: str = "float32"
    max_new_tokens: int
    cpu_threads: int | None = None
    needs_cuda: bool = False

    def __post_init__(self) -> None:
        for field in ("train_rows", "eval_rows", "steps", "batch", "accumulation", "max_new_tokens"):
            _at_least(field, getattr(self, field), 1)
        _at_least("seq_len", self.seq_len, 2)
        for rank in self.ranks:
            _at_least("ranks", rank, 1)
        if not 0 < self.learning_rate < 1:  # also refuses NaN
            given = f"learning_rate={self.learning_rate!r}"
            raise LabError(given, "learning_rate must be above 0 and below 1", "try learning_rate=2e-4")
        _one_of("language", self.language, LANGUAGES)
        _one_of("dtype", self.dtype, (*DTYPE_BYTES, "auto"))
        _one_of("checkpointing", self.checkpointing, (True, False))
        if not self.ranks or not self.seeds:
            raise LabError(f"ranks={self.ranks!r}, seeds={self.seeds!r}", "name at least one of each", "try seeds=(0,)")

    @property
    def rows_per_step(self) -> int:
        """Training rows that one optimizer step sees: batch times accumulation."""
        return self.batch * self.accumulation

    @property
    def step(self) -> Step:
        """One forward and backward pass of this profile, for the memory formulas."""
        return Step(batch=self.batch, seq_len=self.seq_len, checkpointing=self.checkpointing)


PROFILES: dict[str, Profile] = {
    "tiny": Profile(
        name="tiny",
        model="tiny",
        train_rows=1200,
        eval_rows=48,
        steps=48,
        batch=8,
        seq_len=256,
        learning_rate=1e-2,
        method=Method(kind="qlora", rank=8, dtype="float32"),
        ranks=(2, 4, 8, 16),
        max_new_tokens=48,
        cpu_threads=1,
    ),
    "laptop": Profile(
        name="laptop",
        model="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        language="en",  # the model was pretrained on English text
        train_rows=1200,
        eval_rows=48,
        steps=96,
        batch=4,
        seq_len=256,
        learning_rate=2e-3,
        method=Method(kind="qlora", rank=16, dtype="float32"),
        ranks=(4, 8, 16, 32),
        dtype="float32",  # on every CPU; bfloat16 is faster only where the CPU has AVX512-BF16 or AMX
        max_new_tokens=64,
    ),
    "gpu": Profile(
        name="gpu",
        model="qwen3-1.7b",
        hub_id="Qwen/Qwen3-1.7B-Base",
        modelscope_id="Qwen/Qwen3-1.7B-Base",
        train_rows=1200,
        eval_rows=96,
        steps=300,
        batch=4,
        accumulation=4,
        seq_len=1024,
        checkpointing=True,
        learning_rate=2e-4,
        method=Method(kind="qlora", rank=32, alpha=64),
        ranks=(8, 16, 32, 64),
        dtype="auto",
        max_new_tokens=160,
        needs_cuda=True,
    ),
}


def profile_of(name: str) -> Profile:
    """The profile called ``name``.

    Raises:
        LabError: an unknown name; the error lists the three.
    """
    if name in PROFILES:
        return PROFILES[name]
    names = ", ".join(PROFILES)
    near = difflib.get_close_matches(name.strip().lower(), PROFILES, n=1)
    fix = f"set {VARIABLE} (or --profile) to {near[0] if near else 'one of them'}"
    raise LabError(f"profile={name!r}", f"a profile is one of {names}", fix)


def current_profile(name: str | None = None) -> Profile:
    """The profile to run with: ``name`` if given, else ``LABKIT_PROFILE``, else ``gpu`` with CUDA and ``tiny`` without.

    Raises:
        LabError: an unknown name.
    """
    if chosen := (name or os.environ.get(VARIABLE, "").strip()):
        return profile_of(chosen)
    return PROFILES["gpu" if _has_cuda() else "tiny"]


def compute_dtype(profile: Profile) -> str:
    """The element type to compute in, as torch spells it; ``auto`` means what the machine has units for.

    ``torch.cuda.is_bf16_supported()`` is True on a T4, which only emulates bfloat16; the compute capability decides
    instead: bfloat16 from 8.0 (Ampere) on, float16 below, float32 without CUDA.
    """
    if profile.dtype != "auto":
        return profile.dtype
    if not _has_cuda():
        return "float32"
    import torch

    return cuda_dtype(torch.cuda.get_device_capability())


def cuda_dtype(capability: tuple[int, int]) -> str:
    """The 16-bit element type that a CUDA GPU of this compute capability has units for."""
    return "bfloat16" if tuple(capability) >= AMPERE else "float16"


def settled_method(profile: Profile) -> Method:
    """The profile's method with the element type that this machine computes in."""
    return replace(profile.method, dtype=compute_dtype(profile))


def limit_threads(profile: Profile) -> None:
    """Compute with ``profile.cpu_threads`` threads from here on, unless ``OMP_NUM_THREADS`` says otherwise.

    Matrices as small as the tiny model's finish before a second thread has woken up; where something else runs too,
    the threads mostly wait for each other: a pretraining step of 2,048 tokens took 0.31 s with one thread and 3.5 s
    with two on a busy machine of 2 cores (torch 2.13.0, 2026-11-24).
    """
    if profile.cpu_threads is None or "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    torch.set_num_threads(profile.cpu_threads)


def _has_cuda() -> bool:
    try:
        import torch
    except (ImportError, OSError):  # OSError: a CUDA library of torch is missing or does not load
        return False
    return torch.cuda.is_available()
