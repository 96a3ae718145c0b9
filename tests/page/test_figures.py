import base64
import re

import pytest
from matplotlib.figure import Figure

from labkit import show
from labkit.errors import LabError


def figure():
    fig = Figure()
    fig.subplots().plot([1, 2])
    return fig


def test_a_figure_is_a_png_with_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    show(figure(), alt='rises to "2" <m>')
    page = shown[0]["text/html"]
    assert 'alt="rises to &quot;2&quot; &lt;m&gt;"' in page
    assert base64.b64decode(re.search(r"base64,([^\"]+)", page)[1]).startswith(b"\x89PNG")
    assert shown[0]["text/plain"] == '[figure] rises to "2" <m>'


@pytest.mark.parametrize("bad", [{"alt": " "}, {"alt": "x", "dpi": 5}])
def test_no_figure_without_alt_text(bad):
    with pytest.raises(LabError):
        show(figure(), **bad)
