"""Commands on memory: what a training step needs, in closed form and traced."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from labkit.console import JsonFlag, escape, gib, out, print_json, print_table, ratio
from labkit.flags import Asked, takes_step_flags


@takes_step_flags
def memory(
    asked: Asked,
    gpu: Annotated[float | None, typer.Option(help="GiB of a GPU: does it fit, and if not, what would help?")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict the peak memory of one training step in closed form, by component and phase."""
    from labkit.page.memory_advice import answer_columns, answer_line, answer_rows, gpu_answer
    from labkit.theory.memory import predict

    prediction = predict(asked.shape, asked.method, asked.step)
    answer = {} if gpu is None else gpu_answer(asked.shape, asked.method, asked.step, gpu_gib=gpu)
    if as_json:
        print_json(asdict(prediction) | answer)
        return
    rows = [(name, f"{n_bytes:,}", gib(n_bytes)) for name, n_bytes in prediction.components.items() if n_bytes]
    peak = prediction.peak_allocated_bytes
    rows += [(f"peak ({prediction.peak_phase})", f"{peak:,}", gib(peak))]
    title = f"{asked.shape.name}, {asked.method.kind}: at the peak of one step"
    print_table(title, ("component", "bytes", "GiB"), rows)
    phases = [(name, f"{n_bytes:,}", gib(n_bytes)) for name, n_bytes in prediction.phases.items()]
    print_table("peak of each phase", ("phase", "bytes", "GiB"), phases)
    out.print(f"trainable {prediction.trainable_params:,} of {prediction.total_params:,} parameters")
    out.print("Not included: CUDA context, cuBLAS workspaces, and what the allocator reserves without using it.")
    if answer:
        out.print(escape(answer_line(answer)))
    if answer.get("changes"):
        print_table("", answer_columns(), answer_rows(answer))


@takes_step_flags
def dryrun(
    asked: Asked,
    measure: Annotated[bool, typer.Option("--measure", help="Also run it on the GPU, on random weights.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Trace the training step of the installed libraries without weights or GPU, beside the prediction."""
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
    pairs = {name: (prediction.components[name], size) for name, size in traced.components.items()}
    pairs |= {f"peak of {name}": (prediction.phases[name], size) for name, size in traced.phases.items()}
    pairs["peak"] = prediction.peak_allocated_bytes, traced.peak_allocated_bytes
    rows = [(name, *map(gib, pair), ratio(*pair)) for name, pair in pairs.items() if any(pair)]
    title = f"{asked.shape.name}, {asked.method.kind}: one step"
    print_table(title, ("", "predicted, GiB", "dry run, GiB", "ratio"), rows)
    out.print(escape(f"peak in {traced.peak_phase}, at {traced.peak_operation}"), soft_wrap=True)
    out.print(f"trainable {traced.trainable_params:,} of {traced.total_params:,} parameters")
    out.print("Not included: CUDA context, cuBLAS workspaces, and what the allocator reserves without using it.")


def _measure(asked: Asked, *, as_json: bool) -> None:
    """Closed form, dry run and the GPU, phase by phase; without CUDA it says "not measured here"."""
    from labkit.training.comparison import compare

    compared = compare(asked.shape, asked.method, asked.step)
    if as_json:
        print_json(compared.as_dict())
        return
    for line in compared.lines():
        out.print(escape(line), soft_wrap=True, highlight=False)
