"""Settings for one CUDA card: the profile as it is written where it fits, else the least frugal setting that does.

The order is fixed: the profile's own batch first, then smaller batches with more accumulation (the same rows in every
update), each with gradient checkpointing, and only then shorter rows, which change what is learned. The loss is the
fused one throughout (`Profile.step`). Where `labkit.theory.fitting` lists ways and prices, this settles on one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from labkit.errors import LabError
from labkit.models.methods import Step
from labkit.models.profiles import Profile, cuda_dtype
from labkit.models.shapes import shape_of
from labkit.theory.fitting import GIB, RESERVE_GIB, SHORTEST, Words, fillable_bytes
from labkit.theory.memory import predict


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What `fit` settled on.

    Attributes:
        profile: the profile with its element type, batch, accumulation and, as the last resort, length replaced.
        checkpointing: what `labkit.training.recipe.build_trainer` takes under this name.
        peak_allocated_bytes: predicted peak of a step with these settings.
        reasons: each setting that was tried before and did not fit, with its numbers, in English and in Chinese.
        price: what the choice takes from what is learned, in English and in Chinese; None where nothing.
    """

    profile: Profile
    checkpointing: bool
    peak_allocated_bytes: int
    reasons: tuple[Words, ...]
    price: Words | None = None


def fit(profile: Profile, *, free_bytes: int, capability: tuple[int, int], checkpointing: bool = True) -> Choice:
    """The first setting, in the order of this module, whose predicted peak and `RESERVE_GIB` are free on the card.

    Args:
        profile: what would run; batch x accumulation stays as it is, an element type other than ``auto`` too.
        free_bytes: as `torch.cuda.mem_get_info` says before anything is loaded.
        capability: CUDA compute capability; bfloat16 from 8.0 on, float16 below.
        checkpointing: True begins as the recipe does on a GPU; False first tries to do without at the profile's batch,
            which saves about a third of the arithmetic.

    Raises:
        LabError: not even one row of the shortest length fits; or see `labkit.theory.memory.predict`.
    """
    dtype = cuda_dtype(capability) if profile.dtype == "auto" else profile.dtype
    method = replace(profile.method, dtype=dtype)
    reasons: list[Words] = []
    for step in _steps(profile, checkpointing):
        peak = predict(shape_of(profile.model), method, step).peak_allocated_bytes
        if peak <= fillable_bytes(free_bytes):
            return Choice(
                profile=_settled(profile, step, dtype),
                checkpointing=step.checkpointing,
                peak_allocated_bytes=peak,
                reasons=tuple(reasons),
                price=_price(profile, step),
            )
        reasons.append(_reason(step, peak, free_bytes))
    given = f"{profile.model}, {method.kind}, {free_bytes / GIB:.2f} GiB free"
    rule = f"no setting fits beside the {RESERVE_GIB:g} GiB that should stay free; the last was {reasons[-1][0]}"
    fix = "stop other programs on the GPU (nvidia-smi), use a larger GPU, or a smaller model (LABKIT_PROFILE=laptop)"
    raise LabError(given, rule, fix)


def _steps(profile: Profile, checkpointing: bool) -> Iterator[Step]:
    """The settings from the least to the most frugal: each needs at most as much memory as the one before."""
    if not checkpointing:
        yield replace(profile.step, checkpointing=False)
    for batch in range(profile.batch, 0, -1):
        if profile.rows_per_step % batch == 0:
            yield replace(profile.step, batch=batch, checkpointing=True)
    length = profile.seq_len // 2
    while length >= SHORTEST:
        yield replace(profile.step, batch=1, seq_len=length, checkpointing=True)
        length //= 2


def _settled(profile: Profile, step: Step, dtype: str) -> Profile:
    accumulation = profile.rows_per_step // step.batch
    return replace(profile, dtype=dtype, batch=step.batch, accumulation=accumulation, seq_len=step.seq_len)


def _reason(step: Step, peak_bytes: int, free_bytes: int) -> Words:
    """A setting that does not fit: what it needs with the reserve, of what is free."""
    numbers = (f"{peak_bytes / GIB + RESERVE_GIB:.2f}", f"{free_bytes / GIB:.2f}")
    english = (
        f"batch {step.batch} of {step.seq_len:,} tokens {'with' if step.checkpointing else 'without'} checkpointing"
    )
    chinese = f"批大小 {step.batch}、长度 {step.seq_len:,}、{'开' if step.checkpointing else '不开'}梯度检查点"
    return f"{english}: {numbers[0]} of {numbers[1]} GiB", f"{chinese}：需要 {numbers[0]} GiB，空闲 {numbers[1]} GiB"


def _price(profile: Profile, step: Step) -> Words | None:
    if step.seq_len == profile.seq_len:
        return None
    cut = f"{step.seq_len:,}", f"{profile.seq_len:,}"
    return (
        f"{cut[0]} tokens in place of {cut[1]}: longer examples are cut (or refused, by `labkit sft`), "
        "which changes what is learned",
        f"长度从 {cut[1]} 减到 {cut[0]}：更长的样本会被截断（`labkit sft` 则会拒绝），学到的内容会变",
    )
