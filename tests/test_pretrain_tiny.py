"""The tiny model: made by the script that is here, the same bytes twice, and really trained."""

import hashlib
import json
import math
import sys

import pytest
import torch

from labkit.paths import data_folder
from scripts import pretrain_tiny

FOLDER = data_folder() / "tiny-qwen3"


@pytest.fixture(scope="module")
def model_and_tokenizer():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32), AutoTokenizer.from_pretrained(FOLDER)


def test_a_short_run_gives_the_same_bytes_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_tiny, "DOCUMENTS", 400)
    digests = []
    for name in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["pretrain_tiny", "--steps", "3", "--out", str(tmp_path / name)])
        threads = torch.get_num_threads()
        try:
            pretrain_tiny.main()
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(False)
        files = [tmp_path / name / file for file in ("model.safetensors", "tokenizer.json", "config.json")]
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert digests[0] == digests[1]


def test_the_shipped_model_is_small_and_every_dimension_is_a_multiple_of_64():
    config = json.loads((FOLDER / "config.json").read_text())
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 6e6
    for name in ("hidden_size", "intermediate_size", "head_dim", "vocab_size"):
        assert config[name] % 64 == 0
    assert config["model_type"] == "qwen3"


def test_the_shipped_record_fits_the_corpus_and_the_model(model_and_tokenizer):
    record = json.loads((FOLDER / "pretraining.json").read_text())
    pages = pretrain_tiny.corpus(pretrain_tiny.SEED)
    assert hashlib.sha256("\n".join(pages).encode()).hexdigest() == record["corpus_sha256"]
    assert sum(parameter.numel() for parameter in model_and_tokenizer[0].parameters()) == record["n_params"]


@torch.no_grad()
def test_the_shipped_model_knows_text_that_it_never_saw(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    record = json.loads((FOLDER / "pretraining.json").read_text())
    stream = pretrain_tiny.token_stream(tokenizer, pretrain_tiny.held_out_pages())
    counts = torch.bincount(stream, minlength=len(tokenizer)).double()
    unigram = float(-(counts / counts.sum() * (counts / counts.sum()).clamp_min(1e-12).log()).sum())
    torch.manual_seed(0)
    loss = pretrain_tiny.mean_loss(model.eval(), stream)
    untrained = pretrain_tiny.mean_loss(pretrain_tiny.new_model(len(tokenizer)).eval(), stream)
    assert loss == pytest.approx(record["heldout_loss"], abs=0.02)  # the weights are stored in bfloat16
    assert loss < unigram  # better than knowing these very pages' token frequencies
    assert untrained == pytest.approx(math.log(len(tokenizer)), rel=0.05)


def test_the_corpus_holds_no_heldout_topic_and_no_chat_template():
    pages = pretrain_tiny.corpus(pretrain_tiny.SEED)
    names = [
        topic["summary"]["en"] for topic in pretrain_tiny.topics() if topic["id"] in pretrain_tiny.held_out_topics()
    ]
    text = "\n".join(pages)
    assert [name for name in names if name in text] == []
    assert "<|im_start|>" not in text


def test_any_text_survives_the_tokenizer(model_and_tokenizer):
    for text in ("Hello, world\n", "显存去了哪里？", "🦙 é \t x", ""):
        assert model_and_tokenizer[1].decode(model_and_tokenizer[1](text).input_ids) == text
