"""Settings for one CUDA card: how a step is computed so that it fits, never what it computes.

The order is fixed: the profile's batch without gradient checkpointing (about a third less arithmetic), the same with
it, then smaller batches with more accumulation. The rows of every update stay the same and the loss is a mean over all
of their tokens, so the curve is the same but for rounding, and other rows under the same dropout mask. What changes
what is learned (shorter rows, a lower rank) is never chosen here; the refusal names it. The loss is the fused one
throughout (`Profile.step`). Where `labkit.theory.fitting` lists ways and prices, this settles on one.

A caller to whom the element type matters (lesson 02 measures updates) names several, and the first one that fits in any
split is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from labkit.errors import LabError
from labkit.models.profiles import AMPERE, Profile, cuda_dtype, settled_method
from labkit.models.shapes import ModelShape, shape_of
from labkit.theory.fitting import GIB, OF_A_RUN, RESERVE_GIB, Change, Way, Words, fillable_bytes, ways_to_fit
from labkit.theory.memory import predict

SETTLED = ("dtype", "batch", "accumulation", "checkpointing")  # the fields of a profile that `fit` may replace
WAYS = 3  # in a message; `labkit memory --gpu` lists more
RAISED_BYTES = 10  # of a float16 weight that trains: see `peak_bytes`


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What `fit` settled on.

    Attributes:
        profile: the profile with `SETTLED` as it should run.
        peak_allocated_bytes: predicted peak of a step with these settings (see `peak_bytes`), and ``beside_bytes``.
        free_bytes: of the card, as given.
        reasons: why each setting is not the one tried before it, in English and in Chinese.
    """

    profile: Profile
    peak_allocated_bytes: int
    free_bytes: int
    reasons: tuple[Words, ...]

    @property
    def words(self) -> Words:
        """What was chosen and why, in English and in Chinese."""
        chosen = self.profile
        size = f"{chosen.batch} x {chosen.accumulation}"
        peak, free = (f"{n_bytes / GIB:.2f} GiB" for n_bytes in (self.peak_allocated_bytes, self.free_bytes))
        english = (
            f"settings for this GPU: {chosen.dtype}, batch x accumulation {size}, rows of {chosen.seq_len:,} tokens, "
            f"{_checkpointing(chosen)[0]}: predicted peak {peak} of {free} free"
        )
        chinese = (
            f"本机显卡的设置：{chosen.dtype}，批大小 x 梯度累积 = {size}，每条 {chosen.seq_len:,} 个词元，"
            f"{_checkpointing(chosen)[1]}：预测峰值 {peak}，空闲 {free}"
        )
        why = tuple(zip(*self.reasons, strict=True)) or ((), ())
        return "; ".join([english, *why[0]]), "；".join([chinese, *why[1]])


def fit(
    profile: Profile,
    *,
    free_bytes: int,
    capability: tuple[int, int],
    shape: ModelShape | None = None,
    fixed: Collection[str] = (),
    dtypes: Sequence[str] = (),
    beside_bytes: int = 0,
    otherwise: str = "",
) -> Choice:
    """The first setting, in the order of this module, whose predicted peak and `RESERVE_GIB` are free on the card.

    Args:
        profile: what would run; batch x accumulation stays as it is, an element type other than ``auto`` too.
        free_bytes: as `torch.cuda.mem_get_info` says before anything is loaded.
        capability: CUDA compute capability; bfloat16 from 8.0 on, float16 below.
        shape: of the model; default: the profile's.
        fixed: those of `SETTLED` that stay as they are; ``batch`` and ``accumulation`` stay together.
        dtypes: element types to try in this order, instead of the profile's.
        beside_bytes: what the caller holds on the card beside the step.
        otherwise: one more way out for the refusal, in words.

    Raises:
        LabError: no setting fits, with both numbers and what would; or see `labkit.theory.memory.predict`.
    """
    shape, reasons = shape or shape_of(profile.model), []
    if profile.dtype == "auto":
        profile = replace(profile, dtype=cuda_dtype(capability))
        reasons += [_no_bfloat16(capability)] if tuple(capability) < AMPERE else []
    for dtype in dtypes or (profile.dtype,):
        refused = []
        for tried in _splits(replace(profile, dtype=dtype), fixed):
            peak = peak_bytes(shape, tried) + beside_bytes
            if peak <= fillable_bytes(free_bytes):
                found = {"peak_allocated_bytes": peak, "free_bytes": free_bytes}
                return Choice(profile=tried, reasons=(*reasons, *refused), **found)
            refused.append(_too_large(tried, peak))
        reasons.append(_type_too_large(dtype, peak))
    needs = f"a step needs {peak / GIB:.2f} GiB by prediction, {RESERVE_GIB:g} GiB should stay free"
    rule = f"{needs}, and the GPU has {free_bytes / GIB:.2f} GiB free"
    ways = [advice(shape, tried, free_bytes=free_bytes - beside_bytes), "stop other programs on the GPU (nvidia-smi)"]
    raise LabError(in_short(shape, tried), rule, "; or ".join([*ways, *filter(None, [otherwise])]))


def peak_bytes(shape: ModelShape, profile: Profile) -> int:
    """Predicted peak of a step as the recipe runs it: no less than `labkit.theory.memory.predict`.

    float16 weights that train without adapters are float32 there, for the gradient scaler: 2 bytes more for the weight
    and for its gradient, 4 for its moments, and 2 for the float16 copy that autocast multiplies with.
    """
    method = settled_method(profile)
    found = predict(shape, method, profile.step)
    raised = RAISED_BYTES if method.dtype == "float16" and not method.uses_adapters else 0
    return found.peak_allocated_bytes + raised * found.trainable_params


def _splits(profile: Profile, fixed: Collection[str]) -> Iterator[Profile]:
    """The profile with its rows of an update split in every way on offer, from the least to the most frugal."""
    choices = (profile.checkpointing,) if "checkpointing" in fixed else (False, True)
    whole = "batch" in fixed or "accumulation" in fixed
    sizes = [profile.batch] if whole else range(profile.batch, 0, -1)
    if len(choices) == 2:
        yield replace(profile, checkpointing=False)
    for batch in sizes:
        if profile.rows_per_step % batch == 0:
            times = profile.rows_per_step // batch
            yield replace(profile, batch=batch, accumulation=times, checkpointing=choices[-1])


def _checkpointing(profile: Profile) -> Words:
    return (
        ("with checkpointing", "开梯度检查点") if profile.checkpointing else ("without checkpointing", "不开梯度检查点")
    )


def _no_bfloat16(capability: tuple[int, int]) -> Words:
    number = ".".join(map(str, capability))
    return f"compute capability {number} has no bfloat16 units", f"计算能力 {number}，没有 bfloat16 运算单元"


def _too_large(tried: Profile, peak_bytes: int) -> Words:
    """A setting that does not fit, and what it needs with the reserve."""
    needs, (english, chinese) = f"{peak_bytes / GIB + RESERVE_GIB:.2f} GiB", _checkpointing(tried)
    return (
        f"batch {tried.batch} {english} would need {needs} with the reserve",
        f"批大小 {tried.batch}、{chinese}，连同预留需要 {needs}",
    )


def _type_too_large(dtype: str, peak_bytes: int) -> Words:
    """An element type that fits in no split, and what its most frugal one needs with the reserve."""
    needs = f"{peak_bytes / GIB + RESERVE_GIB:.2f} GiB"
    return f"{dtype} would need at least {needs} with the reserve", f"{dtype} 连同预留至少需要 {needs}"


def in_short(shape: ModelShape, profile: Profile) -> str:
    """The run in short, for a message."""
    return f"{shape.name}, {profile.method.kind}, batch={profile.batch}, seq_len={profile.seq_len}"


def advice(shape: ModelShape, profile: Profile, *, free_bytes: int) -> str:
    """The cheapest changes of a run after which a step fits into ``free_bytes``, less the reserve, in words."""
    room = fillable_bytes(free_bytes)
    ways = ways_to_fit(shape, settled_method(profile), profile.step, room_bytes=room, limit=WAYS, only=OF_A_RUN)
    if not ways:
        return "no two changes make it fit: use a smaller model (LABKIT_PROFILE=laptop) or a larger GPU"
    return "; or ".join(_way_text(way, profile) for way in ways)


def _way_text(way: Way, profile: Profile) -> str:
    return " and ".join(f"{_argument(change, profile)} ({_price(change)})" for change in way.changes)


def _argument(change: Change, profile: Profile) -> str:
    """A change as the argument of a run: a smaller batch comes with the accumulation that keeps the update."""
    text = f"{change.field}={change.value!r}"
    if change.field == "batch":
        text += f", accumulation={profile.rows_per_step // change.value}"
    return text


def _price(change: Change) -> str:
    return "longer rows are refused" if change.field == "seq_len" else change.price[0]
