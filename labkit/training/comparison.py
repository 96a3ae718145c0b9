"""One step, three ways: closed form, dry run and a measurement, phase by phase, and what may explain what is left.

``print(*compare(shape, method, step).lines(), sep="\\n")`` on a student's own machine; without CUDA the table says that
nothing was measured here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory.memory import PHASES, predict
from labkit.training.dryrun import TracedStep, trace_step
from labkit.training.real_step import Measured, measure_twin
from labkit.training.replay import Replay, replay, workspace_bytes

MIB = 2**20
NOT_MEASURED = "not measured here"
EXPLAINED = 0.005  # of the measured bytes: what is left within it needs no explanation
GEMM_4BIT_TOKENS = 1536  # up to here bitsandbytes may multiply without dequantizing the weight
COLUMNS = ("phase", "closed form", "dry run", "ratio", "measured", "ratio", "left")
WIDTHS = (10, 12, 10, 7, 19, 7, 9)


@dataclass(frozen=True)
class PhaseRow:
    """One phase of a step, in bytes.

    Attributes:
        phase: see `labkit.theory.memory.PHASES`.
        predicted_bytes: the closed form's peak.
        traced_bytes: the dry run's peak: tensors, as requested.
        block_bytes: what the allocator's whole blocks add to it at the phase's peak, by replay.
        workspace_bytes: cuBLAS's workspaces; 0 while nothing was multiplied yet, and where nothing was measured.
        measured_bytes: ``torch.cuda.max_memory_allocated``; None without CUDA.
        cause: the likely cause of what is left.
    """

    phase: str
    predicted_bytes: int
    traced_bytes: int
    block_bytes: int
    workspace_bytes: int
    measured_bytes: int | None
    cause: str

    @property
    def left_bytes(self) -> int | None:
        """Measured, less the dry run, the blocks and the workspaces."""
        if self.measured_bytes is None:
            return None
        return self.measured_bytes - self.traced_bytes - self.block_bytes - self.workspace_bytes


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        settings: model, method and step as plain values.
        rows: one for each phase.
        replayed_reserved_bytes: what the allocator would take from the GPU, workspaces not included.
        measured: the measurement as a whole; None without CUDA.
    """

    settings: dict[str, Any]
    rows: tuple[PhaseRow, ...]
    replayed_reserved_bytes: int
    measured: Measured | None

    def table(self) -> list[tuple[str, ...]]:
        """The rows as texts under `COLUMNS`, sizes in MiB."""
        return [_texts(row) for row in self.rows]

    def lines(self) -> list[str]:
        """The table and what belongs to it as lines of text: `COLUMNS`, rows, likely causes, `notes`."""
        title = text(
            "one step, in MiB; ratios: closed form / dry run, dry run / measured",
            "一步，单位 MiB；两个 ratio 依次是：公式（closed form）/ 空跑（dry run），空跑 / 实测（measured）",
        )
        head = [title, _aligned(COLUMNS)]
        causes = [f"{row.phase}: {row.cause}" for row in self.rows if row.measured_bytes is not None]
        return [*head, *map(_aligned, self.table()), *causes, *self.notes()]

    def notes(self) -> list[str]:
        """What is beside the table, a line each: reserved memory, workspaces, and what is outside the allocator."""
        size = f"{self.replayed_reserved_bytes / MIB:,.0f} MiB"
        replayed = text(
            f"reserved by replay {size}, without cuBLAS's workspaces",
            f"按分配器的规则重放，预留 {size}，不含 cuBLAS 工作区",
        )
        if self.measured is None:
            return [replayed + text(f"; measured: {NOT_MEASURED} (no CUDA)", "；这里没有实测（没有 CUDA）")]
        reserved, outside = (
            f"{n_bytes / MIB:,.0f} MiB" for n_bytes in (self.measured.reserved_bytes, self.measured.outside_bytes)
        )
        work, gpu = f"{workspace_bytes(self.measured.capability) / MIB:.2f} MiB", self.measured.gpu
        return [
            replayed + text(f"; measured {reserved}, with them", f"；实测 {reserved}，含工作区"),
            text(
                f"cuBLAS's workspaces on {gpu}: {work} by PyTorch's default",
                f"{gpu} 上的 cuBLAS 工作区：PyTorch 默认 {work}",
            ),
            text(
                f"outside PyTorch's allocator: {outside} (CUDA context, and other programs)",
                f"PyTorch 分配器之外：{outside}（CUDA 上下文和别的程序）",
            ),
        ]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON, with `PhaseRow.left_bytes` in each row."""
        rows = [asdict(row) | {"left_bytes": row.left_bytes} for row in self.rows]
        measured = None if self.measured is None else asdict(self.measured)
        return {
            "settings": self.settings,
            "phases": rows,
            "replayed_reserved_bytes": self.replayed_reserved_bytes,
            "measured": measured,
        }


def compare(shape: ModelShape, method: Method, step: Step) -> Comparison:
    """Predict, trace and, where there is a CUDA GPU, measure one step of a random twin of the model.

    Raises:
        LabError: what `labkit.theory.memory.predict` refuses; the twin does not fit the GPU.
    """
    traced = trace_step(shape, method, step)
    try:
        measured = measure_twin(shape, method, step)
    except torch.OutOfMemoryError as error:
        needs = traced.dry_run.peak_allocated_bytes / MIB
        rule = f"{ran_out(error)}; the dry run needs {needs:,.0f} MiB, and context, workspaces and gaps come on top"
        fix = "`labkit memory --gpu GIB` with these settings says what would make it fit"
        raise LabError(f"{shape.name}, {method.kind}, {step.batch} x {step.seq_len} tokens", rule, fix) from None
    return compared(traced, measured)


def ran_out(error: torch.OutOfMemoryError) -> str:
    """An error of `measure_twin` in words, with the phase that it happened in."""
    return ", ".join(["out of memory", *getattr(error, "__notes__", [])])


def compared(traced: TracedStep, measured: Measured | None) -> Comparison:
    """A traced step beside its prediction and a measurement of the same step, or none."""
    predicted = predict(traced.shape, traced.method, traced.step)
    played, line = replay(traced.ledger), traced.timeline
    rows = []
    for phase in PHASES:
        work = workspace_bytes(measured.capability) if measured and phase != "load" else 0
        blocks = _block_peak(played, traced, phase) - line.phases[phase]
        found = measured.phases[phase] if measured else None
        row = PhaseRow(phase, predicted.phases[phase], line.phases[phase], blocks, work, found, "")
        rows.append(replace(row, cause=likely_cause(row, traced.method, traced.step)))
    return Comparison(predicted.settings, tuple(rows), max(played.reserved), measured)


def _block_peak(played: Replay, traced: TracedStep, phase: str) -> int:
    """The most that whole blocks took in a phase; it need not be where the tensors took most."""
    first, last = traced.timeline.spans[phase]
    return max(played.allocated[first:last])


def likely_cause(row: PhaseRow, method: Method, step: Step) -> str:
    """In words, why a measurement is not what was expected. A guess from the sign, the phase and the settings."""
    left = row.left_bytes
    if left is None:
        return NOT_MEASURED
    if abs(left) <= EXPLAINED * row.measured_bytes:
        return text("nothing left to explain", "没有剩下需要解释的")
    return _cause_of_more(row, step) if left > 0 else _cause_of_less(row, method, step)


def _cause_of_more(row: PhaseRow, step: Step) -> str:
    if row.phase == "load":
        return text(
            "a second copy of something: a cast or a merge while loading, or other tensors of this process",
            "有什么东西多了一份：加载时的类型转换或合并，或者本进程里别的张量",
        )
    if row.phase == "optimizer":
        return text(
            "temporaries of the optimizer's kernel: is it the variant that was predicted?",
            "优化器核函数的临时空间：用的是预测的那一种优化器吗？",
        )
    if step.attention == "eager":
        return text(
            "temporaries of the softmax kernel, as large as the attention scores",
            "softmax 核函数的临时空间，和注意力分数一样大",
        )
    if row.phase == "backward":
        return text(
            "scratch memory inside a kernel: attention's backward pass sums the queries' gradients in float32",
            "核函数内部的临时空间：注意力的反向用 float32 累加 query 的梯度",
        )
    return text(
        "scratch memory inside a kernel, or an attention kernel that is not a fused one (GPU, element type, mask)",
        "核函数内部的临时空间，或者注意力没有用上融合核函数（显卡、元素类型、掩码）",
    )


def _cause_of_less(row: PhaseRow, method: Method, step: Step) -> str:
    if row.phase == "load":
        return text(
            "fewer or smaller tensors: does the loaded model have these settings?",
            "张量更少或更小：加载的模型真是这样设置的吗？",
        )
    if method.quantized and step.tokens <= GEMM_4BIT_TOKENS:
        return text(
            f"bitsandbytes' kernel for up to {GEMM_4BIT_TOKENS:,} tokens needs no dequantized weight",
            f"不超过 {GEMM_4BIT_TOKENS:,} 个词元时，bitsandbytes 的核函数不需要还原出的权重",
        )
    return text(
        "another version of a library lets go of something earlier, or cuBLAS took smaller workspaces",
        "另一个版本的库更早释放了什么，或者 cuBLAS 的工作区更小",
    )


def _aligned(texts: tuple[str, ...]) -> str:
    cells = (
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in zip(texts, WIDTHS, strict=True)
    )
    return " ".join(cells).rstrip()


def _texts(row: PhaseRow) -> tuple[str, ...]:
    predicted, traced = f"{row.predicted_bytes / MIB:,.1f}", f"{row.traced_bytes / MIB:,.1f}"
    by_form = f"{row.predicted_bytes / row.traced_bytes:.3f}"
    if row.measured_bytes is None:
        return row.phase, predicted, traced, by_form, NOT_MEASURED, "–", "–"
    measured, left = f"{row.measured_bytes / MIB:,.1f}", f"{row.left_bytes / MIB:+,.1f}"
    by_trace = f"{row.traced_bytes / row.measured_bytes:.3f}"
    return row.phase, predicted, traced, by_form, measured, by_trace, left
