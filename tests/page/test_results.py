"""Reading a results file: selections, groups, intervals against scipy, and the explorer in a real browser."""

import math
import random

import pytest
from scipy import stats

from labkit.errors import LabError
from labkit.jsonl import append_row
from labkit.models.methods import TARGETS
from labkit.page.results import Results, label, load_results, number, rows_of_table, shipped
from labkit.page.results_explorer import make_explorer, results_explorer
from labkit.page.results_figures import sweep_figure, zoom_top


def row(rank, rate, seed, loss, *, block="main", error=None, **settings):
    chosen = {"model": "tiny", "kind": "lora", "rank": rank, "alpha": 2.0 * rank, "learning_rate": rate, "seed": seed}
    return {
        "id": f"{block}{rank}{rate}{seed}{settings}",
        "blocks": [block],
        "settings": chosen | {"targets": list(TARGETS)} | settings,
        "heldout_loss_before": 6.0,
        "heldout_loss_after": None if error else loss,
        "trainable_params": 100 * rank,
        "seconds": {"train": 1.5},
        "hardware": {"cpu": "Test", "cores": 2, "gpu": None},
        "versions": {"torch": "2.0"},
        "date": "2026-01-02T00:00:00+00:00",
        "error": error,
    }


def grid():
    chance = random.Random(0)
    rows = [
        row(rank, rate, seed, 4 + abs(math.log10(rate) + 2) + 1 / rank + 0.05 * chance.random())
        for rank in (2, 16, 64)
        for rate in (1e-3, 1e-2, 1e-1)
        for seed in (0, 1, 2)
    ]
    groups = (TARGETS[:4], TARGETS[4:], TARGETS)
    rows += [
        row(rank, 0.01, seed, 4.0 + rank / 100 + seed / 100, block="where", targets=list(targets))
        for rank, targets in zip((19, 11, 7), groups, strict=True)
        for seed in (0, 1, 2)
    ]
    return Results(tuple(rows), "made")


@pytest.fixture
def results():
    return grid()


def test_what_is_swept_leaves_out_what_follows(results):
    assert results.where(block="main").swept == ("rank", "learning_rate")  # alpha follows from the rank
    assert results.where(block="where").swept == ("targets",)  # the rank follows from the targets
    assert results.where(block="main", rank=2, learning_rate=0.01).swept == ()


def test_cells_are_scipys_intervals_over_the_seeds(results):
    main = results.where(block="main")
    cells = main.cells()
    assert [tuple(cell.at.values()) for cell in cells] == [(r, x) for r in (2, 16, 64) for x in (1e-3, 1e-2, 1e-1)]
    values = [r["heldout_loss_after"] for r in main.where(rank=2, learning_rate=0.01).rows]
    theirs = stats.ttest_1samp(values, 0).confidence_interval()
    assert (cells[1].interval.low, cells[1].interval.high) == pytest.approx((theirs.low, theirs.high))
    assert cells[1].by_seed == dict(enumerate(values))


def test_selections(results):
    main = results.where(block="main")
    assert len(main.where(rank=[2, 16], learning_rate=0.01)) == 6
    assert len(results.where(targets="attention")) == 3
    assert len(results.where(rslora=False)) == len(results)
    assert results.blocks == ("main", "where")


def test_the_best_learning_rate_of_each_rank(results):
    best = results.where(block="main").best("rank")
    assert [cell.at["rank"] for cell in best] == [2, 16, 64]
    assert {cell.at["learning_rate"] for cell in best} == {1e-2}


def test_a_setting_with_a_failed_seed_cannot_win():
    rows = [row(2, 0.01, seed, 1.0, error="diverged" if seed == 2 else None) for seed in range(3)]
    rows += [row(2, 0.001, seed, 2.0) for seed in range(3)]
    part = Results(tuple(rows), "made")
    assert [cell.at["learning_rate"] for cell in part.best("rank")] == [0.001]
    failed = next(cell for cell in part.cells("learning_rate") if cell.failed)
    assert (failed.failed, failed.interval.n) == (1, 2)
    assert len(part.failed) == 1
    assert "(1 failed)" in str(rows_of_table(part, down="rank", across="learning_rate"))


def test_differences_are_paired_over_seeds(results):
    low, high = (results.where(block="where", targets=name) for name in ("all", "attention"))
    found = high.against(low)
    assert found.mean == pytest.approx(0.12)  # ranks 19 and 7
    assert (found.n, found.verdict) == (3, "higher")


def test_a_mixture_is_refused(results):
    with pytest.raises(LabError, match="rank"):
        results.where(block="main", learning_rate=0.01).values()
    with pytest.raises(LabError, match="differ in something else"):
        results.where(block="main").cells("rank")


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (lambda r: r.where(block="mian"), "blocks main, where"),
        (lambda r: r.where(ranks=2), "have the settings"),
        (lambda r: r.where(rank=3), "no trial"),
    ],
)
def test_a_wrong_selection_is_named(results, select, message):
    with pytest.raises(LabError, match=message):
        select(results)


def test_numbers_of_a_row():
    one = row(4, 0.01, 0, 5.0)
    found = [number(one, name) for name in ("heldout_loss_after", "gain", "seconds.train", "trainable_params", "rank")]
    assert found == [5.0, 1.0, 1.5, 400.0, 4.0]
    assert number(one, "constraint_rate_after") is None
    assert number(row(4, 0.01, 0, 5.0, error="x"), "gain") is None


def test_a_table_has_a_head_and_says_where_nothing_ran(results):
    part = Results((*results.where(block="main").rows, row(5, 0.01, 0, 4.5)), "made")
    table = rows_of_table(part, down="rank", across="learning_rate", digits=2)
    assert table[0] == ("rank \\ learning rate", "0.001", "0.01", "0.1")
    assert table[2] == ("5", "–", "4.50", "–")
    assert " ± " in table[1][1]


def test_files_are_read_by_path_or_by_the_books_name(tmp_path, results):
    path = tmp_path / "mine.jsonl"
    for one in results.rows:
        append_row(path, one)
    found = load_results(path)
    assert (found.name, found.rows) == ("mine", results.rows)
    assert found.provenance == "2 CPU cores of an Test; torch 2.0; 2026-01-02"
    with pytest.raises(LabError, match="cannot be read"):
        load_results("no_such_results")
    assert shipped("no_such_results") == []


def test_labels():
    assert label("learning_rate", 0.01) == "learning rate 0.01"
    assert label("targets", "mlp") == "MLP only"
    assert label("rslora", True) == "rsLoRA"


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_figure_draws_each_mean_with_its_interval(results):
    main = results.where(block="main")
    axis = sweep_figure(main, x="learning_rate", lines="rank").axes[0]
    cells = main.where(rank=2).cells("learning_rate")
    line = next(line for line in axis.lines if line.get_label() == "rank 2")
    assert list(line.get_ydata()) == [cell.interval.mean for cell in cells]
    bars = [segment for drawn in axis.collections for segment in drawn.get_segments()]
    assert len(bars) == 9
    assert [tuple(bar[:, 1]) for bar in bars[:3]] == [(cell.interval.low, cell.interval.high) for cell in cells]


def test_panels_share_their_axis_and_names_stand_evenly(results):
    parts = [results.where(block="main", rank=rank) for rank in (2, 16)]
    assert len(sweep_figure(parts, x="learning_rate").axes) == 2
    axis = sweep_figure(results.where(block="where"), x="targets").axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["all linears", "attention only", "MLP only"]
    with pytest.raises(LabError, match="nothing to draw"):
        sweep_figure([], x="rank")


def test_the_zoom_keeps_the_better_half(results):
    means = sorted(cell.interval.mean for cell in results.where(block="main").cells())
    assert means[len(means) // 2] < zoom_top(results.where(block="main").cells()) <= means[-1]
    assert zoom_top([]) is None


# --- the explorer ----------------------------------------------------------------------------------------------------


@pytest.fixture
def frame_of(visit, tmp_path):
    def open_frame(made, width=1000):
        file = tmp_path / "alone.html"
        file.write_text(f"<!DOCTYPE html><meta charset='utf-8'>{made.html()}", encoding="utf-8")
        seen = visit(file.as_uri())
        seen.page.set_viewport_size({"width": width, "height": 900})
        frame = seen.page.locator("iframe").element_handle().content_frame()
        frame.wait_for_selector("html.live #chart[aria-label]")
        return seen, frame

    return open_frame


def test_the_browser_shows_what_python_computed(frame_of, results):
    seen, frame = frame_of(make_explorer(results))
    main = results.where(block="main")
    for x, lines in (("learning_rate", "rank"), ("rank", "learning_rate")):
        frame.select_option("#control-x", label=x.replace("_", " "))
        drawn = frame.evaluate("explorer.result")
        wanted = {label(lines, cell.at[lines]): [] for cell in main.cells(lines, x)}
        for cell in main.cells(lines, x):
            wanted[label(lines, cell.at[lines])].append((cell.at[x], cell.interval))
        assert [line["name"] for line in drawn["lines"]] == list(wanted)
        for line in drawn["lines"]:
            for point, (place, interval) in zip(line["points"], wanted[line["name"]], strict=True):
                assert point["x"] == place
                shown = point["mean"], point["low"], point["high"]
                assert shown == pytest.approx((interval.mean, interval.low, interval.high), rel=1e-5)
    best = min(main.cells(), key=lambda cell: cell.interval.mean)
    assert f"{best.interval.mean:.3f}" in frame.locator("#verdict").inner_text()
    assert "rank 64, learning rate 0.01" in frame.locator("#verdict").inner_text()
    assert (seen.errors, seen.refused) == ([], [])


def test_every_control_moves_the_picture(frame_of, results):
    seen, frame = frame_of(make_explorer(results))
    said = {frame.get_attribute("#chart", "aria-label")}
    frame.select_option("#control-value", index=1)
    said.add(frame.get_attribute("#chart", "aria-label"))
    frame.select_option("#control-block", label="made: where")
    said.add(frame.get_attribute("#chart", "aria-label"))
    assert frame.locator("#control-x").is_disabled()  # one setting was swept: there is nothing to choose
    assert len(said) == 3
    frame.select_option("#control-block", label="made: main")
    before = frame.inner_html("#chart")
    frame.locator("#control-zoom").press("Space")
    assert frame.inner_html("#chart") != before
    assert (seen.errors, seen.refused) == ([], [])


@pytest.mark.parametrize("width", [1000, 380])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_nothing_sticks_out(frame_of, results, monkeypatch, lang, width):
    monkeypatch.setenv("LABKIT_LANG", lang)
    seen, frame = frame_of(make_explorer(results), width)
    for block in range(2):
        frame.select_option("#control-block", index=block)
        assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert frame.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0
    assert seen.errors == []


def test_one_seed_and_failures_are_shown_as_what_they_are(frame_of):
    rows = [row(2, 0.01, 0, 5.0), row(2, 0.1, 0, 0, error="ValueError: diverged"), row(4, 0.01, 0, 4.5)]
    seen, frame = frame_of(make_explorer(Results(tuple(rows), "one")))
    assert "n = 1" in frame.locator("#verdict").inner_text()
    assert "Failed: 1" in frame.locator("#details").inner_text()
    assert seen.errors == []


def test_without_results_it_says_so(capsys):
    results_explorer()
    assert "no results" in capsys.readouterr().out
    with pytest.raises(LabError, match="no runs"):
        make_explorer(Results((), "empty"))
