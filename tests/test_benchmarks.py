"""The benchmarks' page names every script, with figures that are those of its file; the quick runs run and compare."""

import json
import re

import pytest
import torch

from benchmarks import dryrun, grading, imports, nf4_speed, sft_speed, sliders, snr_scan
from labkit.console import run_script
from labkit.models.methods import Method, Step
from labkit.models.profiles import PROFILES
from labkit.paths import checkout

FOLDER = checkout() / "benchmarks"
ROWS = re.findall(
    r"^\| `(\w+\.py)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", (FOLDER / "README.md").read_text("utf-8"), flags=re.M
)


def span(values, form=".2f"):
    """``least to most``, or one number where both read the same."""
    low, high = (format(pick(values), form) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def of_imports(report):
    times = {name: row["by_empty_python"]["ratio"] for name, row in report["starts"].items()}
    said = [f"`{name}` {times[name]:.1f}" for name in ("import labkit", "labkit --help", "import ipywidgets")]
    return f"{', '.join(said)} times an empty Python"


def of_nf4_speed(report):
    assert all(row["bit_equal"] for row in report["rows"])
    million = [row["alone"] for row in report["rows"] if row["n_weights"] == 2**20]
    small, large = ([row for row in report["rows"] if (row["n_weights"] == 2**12) == it] for it in (True, False))

    def took(name, rows):
        return f"{name} {span([row[name]['ratio'] for row in rows], '.1f')}"

    def call(name):
        ours, theirs = (
            span([row["microseconds"][f"{name}{side}"] for row in small], ".0f") for side in ("", ", bitsandbytes")
        )
        return f"{took(name, small)} ({ours} against {theirs} µs)"

    names = ("quantize", "dequantize")
    many, few = " and ".join(took(name, large) for name in names), " and ".join(map(call, names))
    floor = " and ".join(
        f"the {name} alone {span([row[name]['ratio'] for row in million], '.1f')}" for name in nf4_speed.ALONE
    )
    return f"same bits; {many} times as long as bitsandbytes, for a million weights {floor}; for 4,096 weights {few}"


def of_snr_scan(report):
    pairs = [(row, row[name]) for row in report["rows"] for name in ("svd float32", "svd float64")]
    time, memory = [svd["time"]["ratio"] for _, svd in pairs], [row["ours_bytes"] / svd["bytes"] for row, svd in pairs]
    off = max(svd["snr_difference"] for _, svd in pairs)
    return f"{span(time)} times an SVD's time, {span(memory)} times its memory; scores differ by {off:.0e} at most"


def of_sft_speed(report):
    assert report["largest_difference"] <= sft_speed.TOLERANCE
    step, saving = report["cpu_time_of_a_step"]["ratio"], report["cpu_time_with_checkpoints"]
    took = f"a step {step:.2f} times as long, {saving:.2f} with checkpoints"
    speed = " against ".join(f"{report['tokens_per_s'][side]:.0f}" for side in sft_speed.SIDES)
    return f"same losses; {took}: {speed} tokens/s; {report['memory']:.2f} of its memory"


def of_sliders(report):
    first = {name: row for name, row in report["first_slider"].items() if name != "ipywidgets"}
    times = span([row["by_ipywidgets"]["ratio"] for row in first.values()], ".1f")
    seconds = span([row["median_cpu_seconds"] for row in first.values()], ".1f")
    paint = span([row["paint_ms_median"] for row in report["explorers"]], ".0f")
    return f"output after {seconds} s, {times} times a slider of ipywidgets; a move is painted after {paint} ms"


def of_dryrun(report):
    seconds = span([run["cpu_seconds"] for run in report["runs"]], ".0f")
    mib = span([run["max_rss_bytes"] / 2**20 for run in report["runs"]], ".0f")
    beside = report["beside_closed_form"]
    faster = span([row["times_as_long"]["ratio"] for row in beside], ",.0f")
    off = 100 * max(abs(row["formula_off_by"]) for row in beside)
    return f"{seconds} s, {mib} MiB; the closed form is {faster} times as fast, off by {off:.2f} % at most"


def of_lessons(report):
    seconds = [row["seconds"] for row in report["lessons"]]
    peak = max(row["peak_rss_bytes"] for row in report["lessons"]) / 2**30
    return f"the book {sum(seconds) / 60:.1f} min, the slowest lesson {max(seconds):.0f} s, at most {peak:.1f} GiB"


def of_grading(report):
    again = f"{report['seconds_again']:.0f} s when all is kept already"
    times = f"{report['ratio_to_json_alone']:.0f} times as long as reading them as JSON"
    return f"{report['notebooks']:,} notebooks in {report['seconds']:.0f} s, {times}; {again}"


def of_memory_agreement(report):
    shares = [f"{100 * report[f'within_{percent}_percent']:.0f} % within {percent} %" for percent in (1, 3)]
    return f"{', '.join(shares)}; median {100 * report['median_error']:.2f} %"


def of_memory_peers(report):
    off = {
        name: max(100 * abs(row[name] / row["measured"] - 1) for row in report["rows"] if row[name])
        for name in ("labkit", "fitcheck", "accelerate")
    }
    return ", ".join(f"{name} off by {error:.0f} %" for name, error in off.items()) + " at most"


def of_memory_published(report):
    slopes = [row["predicted_mb_per_token"] / row["published_mb_per_token"] for row in report["qwen"]]
    return f"{span(slopes)} of the published memory per token"


def of_dora_cost(report):
    times = [row["ratio"] for row in report["times"] if row["method"] == "dora"]
    return f"a step of DoRA {span(times)} times one of LoRA"


TIE = ("all", True, False)  # all linears, the last moment, absolute lengths


def of_dora_correlation(report):
    ties = {}
    for run in report["runs"]:
        (tie,) = [row for row in run["correlations"] if (row["targets"], row["last"], row["relative"]) == TIE]
        ties.setdefault(run["kind"], []).append(tie["r"])
    found = "; ".join(f"{kind} {span(values, '+.2f')}" for kind, values in ties.items())
    return f"length and direction at the last moment: {found}"


def of_nf4_codes(report):
    change = {row["label"]: row["loss_change"] for row in report["effects"] if row["label"] in ("nf4", "fp4")}
    return ", ".join(f"{label} adds {loss:.2f} nats to the loss" for label, loss in change.items())


def of_snr_published(report):
    return f"rank correlation {span([row['rho'] for row in report['types'].values()])} by type of matrix"


def test_every_script_has_its_row():
    assert sorted(name for name, *_ in ROWS) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize(("name", "figures", "result"), ROWS, ids=[name for name, *_ in ROWS])
def test_a_result_is_there_and_its_figures_stand_in_its_row(name, figures, result):
    link = re.match(r"\[[\w.]+\]\(([^)]+)\)", result)
    if link is None:
        assert result.startswith("not measured")
        assert not list(checkout().glob(f"data/*/{name.removesuffix('.py')}*.json"))
        return
    report = json.loads((FOLDER / link[1]).read_text(encoding="utf-8"))
    assert report["made_by"] == f"benchmarks/{name}"
    assert report["versions"]
    said = [report["date"], report["hardware"]]
    assert result.removeprefix(link[0]) == f": {', '.join(said)}"
    assert figures == globals()[f"of_{name.removesuffix('.py')}"](report)


@pytest.mark.parametrize("path", FOLDER.glob("*.py"), ids=lambda path: path.stem)
def test_every_script_shows_how_it_is_started_and_refuses_other_arguments(path):
    source = path.read_text("utf-8")
    assert re.search(rf"^    .*python benchmarks/{path.name}\b.*  # ", source, flags=re.M)
    assert source.endswith('if __name__ == "__main__":\n    run_script(main, __doc__)\n')


def test_a_wrong_argument_measures_nothing_and_help_shows_the_docstring(monkeypatch, capsys):
    monkeypatch.setattr(imports, "measure", lambda **_: pytest.fail("it ran"))
    for argument, code, said in (("--quik", 2, "--quik"), ("--help", 0, imports.__doc__.splitlines()[2])):
        monkeypatch.setattr("sys.argv", ["imports.py", argument])
        with pytest.raises(SystemExit) as stopped:
            run_script(imports.main, imports.__doc__)
        printed = capsys.readouterr()
        assert stopped.value.code == code
        assert said in printed.out + printed.err


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("README.md", "300 students with all lessons in {seconds:.0f} s"),
        ("README.zh.md", "2 个核上 {seconds:.0f} 秒"),
        (
            "docs/instructors.md",
            "{mib:.0f} MiB, is read and graded in {seconds:.0f} s on two workers, and in {seconds_again:.0f} s",
        ),
        (
            "docs/instructors.zh.md",
            "（{mib:.0f} MiB），两个进程 {seconds:.0f} 秒读完评完；结果都已留存时用 {seconds_again:.0f} 秒",
        ),
    ],
)
def test_the_pages_say_how_long_grading_took(page, said):
    report = json.loads((checkout() / "data/measurements/grading.json").read_text("utf-8"))
    assert said.format(**report) in (checkout() / page).read_text("utf-8")


def test_grading_without_executed_notebooks_says_what_to_start(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(grading, "checkout", lambda: tmp_path)
    monkeypatch.setattr("sys.argv", ["grading.py"])
    with pytest.raises(SystemExit, match="2"):
        run_script(grading.main, grading.__doc__)
    assert "start `labkit run` first" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_comparison_of_nf4_asserts_the_same_bits(dtype):
    row = nf4_speed.compare(64 * 30 + 8, dtype, rounds=2)  # the last block is shorter
    assert row["bit_equal"]
    ratios = [row["quantize"], row["dequantize"], *row["alone"].values()]
    assert len(ratios) == 4
    assert all(ratio["ratio"] > 0 for ratio in ratios)


def test_the_scan_agrees_with_the_svd():
    (row,) = snr_scan.measure(quick=True)["rows"]
    assert row["shape"] == [24, 64]
    assert row["svd float64"]["max_difference_by_largest"] < 1e-12
    assert row["svd float32"]["max_difference_by_largest"] > 1e-12
    assert row["ours_bytes"] > 0


def test_the_recipe_trains_as_the_plain_script_does():
    found = sft_speed.compare(PROFILES["tiny"], sft_speed.QUICK_STEPS)
    assert found["largest_difference"] <= sft_speed.TOLERANCE
    assert found["tokens"] > 1000
    assert (found["checkpoints"], found["cpu_time_of_a_step"]["rounds"]) == (1, 4)
    assert all(peak > 2**28 for peak in found["peak_bytes"].values())


def test_curves_that_differ_are_no_comparison():
    point = {"step": 1, "num_tokens": 5, "learning_rate": 0.1, "loss": 2.0, "grad_norm": 1.0}
    assert sft_speed.difference([point], [point | {"loss": 2.000002}]) == pytest.approx(1e-6, rel=0.01)
    for other in ({"loss": 2.001}, {"grad_norm": 1.1}, {"num_tokens": 6}, {"loss": float("nan")}):
        with pytest.raises(AssertionError):
            sft_speed.difference([point], [point | other])


def test_imports_are_compared_with_an_empty_python():
    starts = imports.measure(quick=True)["starts"]
    assert set(starts) == set(imports.STARTS)
    assert starts["empty Python"]["by_empty_python"]["ratio"] == 1


def test_sliders_are_timed_to_the_first_and_to_the_paint():
    found = sliders.measure(quick=True)
    assert set(found["first_slider"]) == {"ipywidgets", "lora"}
    (row,) = found["explorers"]
    assert 0 < row["update_ms_median"] <= row["paint_ms_median"]


def test_the_closed_form_agrees_with_the_dry_run_that_it_is_timed_with():
    method, step = Method(kind="lora", rank=4), Step(batch=2, seq_len=64)
    row = dryrun.beside_closed_form("tiny", method, step, rounds=2)
    assert abs(row["formula_off_by"]) < 0.03
    assert row["times_as_long"]["rounds"] == 2


def test_the_dry_runs_memory_is_of_its_own_process():
    """Held here meanwhile: more than a dry run needs. Resource usage would hand it down to the child."""
    ballast = torch.ones(2**30 // 4)
    found = dryrun.run("tiny", "lora", [])
    assert found["peak_bytes"] > 10**6
    assert 2**27 < found["max_rss_bytes"] < ballast.nbytes
    assert found["cpu_seconds"] > 0
