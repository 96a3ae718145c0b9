"""Figures that carry their own description, in colours that everyone can tell apart."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

from labkit.errors import LabError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008), the usual colour-blind-safe set; matplotlib ships it only from 3.11.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")


def show(fig: Figure, *, alt: str, dpi: int = 110) -> None:
    """Display ``fig`` as a PNG inside HTML whose ``alt`` text survives JupyterLab and nbconvert, and as plain text.

    Args:
        fig: a matplotlib figure; it is closed afterwards, so that the inline backend does not draw it twice.
        alt: what the figure shows, with its key number, for readers who cannot see it.
        dpi: dots per inch of the PNG, 20 to 400.

    Raises:
        LabError: ``alt`` is empty or ``dpi`` out of range.
    """
    from IPython.display import display

    display({"text/html": figure_tag(fig, alt=alt, dpi=dpi), "text/plain": f"[figure] {alt}"}, raw=True)


def figure_tag(fig: Figure, *, alt: str, dpi: int = 110, style: str = "", colours: int | None = None) -> str:
    """``fig`` as an HTML ``<figure>`` with the PNG inside; for the arguments and errors see `show`.

    ``colours`` keeps at most so many (2 to 256) in the PNG, which makes it a third as large.
    """
    if not alt.strip():
        raise LabError("alt=''", "every figure needs a text for readers who cannot see it", "say what it shows")
    if not 20 <= dpi <= 400:
        raise LabError(f"dpi={dpi}", "dpi must be between 20 and 400", "try dpi=110")
    image = io.BytesIO()
    fig.savefig(image, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    _forget(fig)
    if colours:
        image = _reduced(image, colours)
    source = f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"
    css = f' style="{style}"' if style else ""
    return f'<figure{css}><img alt="{html.escape(alt, quote=True)}" src="{source}" style="max-width:100%"></figure>'


def _reduced(image: io.BytesIO, colours: int) -> io.BytesIO:
    from PIL import Image

    reduced = io.BytesIO()
    Image.open(image).convert("RGB").quantize(colours).save(reduced, format="png", optimize=True)
    return reduced


def _forget(fig: Figure) -> None:
    import matplotlib.pyplot as plt

    plt.close(fig)
