"""The guides for rented machines: both languages say the same, their sum is right, their commands exist."""

import contextlib
import io
import json
import math
import re

import pytest
import typer

from labkit.cli import app
from labkit.files import write_json
from labkit.models.profiles import PROFILES
from labkit.models.weights import download_bytes
from labkit.paths import checkout

GUIDES = [checkout() / "docs" / f"{place}{end}.md" for place in ("autodl", "colab") for end in ("", ".zh")]
BLOCK = re.compile(r"```(\w+)\n(.+?)```", flags=re.S)


def text(path):
    return path.read_text(encoding="utf-8")


def code(path):
    """The fenced blocks without their comments."""
    return [(kind, re.sub(r"[ \t]*#.*", "", block)) for kind, block in BLOCK.findall(text(path))]


def the_sum(path):
    (block,) = [block for kind, block in BLOCK.findall(text(path)) if "price_per_hour" in block]
    return block


@pytest.mark.parametrize("english", [path for path in GUIDES if ".zh" not in path.name], ids=lambda path: path.stem)
def test_both_languages_have_the_same_sections_and_code(english):
    chinese = english.with_suffix(".zh.md")
    heads = [re.findall(r"^## (\d)\.", text(path), flags=re.M) for path in (english, chinese)]
    assert heads[0] == heads[1]
    assert code(english) == code(chinese)
    assert f"]({chinese.name})" in text(english)
    assert f"]({english.name})" in text(chinese)


def in_one_go(seconds):
    """As the shipped run was."""


def resumed(seconds):
    """A total that counts more than the phases: loading and setting up again in every sitting."""
    seconds["total"] = 4 * seconds["total"]


def of_lesson_04(seconds):
    """The notebook's record: training alone."""
    for phase in set(seconds) - {"train"}:
        del seconds[phase]


@pytest.mark.parametrize("spoil", [in_one_go, resumed, of_lesson_04])
@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_the_sum_is_that_of_the_record(path, spoil, tmp_path):
    record = json.loads(text(checkout() / "data" / "measurements" / "sft_laptop" / "record.json"))
    steps, seconds = record["settings"]["profile"]["steps"], record["seconds"]
    spoil(seconds)
    kept = re.search(r'open\("(.+?)/record\.json"', the_sum(path))[1]
    assert f"labkit sft --steps 20 --out {kept}`" in text(path)  # the command that wrote it
    write_json(tmp_path / "record.json", record)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(the_sum(path).replace("steps = 300", "steps = 192").replace(kept, str(tmp_path)), {})
    assert 2 * steps == 192  # of one training
    around = sum(seconds.get(phase, 0) for phase in ("load", "before", "after"))
    price = float(re.search(r"price_per_hour = ([\d.]+)", the_sum(path))[1])
    speed, *lines = said.getvalue().splitlines()
    assert speed == f"{record['tokens_per_s']:.0f} tokens/s"
    rows = {line[:10].strip(): line[10:].split(" h ") for line in lines}
    assert list(rows) == ["labkit sft", "02", "03", "04", "05", "06", "07"]
    for name, times, trainings in (("labkit sft", 1, 2), ("05", 7, 2 * 7 / 4), ("06", 3, 72 / steps)):
        hours = (times * around + trainings * seconds["train"]) / 3600
        assert [float(word) for word in rows[name]] == pytest.approx([hours, hours * price], abs=0.0051)


@pytest.mark.parametrize("path", [path for path in GUIDES if "autodl" in path.name], ids=lambda path: path.name)
def test_the_most_tokens_are_those_of_the_profile(path):
    gpu = PROFILES["gpu"]
    factors = (gpu.steps, gpu.accumulation, gpu.batch, gpu.seq_len)
    assert f"{' x '.join(f'{factor:,}' for factor in factors)} = {math.prod(factors):,}" in text(path)
    assert f"{download_bytes(gpu) / 1e9:.1f} GB" in text(path)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_every_command_and_number_of_steps_exists(path):
    commands = typer.main.get_command(app).commands
    named = re.findall(r"(?:`|`!|^|bin/)labkit ([a-z]+)([^`#\n]*)", text(path), flags=re.M)
    assert named
    for command, options in named:
        known = {option for parameter in commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known
    assert f"steps = {PROFILES['gpu'].steps}" in the_sum(path)
