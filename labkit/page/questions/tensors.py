"""Judging a tensor that a student's function returned, beside the right one and those that known mistakes give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from labkit.page.exercises import Wrong

if TYPE_CHECKING:
    import torch


def judge_tensor(
    result: Any,
    wanted: Mapping[str, torch.Tensor],
    *,
    case: str,
    reasons: Mapping[str, tuple[str, str]],
    formula: str,
) -> None:
    """Accept ``result`` if it equals ``wanted["right"]`` to 1e-5.

    Args:
        result: what the function returned.
        wanted: ``right``, and under the names of ``reasons`` what a known mistake would return (where it can be told).
        case: the sizes that were tried, for the message.
        reasons: name of a mistake -> its explanation in English and Chinese.
        formula: what should have been computed.

    Raises:
        Wrong: another shape, a known mistake, or other numbers.
    """
    import torch

    right = wanted["right"]
    if not isinstance(result, torch.Tensor) or result.shape != right.shape:
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise Wrong(
            f"{case}: your result is {shape}, a tensor of shape {tuple(right.shape)} is expected",
            f"{case}：你的结果是 {shape}，应为形状 {tuple(right.shape)} 的张量",
        )
    if torch.allclose(result.to(right.dtype), right, atol=1e-5):
        return
    for name, reason in reasons.items():
        if name in wanted and torch.allclose(result.to(right.dtype), wanted[name], atol=1e-5):
            raise Wrong(f"{case}: {reason[0]}", f"{case}：{reason[1]}")
    raise Wrong(f"{case}: the numbers differ from {formula}", f"{case}：结果与 {formula} 不符")
