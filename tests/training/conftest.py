"""A random Qwen3 of 0.5 M parameters with a byte-level BPE of its own, and a few dozen rows: no file of the book."""

import dataclasses
import types
from pathlib import Path

import pytest

from labkit.models.methods import Method
from labkit.models.profiles import Profile
from labkit.models.weights import Weights
from labkit.training.constraints import parse
from labkit.training.data import Example

NOUNS = ("tea", "rain", "salt", "iron", "moon", "silk", "corn", "glass", "wind", "jade", "rice", "snow")


def examples(n: int) -> list[Example]:
    """Rows of three kinds and two languages."""
    rows = []
    for i in range(n):
        noun, count = NOUNS[i % len(NOUNS)], 1 + i % 3
        bullets = "\n".join([f"- {noun} {k}" for k in range(count)])
        row = (
            ("en", f"Give {count} bullets about {noun} {i}.", bullets, {"kind": "bullets", "count": count}),
            ("en", f"Is {noun} {i} heavy? Yes or no.", "Yes.", {"kind": "yes_no"}),
            ("zh", f"用中文说说 {noun} {i}。", "很好，也很常见。", {"kind": "language", "language": "zh"}),
        )[i % 3]
        rows.append(Example(f"row-{i}", row[0], noun, row[1], row[2], (parse(row[3]),)))
    return rows


def _save_tokenizer(folder: Path) -> int:
    """As a *base* model ships it: its end of sequence, and its padding, are not the chat's stop token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([row.instruction + row.response for row in examples(36)] + ["user assistant"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[0], pad_token=special[0])
    tokenizer.save_pretrained(str(folder))
    return len(tokenizer)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Weights:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("random-qwen3")
    config = Qwen3Config(
        vocab_size=_save_tokenizer(folder),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(str(folder))
    return Weights(model=str(folder), folder=folder, source="folder", stop_token="<|im_end|>")


@pytest.fixture(scope="session")
def rows() -> list[Example]:
    return examples(24)


@pytest.fixture(scope="session")
def profile() -> Profile:
    return Profile(
        name="random",
        model="random",
        train_rows=24,
        eval_rows=6,
        steps=3,
        batch=4,
        seq_len=96,
        learning_rate=5e-3,
        method=Method(kind="qlora", rank=4, dtype="float32"),
        ranks=(2, 4),
        max_new_tokens=8,
    )


@pytest.fixture
def tokenizer(weights):
    from labkit.training.loading import load_tokenizer

    return load_tokenizer(weights)


@pytest.fixture
def load(weights, tokenizer):
    """``load(kind, **method_options)``: a base model for that method."""
    from labkit.training.loading import load_base

    def load_one(kind: str = "qlora", **options):
        method = Method(**({"kind": kind, "rank": 4, "dtype": "float32"} | options))
        return load_base(weights, method, tokenizer=tokenizer, device="cpu")

    return load_one


@pytest.fixture
def trainer_for(load, tokenizer, profile, rows, tmp_path):
    """``trainer_for(kind, **method_options)``: a trainer on the rows, not started."""
    from labkit.training.recipe import build_trainer

    def build(kind: str = "qlora", *, seed: int = 0, examples=rows, steps: int = 3, checkpointing=False, **options):
        method = Method(**({"kind": kind, "rank": 4, "dtype": "float32"} | options))
        changes = {"steps": steps, "dtype": method.dtype, "checkpointing": checkpointing}
        here = dataclasses.replace(profile, method=method, **changes)
        model = load(kind, **options)
        return build_trainer(model, tokenizer, here, examples, tmp_path / "t", seed=seed)

    return build


@pytest.fixture
def pickled(tmp_path):
    """``pickled.bomb``: bytes of ``torch.save`` that make the file ``pickled.mark`` if they are loaded carelessly."""
    import torch

    mark = tmp_path / "a pickle ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (mark,)

    torch.save(Bomb(), tmp_path / "bomb")
    return types.SimpleNamespace(bomb=(tmp_path / "bomb").read_bytes(), mark=mark)
