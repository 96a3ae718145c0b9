"""`labkit fetch` against a Hub on loopback: fetched, here already, broken off and gone on with, not to be had."""

import json
import re
import sys

import huggingface_hub
import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.models import sites, weights
from labkit.models.profiles import PROFILES
from tests.chinese import CHINESE, english_left

invoke = CliRunner().invoke


@pytest.fixture
def near_hub(monkeypatch, hub, small, tmp_path):
    """The Hub as the only source of the gpu profile's model."""
    monkeypatch.setitem(PROFILES, "gpu", small)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    hub.partial = tmp_path / "cache" / "models" / "Qwen3-1.7B-Base-hub.partial"
    return hub


def test_a_model_is_fetched_once(near_hub, published):
    first = invoke(app, ["fetch", "--profile", "gpu", "--json"])
    said = json.loads(first.stdout)
    assert (first.exit_code, said["source"], said["already_here"]) == (0, "hub", False)
    assert said["folder"] == str(near_hub.partial.with_suffix(""))
    assert said["bytes"] > sum(path.stat().st_size for path in published.iterdir())  # the manifest is there as well
    assert [line for line in first.stderr.splitlines() if line.endswith("…")] == ["modelscope …", "hub …"]
    asked = len(near_hub.seen)
    again = invoke(app, ["fetch", "--profile", "gpu"])
    assert again.exit_code == 0
    assert "from hub, 0.00 GB, already here" in again.stdout
    assert said["folder"] in again.stdout
    assert len(near_hub.seen) == asked


def fetched(hub):
    return {path.rsplit("/", 1)[-1] for method, path in hub.seen if method == "GET" and "/resolve/" in path}


def test_a_download_that_breaks_off_goes_on_with_what_is_missing(near_hub, published, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # or it tries again for five seconds
    shard = max(published.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    near_hub.cut = shard.name
    broken = invoke(app, ["fetch", "--profile", "gpu"])
    assert broken.exit_code == 1
    assert "hub: the download failed" in broken.stderr
    assert "what has arrived is kept" in broken.stderr
    arrived = {path.name for path in near_hub.partial.iterdir() if path.is_file()}
    assert shard.name not in arrived != set()
    near_hub.cut, near_hub.seen[:] = None, []
    done = invoke(app, ["fetch", "--profile", "gpu"])
    assert done.exit_code == 0, done.stderr
    assert "hub, going on after 0.00 GB …" in done.stderr
    assert fetched(near_hub) == {path.name for path in published.iterdir()} - arrived


def test_what_a_killed_download_left_is_no_gain_and_is_taken_away(near_hub, small):
    notes = near_hub.partial / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    dead, alive = notes / f"x.{'e' * 64}.0123abcd.incomplete", notes / f"x.{'e' * 64}.incomplete"
    for path in (dead, alive):
        path.write_bytes(b"0" * 10_000_000)
    assert weights._arrived_bytes(near_hub.partial.with_suffix("")) == 0
    sites.fetch_from_hub(small, near_hub.partial)
    assert (dead.exists(), alive.exists()) == (False, True)  # version 1 of the client goes on with the latter


def test_what_cannot_be_had_is_exit_code_1_with_the_reason_of_each_source(near_hub):
    near_hub.folder = near_hub.folder.parent / "empty"
    near_hub.folder.mkdir()
    done = invoke(app, ["fetch", "--profile", "gpu"])
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert (done.exit_code, done.stdout) == (1, "")
    assert "modelscope: the package modelscope is not installed; hub: the download" in error
    assert "LABKIT_MODEL_SOURCE" in error


def test_the_books_own_model_needs_no_fetching(machine):
    done = invoke(app, ["fetch", "--profile", "tiny"])
    assert (done.exit_code, done.stdout.split("; ")[0]) == (0, "tiny is in the book")


def test_a_chinese_student_follows_a_download_in_chinese(near_hub, published, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    near_hub.cut = max(published.glob("*.safetensors"), key=lambda path: path.stat().st_size).name
    said = [invoke(app, ["fetch", "--profile", "gpu"])]
    near_hub.cut = None
    said += [invoke(app, ["fetch", "--profile", name]) for name in ("gpu", "gpu", "tiny")]
    assert [done.exit_code for done in said] == [1, 0, 0, 0]
    (reason,) = re.findall(r"hub：下载失败（(.+)）\n", said[0].stderr)  # the library's own words
    lines = [line for done in said for line in done.output.replace(reason, "…").splitlines() if CHINESE.search(line)]
    assert [line for line in lines if english_left(line)] == []
    for words in ("错误 ", "解决办法：", "已经下载的都留着", "接着下载 …", "用时 0 秒", "已经在本机", "就在本书里"):
        assert any(words in line for line in lines), words


def test_a_profile_that_does_not_exist_is_bad_input():
    assert isinstance(invoke(app, ["fetch", "--profile", "huge"]).exception, LabError)
