"""Proof, before a run, that nothing was lost between the data and the trainer.

Which parameters train and in which precision; that every row is there; that exactly the answer and its stop token carry
loss. TRL and PEFT change their defaults often: a default that breaks the recipe fails here, not in the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.models.methods import Method
from labkit.training.data import Example, to_messages
from labkit.training.template import END_OF_TEXT, STOP_TOKEN, stop_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from trl import SFTTrainer

IGNORED = -100  # the label that torch's cross-entropy leaves out
MAX_LISTED = 5  # ids named in an error


def trainable_dtype(method: Method, name: str = "") -> torch.dtype:
    """Precision of the trainable parameter called ``name``: the adapters', or of full fine-tuning's weights.

    DoRA's magnitudes (around 1, with small updates) stay float32 always; float16 weights cannot train under a gradient
    scaler, so full fine-tuning raises them to float32.
    """
    import torch

    if method.uses_adapters:
        narrow = method.adapter_dtype == "bfloat16" and "magnitude" not in name
        return torch.bfloat16 if narrow else torch.float32
    return torch.float32 if method.dtype == "float16" else getattr(torch, method.dtype)


def token_counts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each row in the book's chat template, stop token included."""
    return _counts([row["prompt"] + row["completion"] for row in map(to_messages, examples)], tokenizer)


def _counts(chats: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase, **options: bool) -> list[int]:
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, **options) for chat in chats]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def refuse_long_rows(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, seq_len: int, truncate: bool = False
) -> list[str]:
    """The ids of rows longer than ``seq_len`` tokens; without ``truncate`` there may be none.

    TRL cuts such rows, which loses the stop token, and drops those of which no answer is left, both silently.

    Raises:
        LabError: no rows at all; rows that are too long; or, with ``truncate``, rows of whose answer nothing is left.
    """
    if not examples:
        raise LabError("0 training rows", "there is nothing to train on", "check language and train_rows")
    counts = token_counts(examples, tokenizer)
    long = [example for example, count in zip(examples, counts, strict=True) if count > seq_len]
    if long and not truncate:
        rule = f"{len(long)} of {len(examples)} rows are longer than seq_len={seq_len} tokens"
        fix = f"use seq_len={max(counts)} or more, leave these rows out, or pass truncate=True"
        raise LabError(_listed(long), rule, fix)
    prompts = _counts([to_messages(example)["prompt"] for example in long], tokenizer, add_generation_prompt=True)
    if lost := [example for example, count in zip(long, prompts, strict=True) if count >= seq_len]:
        rule = f"nothing is left of the answer within seq_len={seq_len} tokens"
        raise LabError(_listed(lost), rule, f"use seq_len={max(counts)} or leave these rows out")
    return [example.id for example in long]


def audit(trainer: SFTTrainer, examples: Sequence[Example], method: Method, *, truncate: bool = False) -> None:
    """Check, on the trainer that will run, each thing that went wrong silently in some version of the stack.

    Raises:
        LabError: the first thing that is not as the recipe promises.
    """
    _audit_precision(trainer, method)
    _audit_tied_weights(trainer.model)
    _audit_stop_token(trainer)
    _audit_rows(trainer, examples, truncate=truncate)
    _audit_padding(trainer)


def _require(holds: bool, given: str, rule: str) -> None:
    if not holds:
        raise LabError(given, rule, "use the versions of the book, or report this with the output of `labkit doctor`")


def _audit_precision(trainer: SFTTrainer, method: Method) -> None:
    trainable = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    _require(bool(trainable), "no trainable parameter", "something must train")
    for name, weight in trainable.items():
        expected = trainable_dtype(method, name)
        _require(weight.dtype == expected, f"{name} is {weight.dtype}", f"it must train in {expected}")
    for module in trainer.model.modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "support_avx512bf16_for_cpu"):
            rule = "bitsandbytes must not repack weights on the CPU"
            _require(not module.support_avx512bf16_for_cpu, "support_avx512bf16_for_cpu=True", rule)
    _require(trainer.args.n_gpu <= 1, f"n_gpu={trainer.args.n_gpu}", "DataParallel must be off")


def _audit_tied_weights(model: torch.nn.Module) -> None:
    tied = getattr(model.config, "tie_word_embeddings", False)
    for config in getattr(model, "peft_config", {}).values():
        saved = set(config.modules_to_save or ()) & {"lm_head", "embed_tokens"}
        _require(not (tied and saved), f"modules_to_save={sorted(saved)}", "tied weights must not be untied")


def _audit_stop_token(trainer: SFTTrainer) -> None:
    tokenizer, model = trainer.processing_class, trainer.model
    _require(tokenizer.eos_token == STOP_TOKEN, f"eos_token={tokenizer.eos_token!r}", f"it must be {STOP_TOKEN}")
    one = model.config.eos_token_id
    _require(one == tokenizer.eos_token_id, f"config.eos_token_id={one}", "it must be the tokenizer's stop token")
    ids = model.generation_config.eos_token_id
    _require(ids == stop_ids(tokenizer), f"generation_config.eos_token_id={ids}", "generation must stop there too")


def _audit_rows(trainer: SFTTrainer, examples: Sequence[Example], *, truncate: bool) -> None:
    """Exactly the answer and its stop token carry loss, in every row."""
    rows = trainer.train_dataset
    _require(len(rows) == len(examples), f"{len(rows)} of {len(examples)} rows", "no row may be dropped")
    answers = trainer.processing_class.batch_decode([_learned(labels) for labels in rows["labels"]])
    for answer, example in zip(answers, examples, strict=True):
        expected = example.response + STOP_TOKEN
        learned = answer == expected or (truncate and expected.startswith(answer.rstrip("\ufffd")))
        _require(learned, f"row {example.id}: the loss is on {answer!r}", f"it must be on {expected!r}")


def _learned(labels: Sequence[int]) -> list[int]:
    return [label for label in labels if label != IGNORED]


def _audit_padding(trainer: SFTTrainer) -> None:
    """In a padded batch the labels of a row are what they were without it: the stop token stays, padding is ignored."""
    tokenizer = trainer.processing_class
    if END_OF_TEXT in tokenizer.get_vocab():
        given = f"pad_token={tokenizer.pad_token!r}"
        _require(tokenizer.pad_token_id != tokenizer.eos_token_id, given, "padding must not be the stop token")
    by_length = sorted(range(len(trainer.train_dataset)), key=lambda i: len(trainer.train_dataset[i]["labels"]))
    rows = [trainer.train_dataset[place] for place in (by_length[0], by_length[-1])]
    batch = trainer.data_collator([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        rule = "padding must not change what carries loss"
        _require(_learned(labels) == _learned(row["labels"]), f"labels {_learned(labels)[-3:]} at the end", rule)


def _listed(examples: Sequence[Example]) -> str:
    more = f" and {len(examples) - MAX_LISTED} more" if len(examples) > MAX_LISTED else ""
    return "rows " + ", ".join(example.id for example in examples[:MAX_LISTED]) + more
