"""The explorers in a real browser: the very JavaScript against Python, the exported page moved by keyboard.

The network is cut: every request that is not to this disk is refused and reported.
"""

import itertools
import random

import nbformat
import pytest

from labkit.course.execute import run_notebook
from labkit.models.methods import BLOCK_SIZES, TARGETS, Method, Step
from labkit.models.shapes import shape_of
from labkit.page import lora_explorer, memory_explorer, nf4_explorer
from labkit.page.memory_figures import GIB, RESERVE_GIB, predict_choice, verdict
from labkit.page.memory_moves import moves
from labkit.page.memory_tables import AXES, setting
from labkit.theory.codes import normal_error
from labkit.theory.memory import predict
from labkit.theory.nf4 import bits_per_weight
from labkit.theory.resident import adapter_tensors

SOURCE = """\
from labkit.page.explorers import lora_explorer, memory_explorer, nf4_explorer
memory_explorer(model="qwen3-1.7b", batch=1)
lora_explorer()
nf4_explorer()"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small notebook with the three explorers, executed and exported like a lesson."""
    folder = tmp_path_factory.mktemp("exported")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "probe.ipynb"
    nbformat.write(notebook, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.course.execute.solution_folder", lambda lang: folder / "build" / "solutions" / lang)
        result = run_notebook(path, lang="en", profile="tiny", html=folder / "pages")
    assert result.ok, result.error
    return folder / "pages" / "en" / "probe.html"


@pytest.fixture
def frame_of(visit, tmp_path):
    """frame_of(explorer): the inside of an explorer's iframe, alone on a page."""

    def open_frame(made, **options):
        file = tmp_path / "alone.html"
        file.write_text(f"<!DOCTYPE html><meta charset='utf-8'>{made.html()}", encoding="utf-8")
        seen = visit(file.as_uri(), **options)
        frame = inside(seen.page.locator("iframe"))
        return seen, frame

    return open_frame


def inside(locator):
    """The frame of an iframe, once its script has drawn."""
    frame = locator.element_handle().content_frame()
    frame.wait_for_selector("html.live #chart[aria-label]")
    return frame


def typed(frame):
    """The choice that the memory explorer spells out, as a dictionary."""
    written = frame.locator("#typed").inner_text()
    return eval(written.removeprefix("choice = "), {"dict": dict, "True": True, "False": False})


def test_the_browser_counts_what_python_counts(frame_of):
    seen, frame = frame_of(memory_explorer.make_explorer())
    chance, axes = random.Random(3), {**AXES, "card": memory_explorer.CARDS_GIB}
    asked = [{name: chance.randrange(len(axis)) for name, axis in axes.items()} for _ in range(300)]
    answers = frame.evaluate("asked => asked.map(state => explorer.view.evaluate(state))", asked)
    for at, answer in zip(asked, answers, strict=True):
        model, method, step = setting(at)
        wanted = predict(shape_of(model), method, step)
        assert answer["bytes"] == wanted.peak_allocated_bytes, at
        assert answer["components"] == list(wanted.components.values())
        assert answer["phases"] == list(wanted.phases.values())
        assert list(wanted.phases)[answer["phase"]] == wanted.peak_phase
        room = (axes["card"][at["card"]] - RESERVE_GIB) * GIB
        assert answer["fits"] == (wanted.peak_allocated_bytes <= room)
    check_changes(asked, answers)
    assert (seen.errors, seen.refused) == ([], [])


def check_changes(asked, answers):
    """The proposed change against a search through all single changes and pairs with `predict`."""
    tight = [(at, answer) for at, answer in zip(asked, answers, strict=True) if not answer["fits"]]
    proposed = [(at, answer["change"]) for at, answer in tight if answer["change"]]
    assert len(proposed) > 40
    for at, change in proposed[:40]:
        cheaper = [moved for cost, moved in changes(at) if cost < change["cost"]]
        assert not any(fits(moved) for moved in cheaper), at
        assert fits(change["state"])
        assert (change["cost"], change["state"]) in [*changes(at)]


def changes(at):
    idle = ("rank", "targets") if AXES["kind"][at["kind"]] == "full" else ()
    single = [move for move in moves() if at[move.axis] == move.start and move.axis not in idle]
    pairs = [pair for pair in itertools.combinations(single, 2) if pair[0].axis != pair[1].axis]
    for option in [*((move,) for move in single), *pairs]:
        yield sum(move.cost for move in option), at | {move.axis: move.to for move in option}


def fits(at):
    model, method, step = setting(at)
    peak = predict(shape_of(model), method, step).peak_allocated_bytes
    return peak <= (memory_explorer.CARDS_GIB[at["card"]] - RESERVE_GIB) * GIB


def test_lora_counts_what_python_counts(frame_of):
    _, frame = frame_of(lora_explorer.make_explorer())
    chance = random.Random(4)
    asked = []
    for _ in range(200):
        at = {
            name: chance.randrange(len(getattr(lora_explorer, axis)))
            for name, axis in [("model", "MODELS"), ("rank", "RANKS"), ("alpha", "ALPHAS")]
        }
        asked.append(at | {name: chance.randrange(2) for name in TARGETS})
    answers = frame.evaluate("asked => asked.map(state => explorer.view.evaluate(state))", asked)
    for at, answer in zip(asked, answers, strict=True):
        targets = tuple(name for name in TARGETS if at[name])
        if not targets:
            assert answer["trainable"] == 0
            continue
        rank, alpha = lora_explorer.RANKS[at["rank"]], lora_explorer.ALPHAS[at["alpha"]]
        method = Method(kind="lora", rank=rank, alpha=alpha, targets=targets)
        shape = shape_of(lora_explorer.MODELS[at["model"]])
        n = sum(count * elements for count, elements, _ in adapter_tensors(shape, method))
        assert answer["trainable"] == n
        assert answer["share"] == pytest.approx(n / (n + shape.n_params), rel=1e-12)
        assert answer["scale"] == alpha / rank
        assert dict(answer["files"]) == {"float32": 4 * n, "bfloat16": 2 * n}


def test_nf4_shows_what_python_gives(frame_of):
    _, frame = frame_of(nf4_explorer.make_explorer())
    for code, size, twice in itertools.product(range(6), range(len(BLOCK_SIZES)), range(2)):
        state = {"code": code, "block_size": size, "double_quant": twice}
        answer = frame.evaluate("state => explorer.view.evaluate(state)", state)
        block = BLOCK_SIZES[size]
        assert answer["error"] == normal_error(nf4_explorer.CODES[code], block)
        assert answer["bits"] == bits_per_weight(block, double_quant=bool(twice))
        method = Method(kind="qlora", block_size=block, double_quant=bool(twice))
        wanted = predict(shape_of("qwen3-8b"), method, Step()).components
        assert answer["bytes"][1] == wanted["parameters"] + wanted["quantization_constants"]


def test_every_control_of_the_exported_page_moves_by_keyboard(exported, visit):
    seen = visit(exported.as_uri())
    frames = [inside(locator) for locator in seen.page.locator(".labkit-explorer iframe").all()]
    assert len(frames) == 3
    for frame in frames:
        move_everything(frame)
    memory = frames[0]
    choice = typed(memory)
    wanted = predict_choice(choice)
    assert memory.evaluate("explorer.result.bytes") == wanted.peak_allocated_bytes
    card = memory_explorer.CARDS_GIB[memory.evaluate("explorer.state.card")]
    assert verdict(wanted, card) in memory.locator("#verdict").inner_text()
    assert f"{wanted.peak_allocated_bytes:,}" in memory.locator("tfoot").inner_text()
    assert (seen.errors, seen.refused) == ([], [])


def move_everything(frame):
    """Each control once, by keyboard: it moves, its text follows, and the picture's description changes."""
    controls, described = frame.evaluate("explorer.spec.controls"), frame.locator("#chart").get_attribute("aria-label")
    for control in controls:
        name, before = control["name"], frame.evaluate("JSON.stringify(explorer.state)")
        input_ = frame.locator(f"#control-{name}")
        assert frame.locator(f"label[for=control-{name}]").inner_text().strip() == control["label"]
        input_.focus()
        at_end = frame.evaluate(f"explorer.state.{name}") == len(control["texts"]) - 1
        key = "Space" if control["kind"] == "switch" else "ArrowUp" if at_end else "ArrowDown"
        if control["kind"] == "range":
            key = "ArrowLeft" if at_end else "ArrowRight"
        input_.press(key)
        after = frame.evaluate("JSON.stringify(explorer.state)")
        assert before != after, name
        if control["kind"] == "range":
            wanted = control["texts"][frame.evaluate(f"explorer.state.{name}")]
            assert frame.locator(f"#value-{name}").inner_text() == wanted == input_.get_attribute("aria-valuetext")
    assert frame.locator("#chart").get_attribute("aria-label") != described


def test_controls_that_a_method_does_not_use_are_off(frame_of):
    _, frame = frame_of(memory_explorer.make_explorer(kind="full"))
    assert frame.locator("#control-rank").is_disabled()
    assert "rank=" not in frame.locator("#typed").inner_text()
    frame.locator("#control-kind").select_option(label="LoRA")
    assert frame.locator("#control-rank").is_enabled()
    assert "rank=32" in frame.locator("#typed").inner_text()


@pytest.mark.parametrize("width", [1000, 380])
@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("module", [memory_explorer, lora_explorer, nf4_explorer])
def test_nothing_sticks_out(frame_of, monkeypatch, module, lang, width):
    monkeypatch.setenv("LABKIT_LANG", lang)
    seen, frame = frame_of(module.make_explorer(), color_scheme="dark")
    seen.page.set_viewport_size({"width": width, "height": 900})
    frame.wait_for_function("innerWidth < 1000")
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert frame.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0
    background = frame.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background != "rgba(0, 0, 0, 0)"
    assert seen.errors == []


def test_without_scripts_the_figure_shows_through(visit, tmp_path):
    file = tmp_path / "still.html"
    output = lora_explorer.make_explorer().html()
    file.write_text(output.replace('sandbox="allow-scripts"', 'sandbox=""'), encoding="utf-8")
    seen = visit(file.as_uri())
    assert seen.page.locator("figure img").is_visible()
    assert not seen.page.frame_locator("iframe").locator("#controls").is_visible()
