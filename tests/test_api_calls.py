"""Every call that the book makes of the fast-moving libraries fits the versions that are installed."""

import pytest

from scripts.api_calls import ROOT, missing_reached, moved, sources

SOURCES = [path.relative_to(ROOT).as_posix() for path in sources()]


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_file_asks_of_the_libraries_is_there(name):
    assert moved((ROOT / name).read_text(encoding="utf-8"), where=name) == []


def test_what_is_reached_through_objects_is_there():
    assert missing_reached() == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("from trl import SFTTrainerX", "trl.SFTTrainerX cannot be imported"),
        ("from transformers.gone import Thing", "transformers.gone.Thing cannot be imported"),
        ("import peft\npeft.LoraConfigX", "peft.LoraConfigX is gone"),
        ("from trl import SFTConfig\nSFTConfig(max_sequence_length=8)", "trl.SFTConfig takes no 'max_sequence_length'"),
        ("from peft import LoraConfig as L\nL(rank=8)", "peft.LoraConfig takes no 'rank'"),
        ("import datasets\ndatasets.Dataset.from_list([], nothing=1)", "datasets.Dataset.from_list takes no 'nothing'"),
        ("from transformers import set_seed\nset_seed(1, 2, 3)", "transformers.set_seed takes 2 positional arguments"),
    ],
)
def test_what_has_moved_is_named_with_its_place(code, said):
    (line,) = moved(code, where="planted.py")
    assert line.startswith("planted.py:")
    assert said in line


@pytest.mark.parametrize(
    "code",
    [
        "from trl import SFTConfig\nSFTConfig(output_dir='x', **options)",
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(folder, padding_side='left')",
        "import torch\ntorch.nothing(1)",
        "from labkit.errors import LabError\nLabError(1, 2, 3, 4)",
    ],
)
def test_what_fits_or_is_not_asked_about_is_left_alone(code):
    assert moved(code, where="planted.py") == []
