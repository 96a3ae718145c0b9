"""Lesson 00: what the exercises accept."""

from __future__ import annotations

import math
from typing import Any

from labkit.page.exercises import NotAttempted, Wrong, attempted, must_be_function, question
from labkit.page.questions.written import explanation

N_PARAMS = 1_720_574_976  # Qwen3-1.7B, tied embeddings counted once
BF16_BYTES = 2 * N_PARAMS


def close(value: object, wanted: float, *, tolerance: float = 0.005) -> bool:
    """Whether ``value`` is a number within the relative ``tolerance`` of ``wanted``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isclose(value, wanted, rel_tol=tolerance)


@question("q0_1")
def model_size(value: Any) -> None:
    """(GB, GiB) of the 1.7B model in bf16: 3.44 and 3.20."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise Wrong("two numbers are asked for: answer = (gb, gib)", "这里要两个数：answer = (gb, gib)")
    gb, gib = value
    if close(gb, BF16_BYTES / 2**30) and close(gib, BF16_BYTES / 1e9):
        raise Wrong(
            "GB and GiB are swapped: GB is the smaller unit, so its number is larger",
            "GB 和 GiB 写反了：GB 单位更小，所以数字更大",
        )
    if close(gb, BF16_BYTES / 2**30):
        raise Wrong("that is GiB (2**30 bytes); GB is 1e9 bytes", "这是 GiB（2**30 字节）；GB 是 1e9 字节")
    if close(gb, N_PARAMS / 1e9) or close(gb, 2 * BF16_BYTES / 1e9):
        raise Wrong("bf16 takes 2 bytes a parameter", "bf16 每个参数占 2 字节")
    if not close(gb, BF16_BYTES / 1e9):
        raise Wrong(f"{gb} GB is not parameters x bytes / 1e9", f"{gb} GB 不等于 参数量 × 字节数 / 1e9")
    if not close(gib, BF16_BYTES / 2**30):
        raise Wrong("the GB are right; GiB divides the same bytes by 2**30", "GB 对了；GiB 要用同样的字节数除以 2**30")


@question("q0_2")
def weight_bytes(value: Any) -> list[int]:
    """A function (n_params, bits_per_weight) -> bytes, whole bytes rounded up."""
    must_be_function(value, "weight_bytes")
    cases = [(1, 16), (1_000, 4), (8_190_735_360, 16), (3, 4), (1_720_574_976, 32)]
    results = []
    for n_params, bits in cases:
        result = value(n_params, bits)
        if result is None or result is ...:
            raise NotAttempted
        wanted = (n_params * bits + 7) // 8
        if close(result, wanted * 8, tolerance=1e-9):
            raise Wrong("that is bits; 8 bits make a byte", "你算的是比特；8 比特才是 1 字节")
        if result != wanted:
            hint = " (round half bytes up)" if n_params == 3 else ""
            hint_zh = "（不足一个字节要向上取整）" if n_params == 3 else ""
            raise Wrong(
                f"weight_bytes({n_params}, {bits}) gives {result}, should be {wanted}{hint}",
                f"weight_bytes({n_params}, {bits}) 得到 {result}，应为 {wanted}{hint_zh}",
            )
        results.append(result)
    return results


@question("q0_3")
def download_seconds(value: Any) -> None:
    """Seconds for 3.44 GB over 100 Mbit/s: 275."""
    wanted = BF16_BYTES * 8 / 100e6
    number = attempted(value)
    if close(number, wanted / 8, tolerance=0.02):
        raise Wrong(
            "100 Mbit/s are megabits; the file is counted in bytes, 8 times as many bits",
            "100 Mbit/s 是兆比特每秒；文件按字节算，比特数是它的 8 倍",
        )
    if not close(number, wanted, tolerance=0.02):
        raise Wrong(
            f"{number} s is not bytes x 8 / (100e6 bits per second)",
            f"{number} 秒不等于 字节数 × 8 /（每秒 100e6 比特）",
        )


question("q0_4", written=True)(explanation)
