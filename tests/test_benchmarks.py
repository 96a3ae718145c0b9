"""The benchmarks' page names every script and links to what it wrote; the comparison of NF4 runs and compares."""

import json
import re

import pytest
import torch

from benchmarks import dryrun, nf4_speed, snr_scan
from labkit.paths import checkout

FOLDER = checkout() / "benchmarks"
ROWS = re.findall(
    r"^\| `(\w+\.py)` \| .+? \| (.+?) \|$", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.M
)


def test_every_script_has_its_row():
    assert sorted(name for name, _ in ROWS) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize(("name", "result"), ROWS, ids=[name for name, _ in ROWS])
def test_a_result_is_there_and_made_by_its_script(name, result):
    link = re.search(r"\]\((.+)\)", result)
    if link is None:
        assert result.startswith("not measured")
        assert not list(checkout().glob(f"data/*/{name.removesuffix('.py')}*.json"))
        return
    report = json.loads((FOLDER / link[1]).read_text(encoding="utf-8"))
    assert name in report.get("made_by", report.get("command", name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_comparison_of_nf4_asserts_the_same_bits(dtype):
    row = nf4_speed.compare(64 * 30 + 8, dtype, rounds=2)  # the last block is shorter
    assert row["bit_equal"]
    assert row["quantize"]["ratio"] > 0


def test_the_scan_agrees_with_the_svd():
    (row,) = snr_scan.measure(quick=True)["rows"]
    assert row["shape"] == [24, 64]
    assert row["svd float64"]["max_difference_by_largest"] < 1e-12
    assert row["svd float32"]["max_difference_by_largest"] > 1e-12
    assert row["ours_bytes"] > 0


def test_the_dry_runs_memory_is_of_its_own_process():
    """Held here meanwhile: more than a dry run needs. Resource usage would hand it down to the child."""
    ballast = torch.ones(2**30 // 4)
    found = dryrun.run("tiny", "lora", [])
    assert found["peak_bytes"] > 10**6
    assert 2**27 < found["max_rss_bytes"] < ballast.nbytes
