"""The LoRA explorer: what rank, alpha and targets mean in parameters, share, scale and file size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import TARGETS, Method, parse_targets
from labkit.models.shapes import CATALOGUE, shape_of
from labkit.page.figures import OKABE_ITO
from labkit.page.memory_figures import HATCHES
from labkit.page.sliders import Control, Explorer, show
from labkit.theory.resident import adapter_tensors, n_elements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ALPHAS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MODELS = tuple(CATALOGUE)


def lora_explorer(
    *, model: str = "qwen3-1.7b", rank: int = 32, alpha: int = 64, targets: str | Sequence[str] = TARGETS
) -> None:
    """Display the explorer; the arguments are the values that it starts with.

    Args:
        model: a name of `labkit.models.shapes.CATALOGUE`.
        rank: one of `RANKS`.
        alpha: one of `ALPHAS`.
        targets: linears that carry an adapter; ``"all"`` and ``"q_proj,v_proj"`` are understood.

    Raises:
        LabError: a value that the controls do not offer.
    """
    show(make_explorer(model=model, rank=rank, alpha=alpha, targets=targets))


def make_explorer(
    *, model: str = "qwen3-1.7b", rank: int = 32, alpha: int = 64, targets: str | Sequence[str] = TARGETS
) -> Explorer:
    """The explorer as an object; see `lora_explorer`."""
    chosen = parse_targets(targets) if isinstance(targets, str) else tuple(targets)
    controls = [
        Control(name="model", label=text("model", "模型"), values=MODELS, start=model),
        Control(name="rank", label=text("rank r", "秩 r"), values=RANKS, start=rank, kind="range"),
        Control(name="alpha", label="alpha", values=ALPHAS, start=alpha, kind="range"),
        *(
            Control(name=name, label=name, values=(False, True), start=name in chosen, kind="switch")
            for name in TARGETS
        ),
    ]
    method = Method(kind="lora", rank=rank, alpha=alpha, targets=chosen)  # refuses unknown targets, and none
    by_linear = {name: rank * n for name, n in zip(TARGETS, per_rank(model), strict=True) if name in method.targets}
    n_trainable, n_base = sum(by_linear.values()), shape_of(model).n_params
    share = n_trainable / (n_base + n_trainable)
    alt = f"LoRA of rank {rank} on {model}: {n_trainable:,} trainable parameters, {share:.3%} of all; "
    alt += f"scale alpha / r = {method.scale:g}; {4 * n_trainable / 1e6:.1f} MB in float32"
    return Explorer(
        title=text("Parameters of LoRA", "LoRA 的参数量"),
        view="lora",
        controls=controls,
        data=_data(),
        figure=_figure(by_linear),
        alt=alt,
        heights_px=(570, 840),
    )


@cache
def per_rank(model: str) -> tuple[int, ...]:
    """Adapter parameters of all layers per unit of rank, for each linear of `TARGETS`.

    Raises:
        LabError: the count is not proportional to the rank.
    """
    found = []
    for name in TARGETS:
        one, other = (_params(model, name, rank) for rank in (1, RANKS[-1]))
        if other != RANKS[-1] * one:
            raise LabError(f"{model}, {name}", "adapter parameters are not proportional to the rank", "use a table")
        found.append(one)
    return tuple(found)


def _params(model: str, target: str, rank: int) -> int:
    return n_elements(adapter_tensors(shape_of(model), Method(kind="lora", rank=rank, targets=(target,))))


def _data() -> dict[str, Any]:
    scales = [[Method(kind="lora", rank=rank, alpha=alpha).scale for alpha in ALPHAS] for rank in RANKS]
    return {
        "perRank": [per_rank(model) for model in MODELS],
        "base": [shape_of(model).n_params for model in MODELS],
        "ranks": RANKS,
        "targets": TARGETS,
        "scales": scales,
        "rslora": [[alpha / math.sqrt(rank) for alpha in ALPHAS] for rank in RANKS],
        "models": MODELS,
        "alphas": ALPHAS,
        "bytes": {"float32": 4, "bfloat16": 2},
        "colours": OKABE_ITO[:7],
        "texts": _texts(),
    }


def _texts() -> dict[str, str]:
    return {
        "verdict": text("{n} trainable parameters, {share} % of all", "可训练参数 {n} 个，占全部的 {share}%"),
        "none": text("Choose at least one linear.", "请至少选一个线性层。"),
        "scale": text("scale alpha / r", "缩放 alpha / r"),
        "rslora": text("scale of rsLoRA, alpha / √r", "rsLoRA 的缩放 alpha / √r"),
        "file": text("adapter file, {dtype}", "适配器文件，{dtype}"),
        "base": text("parameters of the base model", "基座模型的参数"),
        "linear": text("linear", "线性层"),
        "parameters": text("parameters", "参数"),
        "axis": text("trainable parameters, millions", "可训练参数（百万）"),
        "note": text(
            "The share counts the adapters among all parameters, as PEFT prints it. A file has a header besides, some "
            "hundred bytes a tensor at most.",
            "占比的分母包含适配器，与 PEFT 的打印一致。文件另有文件头，每个张量不过几百字节。",
        ),
        "typed": text("The same as code:", "写成代码就是："),
    }


def _figure(by_linear: dict[str, int]) -> Figure:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 2.4), layout="constrained")
    axes = fig.subplots()
    for place, (name, n_params) in enumerate(by_linear.items()):
        index = TARGETS.index(name)
        axes.barh(name, n_params / 1e6, color=OKABE_ITO[index], hatch=HATCHES[index], edgecolor="white")
        axes.text(n_params / 1e6, place, f" {n_params:,}", va="center", fontsize=9)
    axes.set_xlim(0, 1.2 * max(by_linear.values()) / 1e6)
    axes.set_xlabel("trainable parameters, millions")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return fig
