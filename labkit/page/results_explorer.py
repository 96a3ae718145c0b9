"""The results explorer: the runs of a sweep, means and intervals over seeds, against any of the settings that it swept.

Means and intervals are computed here (`labkit.page.results`); the browser chooses, sorts and draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.page.figures import OKABE_ITO
from labkit.page.results import LOSS, Results, label
from labkit.page.results_figures import VALUES, sweep_figure, zoom_top
from labkit.page.sliders import Control, Explorer, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITS = 6  # significant digits of what is drawn


def results_explorer(*parts: Results, start: str | None = None) -> None:
    """Display the explorer of one or more results; each of their blocks can be chosen.

    Args:
        parts: from `labkit.page.results.load_results` or `shipped`; without any, a line says that there are none yet.
        start: the block to begin with, as ``name: block``; default the first.

    Raises:
        LabError: an unknown start.
    """
    if parts:
        show(make_explorer(*parts, start=start))
    else:
        print(text("This copy of the book has no results for this explorer yet.", "这份书里还没有可供查看的结果。"))


def make_explorer(*parts: Results, start: str | None = None) -> Explorer:
    """The explorer as an object; see `results_explorer`."""
    blocks = _blocks(parts)
    names = tuple(blocks)
    first = blocks[start or names[0]] if start in (None, *names) else next(iter(blocks.values()))
    values = _values(parts)
    axes = tuple(dict.fromkeys(name for part in blocks.values() for name in part.swept))
    chosen = first.swept[-1] if first.swept else axes[-1]
    controls = [
        Control(name="block", label=text("runs", "实验"), values=names, start=start or names[0]),
        Control(
            name="x",
            label=text("across", "横轴"),
            values=axes,
            start=chosen,
            texts=tuple(name.replace("_", " ") for name in axes),
        ),
        Control(
            name="value", label=text("measure", "指标"), values=values, start=values[0], texts=_value_texts(values)
        ),
        Control(
            name="zoom",
            label=text("zoom on the best runs", "放大最好的部分"),
            values=(False, True),
            start=True,
            kind="switch",
        ),
    ]
    best = min((cell for cell in first.cells() if cell.interval), key=lambda cell: cell.interval.mean, default=None)
    return Explorer(
        title=text("Runs of a sweep", "一组实验的结果"),
        view="results",
        controls=controls,
        data={
            "blocks": [_block_data(part, values) for part in blocks.values()],
            "axes": axes,
            "values": _value_texts(values),
            "colours": OKABE_ITO,
            "texts": _texts(),
        },
        figure=_figure(first, chosen),
        alt=_alt(start or names[0], best),
        heights_px=(760, 980),
    )


def _blocks(parts: Sequence[Results]) -> dict[str, Results]:
    found = {f"{part.name}: {block}": part.where(block=block) for part in parts for block in part.blocks}
    if not found:
        raise LabError("no runs", "an explorer needs at least one block of trials", "run labkit sweep first")
    return found


def _values(parts: Sequence[Results]) -> tuple[str, ...]:
    """What was measured in any of them, of what can be drawn."""
    rows = [row for part in parts for row in part.rows]
    has_rate = any(row.get("constraint_rate_after") is not None for row in rows)
    return tuple(name for name in VALUES if name != "constraint_rate_after" or has_rate)


def _value_texts(values: Sequence[str]) -> tuple[str, ...]:
    chinese = {
        LOSS: "留出集损失（nats/词元）",
        "gain": "留出集损失的下降（nats/词元）",
        "constraint_rate_after": "遵守全部规则的回答比例",
        "seconds.train": "训练秒数",
        "trainable_params": "可训练参数",
    }
    return tuple(text(VALUES[name], chinese[name]) for name in values)


def _block_data(part: Results, values: Sequence[str]) -> dict[str, Any]:
    keys = part.swept
    by_value = [part.cells(*keys, value=value) for value in values]
    points = []
    for cells in zip(*by_value, strict=True):
        at = [cells[0].at[key] for key in keys]
        points.append(
            {"at": at, "said": [label(*pair) for pair in zip(keys, at, strict=True)], "m": list(map(_measure, cells))}
        )
    return {
        "keys": keys,
        "points": points,
        "tops": [zoom_top(one) for one in by_value],
        "note": part.provenance,
        "failed": len(part.failed),
    }


def _measure(cell: Any) -> list | None:
    """[mean, low, high, [seeds]] of a cell; low and high None where one seed has no interval."""
    if cell.interval is None:
        return None
    found = cell.interval
    ends = [None, None] if found.n == 1 else [_rounded(found.low), _rounded(found.high)]
    return [_rounded(found.mean), *ends, [_rounded(value) for value in cell.by_seed.values()]]


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def _figure(part: Results, x: str) -> Figure:
    others = [name for name in part.swept if name != x]
    if len(others) <= 1 and part.swept:
        return sweep_figure(part, x=x, lines=others[0] if others else None, top=zoom_top(part.cells()))
    fixed = {name: part.cells(name, *[n for n in part.swept if n != name])[0].at[name] for name in others[1:]}
    return sweep_figure(part.where(**fixed), x=x, lines=others[0] if others else None)


def _alt(name: str, best: Any) -> str:
    if best is None:
        return f"{name}: no trial has a held-out loss"
    at = ", ".join(label(*pair) for pair in best.at.items())
    return f"{name}: the lowest mean held-out loss is {best.interval} nats per token, at {at}"


def _texts() -> dict[str, str]:
    return {
        "verdict": text(
            "Best mean: {mean} ({low} to {high}, n = {n}) at {at}.", "均值最好：{mean}（{low}–{high}，n = {n}），{at}。"
        ),
        "single": text("Best: {mean} (n = 1: no interval) at {at}.", "最好：{mean}（n = 1，没有区间），{at}。"),
        "noise": text("The intervals of {k} other settings reach it.", "另有 {k} 组设置的区间与它重叠。"),
        "none": text("Nothing was measured here.", "这里没有测量值。"),
        "mean": text("mean (95 % t interval)", "均值（95% t 区间）"),
        "seeds": text("seeds", "种子数"),
        "above": text("▲ above the picture", "▲ 超出图的上边界"),
        "note": text(
            "Dots are seeds, bars 95 % t intervals of the mean. Runs: {note}. Failed: {failed}.",
            "小点是各个种子，竖线是均值的 95% t 区间。运行环境：{note}。失败：{failed}。",
        ),
    }
