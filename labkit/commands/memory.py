"""Commands on memory: what a training step needs, in closed form and traced."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from labkit.console import JsonFlag, escape, gib, out, print_json, print_table, ratio
from labkit.flags import Asked, takes_step_flags
from labkit.labels import text

if TYPE_CHECKING:
    from labkit.theory.memory import Prediction


@takes_step_flags
def memory(
    asked: Asked,
    gpu: Annotated[float | None, typer.Option(help="GiB of a GPU: does it fit, and if not, what would help?")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict the peak memory of one training step in closed form, by component and phase."""
    from labkit.page.memory_advice import answer_columns, answer_line, answer_rows, gpu_answer
    from labkit.page.memory_figures import COMPONENTS_ZH, PHASES_ZH
    from labkit.theory.memory import predict

    prediction = predict(asked.shape, asked.method, asked.step)
    answer = {} if gpu is None else gpu_answer(asked.shape, asked.method, asked.step, gpu_gib=gpu)
    if as_json:
        print_json(asdict(prediction) | answer)
        return
    sizes = {text(name, COMPONENTS_ZH[name]): size for name, size in prediction.components.items() if size}
    at = prediction.peak_phase
    sizes[text(f"peak ({at})", f"峰值（{PHASES_ZH[at]}）")] = prediction.peak_allocated_bytes
    title = _title(asked, "at the peak of one step", "一步的峰值时刻")
    _print_sizes(title, text("component", "组成部分"), sizes)
    phases = {text(name, PHASES_ZH[name]): size for name, size in prediction.phases.items()}
    _print_sizes(text("peak of each phase", "各阶段的峰值"), text("phase", "阶段"), phases)
    _print_params(prediction)
    if answer:
        out.print(escape(answer_line(answer)))
    if answer.get("changes"):
        print_table("", answer_columns(), answer_rows(answer))


def _title(asked: Asked, en: str, zh: str) -> str:
    kind = asked.method.kind
    return text(f"{asked.shape.name}, {kind}: {en}", f"{asked.shape.name}，{kind}：{zh}")


def _print_sizes(title: str, head: str, sizes: dict[str, int]) -> None:
    rows = [(name, f"{n_bytes:,}", gib(n_bytes)) for name, n_bytes in sizes.items()]
    print_table(title, (head, text("bytes", "字节"), "GiB"), rows)


def _print_params(found: Prediction) -> None:
    """How many parameters train, and what no figure of this module includes."""
    trainable, total = f"{found.trainable_params:,}", f"{found.total_params:,}"
    out.print(text(f"trainable {trainable} of {total} parameters", f"{total} 个参数中训练 {trainable} 个"))
    out.print(
        text(
            "Not included: CUDA context, cuBLAS workspaces, and what the allocator reserves without using it.",
            "不包括：CUDA 上下文、cuBLAS 工作区，以及分配器预留而没有用到的部分。",
        )
    )


@takes_step_flags
def dryrun(
    asked: Asked,
    measure: Annotated[bool, typer.Option("--measure", help="Also run it on the GPU, on random weights.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Trace the training step of the installed libraries without weights or GPU, beside the prediction."""
    from labkit.page.memory_figures import COMPONENTS_ZH, PHASES_ZH
    from labkit.theory.memory import predict
    from labkit.training.dryrun import trace

    if measure:
        _measure(asked, as_json=as_json)
        return
    traced = trace(asked.shape, asked.method, asked.step)
    if as_json:
        print_json(asdict(traced))
        return
    prediction = predict(asked.shape, asked.method, asked.step)
    pairs = {
        text(name, COMPONENTS_ZH[name]): (prediction.components[name], size) for name, size in traced.components.items()
    }
    pairs |= {
        text(f"peak of {name}", f"{PHASES_ZH[name]}阶段的峰值"): (prediction.phases[name], size)
        for name, size in traced.phases.items()
    }
    pairs[text("peak", "峰值")] = prediction.peak_allocated_bytes, traced.peak_allocated_bytes
    rows = [(name, *map(gib, pair), ratio(*pair)) for name, pair in pairs.items() if any(pair)]
    columns = ("", text("predicted, GiB", "预测，GiB"), text("dry run, GiB", "空跑，GiB"), text("ratio", "比值"))
    title = _title(asked, "one step", "一步")
    print_table(title, columns, rows)
    phase, operation = traced.peak_phase, traced.peak_operation
    where = text(f"peak in {phase}, at {operation}", f"峰值出现在{PHASES_ZH[phase]}阶段，正在做 {operation}")
    out.print(escape(where), soft_wrap=True)
    _print_params(traced)


def _measure(asked: Asked, *, as_json: bool) -> None:
    """Closed form, dry run and the GPU, phase by phase; without CUDA it says "not measured here"."""
    from labkit.training.comparison import compare

    compared = compare(asked.shape, asked.method, asked.step)
    if as_json:
        print_json(compared.as_dict())
        return
    for line in compared.lines():
        out.print(escape(line), soft_wrap=True, highlight=False)
