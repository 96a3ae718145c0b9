"""The record of a run is plain JSON that reads back as it was."""

import json
import math

import pytest

from labkit.errors import LabError
from labkit.models.profiles import PROFILES
from labkit.training.record import (
    RunRecord,
    hardware,
    profile_as_dict,
    profile_from,
    provenance,
    read_record,
    versions,
)


def record(**changes) -> RunRecord:
    values = {
        "settings": {"profile": profile_as_dict(PROFILES["tiny"]), "seed": 0},
        "versions": {"torch": "2"},
        "hardware": {"cpu": "x", "gpu": None},
        "date": "2026-11-24T00:00:00+00:00",
        "seconds": {"train": 1.5},
        "trained_tokens": 10,
        "tokens_per_s": 6.67,
        "peak_memory": {"process_peak_rss_bytes": 1},
        "curve": [{"step": 1, "loss": None, "tokens": 10}],
        "before": {"heldout_loss": 2.0},
        "after": None,
        "samples": [
            {
                "id": "row-1",
                "instruction": "两行\n说说茶",
                "reference": "茶",
                "before": "```\ncode\n```",
                "after": None,
                "violations": {"before": ["language: en found, zh asked"]},
            },
            {
                "id": "row-2",
                "instruction": "Hi",
                "reference": "Yes.",
                "before": "Yes.",
                "after": "Yes.",
                "violations": None,
            },
        ],
    }
    return RunRecord(**values | changes)


@pytest.mark.parametrize("name", list(PROFILES))
def test_a_profile_survives_json(name):
    assert profile_from(json.loads(json.dumps(profile_as_dict(PROFILES[name])))) == PROFILES[name]


def test_a_record_reads_back_as_it_was(tmp_path):
    record().write(tmp_path)
    assert read_record(tmp_path) == record()
    assert read_record(tmp_path).profile == PROFILES["tiny"]


def test_a_loss_that_is_no_number_cannot_break_the_record(tmp_path):
    record(before={"heldout_loss": math.nan, "follow": {"by_kind": {"yes_no": (1, 2)}}}).write(tmp_path)
    assert read_record(tmp_path).before == {"heldout_loss": None, "follow": {"by_kind": {"yes_no": [1, 2]}}}


def test_the_samples_page_shows_every_answer_and_what_it_broke():
    page = record().samples_as_markdown()
    assert "> 两行\n> 说说茶" in page
    assert "**before** (breaks: language: en found, zh asked)\n\n````text\n```\ncode\n```\n````" in page
    assert "(not measured)" in page and page.count("## row-") == 2


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_what_is_no_record_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "record.json").write_text(content)
    with pytest.raises(LabError, match="not the record of a run"):
        read_record(tmp_path)


def test_hardware_and_versions_say_what_a_reader_asks():
    import os

    import torch

    found = hardware()
    assert found["cpu"] and 1 <= found["cores"] <= os.cpu_count() and found["memory_bytes"] > 2**28
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__


@pytest.mark.parametrize(("percent", "said"), [(1.0, "one thread"), (60.0, "one thread, beside other programs")])
def test_a_measurement_says_whether_other_programs_ran(monkeypatch, percent, said):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: percent)
    machine = hardware()
    expected = f"{machine['cores']} CPU cores of an {machine['cpu']}, {said}"
    assert provenance("benchmarks/x.py", note="one thread")["hardware"] == expected
    assert provenance("benchmarks/x.py")["hardware"] == expected.replace(", one thread", "")
