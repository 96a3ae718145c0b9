"""What a 4-bit code does to a whole model: its linears are quantized and dequantized in place, and put back afterwards.

"Fake" quantization computes exactly what a model with stored 4-bit weights computes (bitsandbytes dequantizes before it
multiplies), and so it can try codes and block sizes that no library stores. Introduced in lesson 03.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from labkit.errors import LabError
from labkit.theory.codes import Code
from labkit.theory.nf4 import dequantize, double_quantize, quantize, relative_error, restore
from labkit.training.audit import IGNORED
from labkit.training.evaluate import evaluating, tokens_and_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from labkit.training.data import Example


def decoder_linears(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Name -> linear, for every linear of the decoder layers: what QLoRA quantizes (no embedding, no LM head).

    Raises:
        LabError: the model has none, or their weights are stored quantized already.
    """
    named = model.get_decoder().layers.named_modules()
    linears = {name: module for name, module in named if isinstance(module, torch.nn.Linear)}
    if not linears or not all(module.weight.is_floating_point() for module in linears.values()):
        rule = "fake quantization needs linears whose weights are floating-point numbers"
        raise LabError(type(model).__name__, rule, "load the model with a method that is not quantized, e.g. lora")
    return linears


@contextlib.contextmanager
def fake_quantized(
    model: PreTrainedModel,
    *,
    code: Code = "nf4",
    block_size: int = 64,
    double_quant: bool = False,
    only: Sequence[str] | None = None,
) -> Iterator[dict[str, float]]:
    """Inside the block the decoder's linears hold quantized and dequantized weights; afterwards the old ones, exactly.

    Args:
        model: with floating-point weights.
        code, block_size: as in `labkit.theory.nf4.quantize`.
        double_quant: quantize the constants too.
        only: names of linears (see `decoder_linears`); None means all.

    Yields:
        Name -> relative error of its weight.

    Raises:
        LabError: see `decoder_linears` and `labkit.theory.nf4.quantize`; a name that is not there.
    """
    linears = decoder_linears(model)
    if unknown := [name for name in only or () if name not in linears]:
        raise LabError(f"only={unknown[0]!r}", "the model has no such linear", f"try {next(iter(linears))!r}")
    chosen = {name: linears[name] for name in (linears if only is None else only)}
    kept = {name: linear.weight.data for name, linear in chosen.items()}
    errors = {}
    try:
        for name, linear in chosen.items():
            quantized = quantize(kept[name], block_size=block_size, code=code)
            absmax = restore(double_quantize(quantized.absmax)) if double_quant else None
            linear.weight.data = dequantize(quantized, absmax)
            errors[name] = relative_error(kept[name], linear.weight.data)
        yield errors
    finally:
        for name, linear in chosen.items():
            linear.weight.data = kept[name]


def answer_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of every next token at every answer token, and the tokens that stand there.

    The mean of the second under the first is `labkit.training.evaluate.heldout_loss`. Takes 4 * V bytes a token.

    Returns:
        (n, V) float32 in nats and (n,) token ids; n counts the answer tokens of all rows, in order, on the CPU.

    Raises:
        LabError: no examples.
    """
    if not examples:
        raise LabError("0 held-out rows", "there is nothing to predict", "check language and eval_rows")
    parts, tokens = [], []
    with evaluating(model):
        for example in examples:
            ids, labels = (torch.tensor(row) for row in tokens_and_labels(example, tokenizer))
            wanted = labels[1:] != IGNORED  # position t predicts token t + 1
            logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0, :-1].cpu()[wanted]
            parts.append(logits.float().log_softmax(-1))
            tokens.append(labels[1:][wanted])
    return torch.cat(parts), torch.cat(tokens)


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Kullback-Leibler divergence of two sets of log-probabilities (n, V), in nats per token: 0 only if they are equal.

    Unlike the loss, it cannot fall because a mistake happens to fit the reference answers.
    """
    terms = reference.exp() * (reference - other)  # (n, V)
    return float(terms.sum(-1).double().mean())


def loss_change(reference: torch.Tensor, other: torch.Tensor, tokens: torch.Tensor) -> tuple[float, float]:
    """Mean change of the loss from ``reference`` to ``other`` (n, V) in nats per token, and its standard error.

    The change is taken token by token, so what makes a token hard cancels. Tokens of one answer are not independent:
    the true uncertainty is somewhat larger.
    """
    places = tokens[:, None]
    change = (reference.gather(1, places) - other.gather(1, places)).double()
    return float(change.mean()), float(change.std() / len(tokens) ** 0.5)
