"""What an explorer's output is made of, without a browser."""

import html
import re

import pytest

from labkit.errors import LabError
from labkit.page import explorers, lora_explorer, memory_explorer, nf4_explorer
from labkit.page.memory_moves import moves
from labkit.page.sliders import Control

MODULES = {"memory": memory_explorer, "lora": lora_explorer, "nf4": nf4_explorer}
ADDRESS = re.compile(r"https?://|//[a-z]+\.|@import|url\((?!#)")


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", MODULES)
def test_an_output_is_a_described_figure_and_a_sandboxed_frame(name, lang, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", lang)
    made = MODULES[name].make_explorer()
    output = made.html()
    alt = html.unescape(re.search(r'<figure[^>]*><img alt="([^"]+)"', output)[1])
    assert alt == made.alt
    assert re.search(r'<iframe title="[^"]+" sandbox="allow-scripts" ', output)
    source = html.unescape(re.search(r"srcdoc='([^']*)'></iframe></div>$", output)[1])
    assert source == made.document()
    assert f'<html lang="{lang}">' in source
    assert not ADDRESS.search(source)
    assert len(output) < 64_000


@pytest.mark.parametrize("name", MODULES)
def test_each_explorer_displays_one_output_with_its_result_as_text(name, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    assert getattr(explorers, f"{name}_explorer")() is None
    (data,) = shown
    assert set(data) == {"text/html", "text/plain"}
    assert data["text/plain"].startswith("[sliders] ")
    assert re.search(r"\d", data["text/plain"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: memory_explorer.make_explorer(rank=3), "rank=3"),
        (lambda: memory_explorer.make_explorer(ranks=8), "explorer has the axes"),
        (lambda: memory_explorer.make_explorer(card_gib=12), "card=12"),
        (lambda: lora_explorer.make_explorer(model="gpt"), "gpt"),
        (lambda: lora_explorer.make_explorer(targets=()), "at least one"),
        (lambda: nf4_explorer.make_explorer(code="nf5"), "nf5"),
        (lambda: Control(name="a", label="a", values=(1, 2), start=1, texts=("one",)), "1 texts"),
        (lambda: Control(name="a", label="a", values=(1, 2, 3), start=1, kind="switch"), "switch"),
    ],
)
def test_a_bad_start_is_refused(make, said):
    with pytest.raises(LabError, match=said):
        make()


def test_the_static_figure_says_what_predict_says():
    made = memory_explorer.make_explorer(model="qwen3-1.7b", kind="lora", targets="q_proj,v_proj")
    choice = {**memory_explorer.START, "model": "qwen3-1.7b", "kind": "lora", "targets": ("q_proj", "v_proj")}
    peak = memory_explorer.predict_choice(choice).peak_allocated_bytes
    assert f"{peak / 2**30:.2f} GiB" in made.alt


def test_every_move_has_a_price_and_never_goes_up():
    found = moves()
    assert all(move.what and move.price and move.cost > 0 for move in found)
    assert len({(move.axis, move.start, move.to) for move in found}) == len(found)
    smaller = [move for move in found if move.axis in ("rank", "batch", "seq_len")]
    assert all(move.to < move.start for move in smaller)
