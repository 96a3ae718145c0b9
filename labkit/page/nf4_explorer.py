"""The NF4 explorer: a code's levels over the normal density, its exact error on N(0, 1), and the bits of a weight."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from labkit.labels import text
from labkit.models.methods import BLOCK_SIZES, Method
from labkit.models.shapes import shape_of
from labkit.page.figures import OKABE_ITO
from labkit.page.sliders import Control, Explorer, show
from labkit.theory.resident import parameter_bytes, quantization_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "nf4": "NF4",
    "fp4": "FP4",
    "int4": "int4 (15)",
    "uniform": "uniform",
    "af4": "AF4",
    "lloyd": "Lloyd-Max",
}
CODES = tuple(NAMES)
MODELS = ("qwen3-1.7b", "qwen3-8b")
DENSITY = tuple((place / 40, NormalDist().pdf(3 * place / 40)) for place in range(-40, 41))  # drawn to 3 sigma
SWITCH = (False, True)


def nf4_explorer(*, code: str = "nf4", block_size: int = 64, double_quant: bool = True) -> None:
    """Display the explorer; the arguments are the values that it starts with.

    Args:
        code: a name of `labkit.theory.codes.CODES`.
        block_size: a power of two from 32 to 4096.
        double_quant: whether the blocks' constants are quantized once more.

    Raises:
        LabError: a value that the controls do not offer.
    """
    show(make_explorer(code=code, block_size=block_size, double_quant=double_quant))


def make_explorer(*, code: str = "nf4", block_size: int = 64, double_quant: bool = True) -> Explorer:
    """The explorer as an object; see `nf4_explorer`."""
    controls = [
        Control(name="code", label=text("code", "编码"), values=CODES, start=code, texts=tuple(NAMES.values())),
        Control(
            name="block_size",
            label=text("block size (weights)", "块大小（权重个数）"),
            values=BLOCK_SIZES,
            start=block_size,
            kind="range",
        ),
        Control(
            name="double_quant",
            label=text("double quantization", "双重量化"),
            values=SWITCH,
            start=double_quant,
            kind="switch",
        ),
    ]
    tables = code_tables()
    at = CODES.index(code), BLOCK_SIZES.index(block_size)
    bits = tables["bits"][at[1]][int(double_quant)]
    alt = f"The {len(tables['levels'][at[0]][at[1]])} levels of {NAMES[code]} over a normal density; "
    alt += f"block size {block_size}: mean squared error {tables['errors'][at[0]][at[1]]:.5f} on N(0, 1), "
    alt += f"{bits:.4f} bits per weight"
    return Explorer(
        title=text("Four-bit codes", "4 比特编码"),
        view="nf4",
        controls=controls,
        data={**tables, "texts": _texts()},
        figure=_figure(tables["levels"][at[0]][at[1]]),
        alt=alt,
        heights_px=(510, 640),
    )


@cache
def code_tables() -> dict[str, Any]:
    """Levels, usage and errors by code and block size, bits and model bytes by block size and double quantization.

    Errors and usage are the exact ones for N(0, 1) weights (`labkit.theory.codes.normal_error`), with the block's
    constants as they are: what double quantization adds to the error is below a thousandth of it and left out.
    """
    from labkit.theory.codes import levels, normal_error, normal_usage
    from labkit.theory.nf4 import bits_per_weight

    sizes = BLOCK_SIZES
    return {
        "codes": CODES,
        "names": list(NAMES.values()),
        "blocks": sizes,
        "levels": [[_rounded(sorted(levels(code, size).tolist())) for size in sizes] for code in CODES],
        "usage": [[_rounded(normal_usage(code, size).tolist()) for size in sizes] for code in CODES],
        "errors": [[normal_error(code, size) for size in sizes] for code in CODES],
        "bits": [[bits_per_weight(size, double_quant=on) for on in SWITCH] for size in sizes],
        "models": MODELS,
        "bytes": [[[_model_bytes(model, size, on) for on in SWITCH] for size in sizes] for model in MODELS],
        "bfloat16": [2 * shape_of(model).n_params for model in MODELS],
        "density": [_rounded(point) for point in DENSITY],
        "colours": OKABE_ITO[:2],
    }


def _model_bytes(model: str, block_size: int, double_quant: bool) -> int:
    """Bytes of the model with its linears in 4 bits, the rest in bfloat16, as `labkit memory` counts them."""
    method = replace(Method(kind="qlora"), block_size=block_size, double_quant=double_quant)
    return parameter_bytes(shape_of(model), method) + quantization_bytes(shape_of(model), method)


def _rounded(values: Any) -> list[float]:
    """For drawing only: six digits are far below a pixel."""
    return [round(value, 6) for value in values]


def _texts() -> dict[str, str]:
    return {
        "verdict": text(
            "{bits} bits per weight, mean squared error {error} on N(0, 1)",
            "每个权重 {bits} 比特，在 N(0, 1) 上均方误差 {error}",
        ),
        "against": text("error against NF4 in the same blocks", "与同样分块的 NF4 相比，误差"),
        "model": text("{model} in 4 bits (bfloat16: {plain} GB)", "{model} 存成 4 比特（bfloat16：{plain} GB）"),
        "axis": text("level, as a share of the block's largest magnitude", "量化级，相对于块内最大绝对值"),
        "said": text("{n} levels of {code}: {levels}", "{code} 的 {n} 个量化级：{levels}"),
        "shares": text("bar: share of N(0, 1) weights that use the level", "柱：N(0, 1) 权重中用到该级的比例"),
        "curve": text("curve: normal density, 3 sigma at the edge", "曲线：正态密度，边缘为 3 个标准差"),
        "note": text(
            "Errors are exact for independent N(0, 1) weights and unrounded block constants. Embeddings, norms and the "
            "LM head stay in bfloat16. bitsandbytes stores NF4 and FP4 only.",
            "误差是对独立 N(0, 1) 权重、块常数不舍入时的精确值。嵌入、归一化和 LM head 保持 bfloat16。"
            "bitsandbytes 只能存 NF4 和 FP4。",
        ),
    }


def _figure(levels: list[float]) -> Figure:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 2.4), layout="constrained")
    axes = fig.subplots()
    axes.plot(*zip(*DENSITY, strict=True), color=OKABE_ITO[0])
    axes.vlines(levels, 0, 0.42, color=OKABE_ITO[1], linestyle="--", linewidth=1.2)
    axes.plot(levels, [0] * len(levels), "v", color="#000000", markersize=5, clip_on=False)
    axes.set_xlabel("level, as a share of the block's largest magnitude (curve: normal density, 3 sigma at the edge)")
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    return fig
