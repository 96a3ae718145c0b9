"""Does a step fit a GPU, and what would make it fit: `labkit.theory.fitting`'s answer in the student's language."""

from __future__ import annotations

from typing import Any

from labkit.labels import text
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.page.memory_figures import GIB, verdict_template
from labkit.theory.fitting import RESERVE_GIB, Way, usable_bytes, ways_to_fit
from labkit.theory.memory import predict


def gpu_answer(shape: ModelShape, method: Method, step: Step, *, gpu_gib: float) -> dict[str, Any]:
    """What ``labkit memory --gpu --json`` adds to the prediction.

    Returns:
        ``gpu_gib``; ``reserve_bytes``, which are kept free; ``fits``; ``spare_bytes``, what is left once the peak and
        the reserve are taken (below zero: how much is short); ``changes``, the ways to make it fit, cheapest first
        (none if it fits): each with its ``changes`` (``field``, ``value``, ``what``, ``price``), its ``cost``, and
        ``peak_allocated_bytes`` and ``spare_bytes`` after it.

    Raises:
        LabError: a GPU without memory; see also `labkit.theory.memory.predict`.
    """
    room = usable_bytes(gpu_gib)
    spare = room - predict(shape, method, step).peak_allocated_bytes
    ways = [] if spare >= 0 else ways_to_fit(shape, method, step, room_bytes=room)
    return {
        "gpu_gib": gpu_gib,
        "reserve_bytes": int(RESERVE_GIB * GIB),
        "fits": spare >= 0,
        "spare_bytes": spare,
        "changes": [_plain(way) for way in ways],
    }


def _plain(way: Way) -> dict[str, Any]:
    changes = [
        {"field": change.field, "value": change.value, "what": text(*change.what), "price": text(*change.price)}
        for change in way.changes
    ]
    sizes = {"peak_allocated_bytes": way.peak_allocated_bytes, "spare_bytes": way.spare_bytes}
    return {"changes": changes, "cost": way.cost, **sizes}


def answer_line(answer: dict[str, Any]) -> str:
    """The answer of `gpu_answer` in one line."""
    gib = f"{abs(answer['spare_bytes']) / GIB:.2f}"
    line = verdict_template(fits=answer["fits"]).format(card=f"{answer['gpu_gib']:g}", gib=gib)
    kept = f"{answer['reserve_bytes'] / GIB:g}"
    line += text(f" ({kept} GiB kept free)", f"（已留出 {kept} GiB）")
    return line if answer["fits"] or answer["changes"] else f"{line}\n{nothing_fits()}"


def answer_rows(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The ways of `gpu_answer` for a table with `answer_columns`: changes with their prices, peak and spare in GiB."""
    return [
        (
            "\n".join(move_text().format(**change) for change in way["changes"]),
            f"{way['peak_allocated_bytes'] / GIB:.2f}",
            f"{way['spare_bytes'] / GIB:.2f}",
        )
        for way in answer["changes"]
    ]


def answer_columns() -> tuple[str, str, str]:
    """The heads of `answer_rows`."""
    return text("change (its price)", "改动（代价）"), text("peak, GiB", "峰值，GiB"), text("spare, GiB", "富余，GiB")


def move_text() -> str:
    """How a change and its price read, with {what} and {price} to be filled in."""
    return text("{what} ({price})", "{what}（{price}）")


def nothing_fits() -> str:
    """What to say where no two changes are enough."""
    return text(
        "No two changes make it fit: a smaller model and several changes, or a larger card.",
        "任何两处改动都不够：换小模型并多改几处，或者换更大的显卡。",
    )
