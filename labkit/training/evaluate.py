"""What a model can do, in two numbers: the loss on held-out answers, and how often its own answers keep the rules.

Both read the model in evaluation mode and leave it in the mode in which it was.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.theory.intervals import wilson_interval
from labkit.training.audit import IGNORED
from labkit.training.constraints import violations
from labkit.training.data import Example, to_messages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

LOSS_BATCH, ANSWER_BATCH = 16, 48  # rows per forward pass of a run's two measurements


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off and no gradients inside the block, and the element types of the training."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _as_trained(model):
            yield
    finally:
        model.train(was_training)


def _as_trained(model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Autocast where whole float32 weights train inside a float16 model (on a T4): they multiply float16 activations.

    PEFT's adapters are float32 there too, and cast by themselves.
    """
    import torch

    found = {parameter.dtype: parameter.device.type for parameter in model.parameters()}
    mixed = {torch.float16, torch.float32} <= found.keys() and not hasattr(model, "peft_config")
    return torch.autocast(found[torch.float16], torch.float16) if mixed else contextlib.nullcontext()


def tokens_and_labels(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of one row and, in the same places, its labels: -100 on the prompt, the id itself on the answer."""
    row = to_messages(example)
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
    if ids[: len(prompt)] != prompt:
        rule = "the tokens of the prompt must be the first tokens of prompt and answer"
        raise LabError(f"row {example.id}", rule, "check the chat template (see labkit.training.template)")
    return ids, [IGNORED] * len(prompt) + ids[len(prompt) :]


def heldout_loss(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, batch_size: int = 8
) -> tuple[float, int]:
    """Mean negative log-likelihood in nats per answer token (stop token included), and how many such tokens there are.

    Every token weighs the same, whatever the batches; logits are made at answer tokens only, in float32.

    Raises:
        LabError: no examples.
    """
    if not examples:
        raise LabError("0 held-out rows", "a mean needs at least one row", "check language and eval_rows")
    rows = sorted((tokens_and_labels(example, tokenizer) for example in examples), key=lambda row: len(row[0]))
    total, count = 0.0, 0
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            loss, tokens = _batch_loss(model, rows[start : start + batch_size], tokenizer.pad_token_id)
            total, count = total + loss, count + tokens
    return total / count, count


def _batch_loss(model: torch.nn.Module, rows: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[float, int]:
    import torch
    from torch.nn.functional import cross_entropy

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids, mask = _padded([ids for ids, _ in rows], pad_id, base.device)  # (b, s)
    labels, _ = _padded([labels for _, labels in rows], IGNORED, base.device)
    hidden = base.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (b, s, h)
    wanted = labels[:, 1:] != IGNORED  # position t predicts token t + 1
    logits = base.get_output_embeddings()(hidden[:, :-1][wanted])  # (n, V)
    loss = cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="sum")
    return float(loss.to(torch.float64)), int(wanted.sum())


def _padded(rows: list[list[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` padded on the right, and the mask of what is not padding; both (rows, longest)."""
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.full((len(rows), int(lengths.max())), fill)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row)
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    return padded.to(device), mask.long().to(device)


def answer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 48,
) -> list[str]:
    """The model's own answers, in the order of ``instructions``: greedy, without the stop token.

    Prompts of similar length share a batch and are padded on the left, so that every answer starts right after its
    prompt; an answer does not depend on its neighbours beyond the rounding of the matrix products.
    """
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in instructions
    ]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    texts = [""] * len(prompts)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [prompts[place] for place in places]
            for place, text in zip(places, _generate(model, tokenizer, batch, max_new_tokens), strict=True):
                texts[place] = text
    return texts


def _generate(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
) -> list[str]:
    from transformers import GenerationConfig

    # The rest, stop and padding tokens among it, comes from the model's own config (see `template.align`).
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, use_cache=True)
    inputs = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    ids, mask = inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device)
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


@dataclass(frozen=True)
class FollowReport:
    """How often answers keep all rules of their row.

    ``rate`` is ``kept / rows``, ``low`` and ``high`` its 95 % Wilson interval; ``by_kind`` maps a rule's kind to
    (times kept, times asked).
    """

    kept: int
    rows: int
    rate: float
    low: float
    high: float
    by_kind: dict[str, tuple[int, int]]


def follow_report(examples: Sequence[Example], texts: Sequence[str]) -> FollowReport | None:
    """Rule-following of ``texts``, one per example; None where no row has rules (public data sets).

    Rows without rules do not count.
    """
    pairs = [(example, text) for example, text in zip(examples, texts, strict=True) if example.constraints]
    if not pairs:
        return None
    kept = sum(not violations(example.constraints, text) for example, text in pairs)
    asked, held = Counter(), Counter()
    for example, text in pairs:
        for constraint in example.constraints:
            asked[constraint.kind] += 1
            held[constraint.kind] += not violations([constraint], text)
    low, high = wilson_interval(kept, len(pairs))
    by_kind = {kind: (held[kind], asked[kind]) for kind in sorted(asked)}
    return FollowReport(kept, len(pairs), kept / len(pairs), low, high, by_kind)
