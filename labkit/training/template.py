"""The one chat template of the book: ChatML, the same text in training and in generation, for every profile.

The templates that ship with models differ from each other and from what a trainer needs: SmolLM2's adds a system
prompt, Qwen3's an empty think block, and both end a turn with a newline *after* the stop token, which would carry loss.
Here a turn ends with its stop token, and the newline belongs to the turn that follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

START_TOKEN = "<|im_start|>"
STOP_TOKEN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

CHATML = (
    "{%- for message in messages -%}"
    r"{%- if not loop.first %}{{ '\n' }}{% endif -%}"
    r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{%- endfor -%}"
    r"{%- if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif -%}"
)


def install(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give ``tokenizer`` the book's template, stop token and padding, in place; it is returned for convenience.

    A base model's tokenizer names ``<|endoftext|>`` as the end of a sequence, and a model that is trained on ChatML
    with it never stops. Padding becomes ``<|endoftext|>``, so that no padding looks like a stop token.

    Raises:
        LabError: the vocabulary lacks ``<|im_start|>`` or ``<|im_end|>``.
    """
    vocabulary = tokenizer.get_vocab()
    for token in (START_TOKEN, STOP_TOKEN):
        if token not in vocabulary:
            rule = f"the book's chat template needs {token}, and this vocabulary of {len(vocabulary)} tokens lacks it"
            raise LabError(tokenizer.name_or_path, rule, "use a model with ChatML tokens: SmolLM2, Qwen2.5 or Qwen3")
    tokenizer.chat_template = CHATML
    tokenizer.eos_token = STOP_TOKEN
    tokenizer.pad_token = END_OF_TEXT if END_OF_TEXT in vocabulary else STOP_TOKEN
    tokenizer.padding_side = "right"  # training; generation pads on the left, and says so itself
    return tokenizer


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end an answer: ``<|im_end|>``, then ``<|endoftext|>`` where the vocabulary has it."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in (STOP_TOKEN, END_OF_TEXT) if token in vocabulary]


def align(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model's two configs name the tokenizer's stop and padding tokens; greedy decoding by default."""
    from transformers import GenerationConfig

    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=stop_ids(tokenizer), pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
