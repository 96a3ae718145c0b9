"""The 2-D picture of lesson 06: one row of a weight, pushed by LoRA and by DoRA."""

from __future__ import annotations

import math

from labkit.labels import text
from labkit.page.figures import OKABE_ITO
from labkit.page.widgets import Explorer, slider

ROW = (2.0, 1.0)  # a row of W0: one output, two inputs
LIMIT = 4.2  # half of the axes' width
ARROWS = {"w0": ("#777777", "w0", 0.012), "lora": (OKABE_ITO[0], "LoRA", 0.02), "dora": (OKABE_ITO[3], "DoRA", 0.008)}


def pushed(push: float, angle: float, magnitude: float) -> dict[str, tuple[float, float]]:
    """Where the row ends: under LoRA it is w0 + push, under DoRA the same direction at the length ``magnitude``.

    Args:
        push: length of the update scale * b a of this row, at least 0.
        angle: its direction in degrees, counted from the direction of w0.
        magnitude: m of this row, above 0.

    Raises:
        ZeroDivisionError: the push takes the row to zero, which has no direction.
    """
    along = math.atan2(ROW[1], ROW[0]) + math.radians(angle)
    lora = (ROW[0] + push * math.cos(along), ROW[1] + push * math.sin(along))
    scale = magnitude / math.hypot(*lora)
    return {"w0": ROW, "lora": lora, "dora": (scale * lora[0], scale * lora[1])}


def turn_degrees(vector: tuple[float, float]) -> float:
    """The angle between ``vector`` and w0, 0 to 180."""
    turn = math.degrees(math.atan2(vector[1], vector[0]) - math.atan2(ROW[1], ROW[0]))
    return abs((turn + 180) % 360 - 180)


def plane_widget() -> Explorer:
    """One row w0 of a weight as an arrow in the plane, and what LoRA and DoRA make of it; three sliders move it.

    ``push`` and ``angle`` are the low-rank update, which both share; ``m`` is DoRA's own.
    """
    picture = _Plane()
    controls = {
        "push": slider(text("push, the length of the update", "推力：更新量的长度"), [0, 0.5, 1, 1.5, 2, 3], 1.5),
        "angle": slider(text("its angle to w0, degrees", "与 w0 的夹角（度）"), list(range(0, 181, 15)), 75),
        "magnitude": slider(text("DoRA's magnitude m", "DoRA 的幅度 m"), [0.5, 1, 1.5, 2, 2.24, 3, 4], 2.24),
    }
    alt = "A row w0 as an arrow; LoRA's row ends at w0 plus the push, DoRA's on a circle of radius m in that direction"
    return Explorer(picture.fig, picture.redraw, controls, alt=alt)


class _Plane:
    """The figure and the artists that the sliders move."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure
        from matplotlib.patches import Circle

        self.fig = Figure(figsize=(5.0, 4.6), layout="constrained")
        axes = self.fig.subplots()
        self.circle = axes.add_patch(Circle((0, 0), 1, fill=False, linestyle=":", color=ARROWS["dora"][0]))
        (self.push,) = axes.plot([], [], "--", color=ARROWS["lora"][0], linewidth=1.2)
        self.arrows, self.labels = {}, {}
        for name, (colour, said, width) in ARROWS.items():  # the thin one last: it lies on the wide one
            style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": width, "color": colour}
            self.arrows[name] = axes.quiver(0, 0, 1, 1, **style)
            self.labels[name] = axes.text(0, 0, said, color=colour, fontsize=9, ha="center", va="center")
        axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xlabel="input 1", ylabel="input 2")
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)

    def redraw(self, push: float, angle: float, magnitude: float) -> str:
        """Move every artist and say how long each row is now, and how far it has turned."""
        ends = pushed(push, angle, magnitude)
        for name, (x, y) in ends.items():
            self.arrows[name].set_UVC(x, y)
            length = math.hypot(x, y)
            ahead, aside = (0.0, 0.45) if name == "dora" else (0.4, 0.0)  # LoRA and DoRA share a direction
            self.labels[name].set_position((x + (ahead * x - aside * y) / length, y + (ahead * y + aside * x) / length))
        self.push.set_data([ROW[0], ends["lora"][0]], [ROW[1], ends["lora"][1]])
        self.circle.set_radius(magnitude)
        start, length, turn = math.hypot(*ROW), math.hypot(*ends["lora"]), turn_degrees(ends["lora"])
        return text(
            f"turned by {turn:.0f} degrees; length {start:.2f}, with LoRA {length:.2f}, with DoRA {magnitude:.2f}",
            f"转过 {turn:.0f} 度；长度原来 {start:.2f}，LoRA {length:.2f}，DoRA {magnitude:.2f}",
        )
