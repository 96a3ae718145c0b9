"""Loading closes its traps: element type, four-bit storage, the CPU's repacking, the base model's stop token."""

import dataclasses
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from labkit.errors import LabError
from labkit.models.methods import Method
from labkit.training import loading
from labkit.training.loading import bnb_config, check_method, load_base, load_tokenizer, lora_config

QLORA = Method(kind="qlora", rank=4, dtype="float32")
CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]


def linears(model):
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def test_the_template_ends_a_turn_with_the_stop_token_and_nothing_after_it(tokenizer):
    text = tokenizer.apply_chat_template(CHAT[:2], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>"
    assert tokenizer(text)["input_ids"][-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_what_a_model_reads_at_generation_is_a_prefix_of_what_it_was_trained_on(tokenizer):
    asked = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    trained = tokenizer.apply_chat_template(CHAT[:2], tokenize=False)
    assert trained == asked + "Hello.<|im_end|>"
    again = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert again == trained + "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_a_base_models_tokenizer_gets_the_chats_stop_token_and_another_padding(weights, tokenizer):
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(weights.folder).eos_token == "<|endoftext|>"  # the trap is there
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_models_configs_stop_where_the_tokenizer_does(load, tokenizer):
    model = load()
    end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.config.eos_token_id == end
    assert model.generation_config.eos_token_id == [end, text_end]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == text_end


def test_generation_ends_at_the_stop_token(load, tokenizer):
    model = load("lora")
    with torch.no_grad():  # a head that always prefers the stop token
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.model.norm.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    model.lm_head.bias.data[tokenizer.eos_token_id] = 1.0
    output = model.generate(torch.tensor([[5, 6]]), max_new_tokens=20)
    assert output.tolist() == [[5, 6, tokenizer.eos_token_id]]


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_element_type_is_the_methods_never_a_librarys_default(load, kind, dtype):
    model = load(kind, dtype=dtype)
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {getattr(torch, dtype)}
    assert {module.compute_dtype for module in linears(model)} <= {getattr(torch, dtype)}


def test_every_linear_of_the_decoder_is_in_nf4_and_nothing_else(load):
    model = load()
    assert len(linears(model)) == 2 * 7
    assert {m.weight.quant_state.quant_type for m in linears(model)} == {"nf4"}
    assert {m.weight.quant_state.nested for m in linears(model)} == {True}
    assert not isinstance(model.lm_head, Linear4bit)
    assert not any(m.weight.quant_state.nested for m in linears(load(double_quant=False)))


@pytest.mark.parametrize("kind", ["qlora", "qdora"])
def test_an_evaluation_does_not_repack_the_weights(load, kind):
    """Fails without `forbid_cpu_repacking` on a CPU with AVX512-BF16; on the others the flag alone is checked."""
    model = load(kind).eval()
    assert not any(module.support_avx512bf16_for_cpu for module in linears(model))
    weights = [dequantize_4bit(m.weight.data, m.weight.quant_state) for m in linears(model)]
    with torch.no_grad():
        model(torch.arange(12)[None])
    again = [dequantize_4bit(m.weight.data, m.weight.quant_state) for m in linears(model)]
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))


def test_the_repacking_that_is_forbidden_really_happens_otherwise(load):
    """The trap itself, as long as bitsandbytes has it: a layer that may repack reads back as garbage."""
    from bitsandbytes.nn.modules import has_avx512bf16

    layer = linears(load().eval())[0]
    layer.support_avx512bf16_for_cpu = has_avx512bf16()
    before = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        layer(torch.ones(1, layer.in_features))
    repacked = getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    assert repacked == has_avx512bf16()
    if repacked:
        after = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert (after - before).norm() > 0.5 * before.norm()


def test_the_lectures_four_arguments():
    config = bnb_config(Method(kind="qlora", dtype="bfloat16"))
    assert config.load_in_4bit and config.bnb_4bit_use_double_quant
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    with pytest.raises(LabError, match="block_size=128"):
        bnb_config(Method(kind="qlora", block_size=128))


def test_the_adapter_config_says_what_the_method_says_and_saves_no_tied_weight():
    config = lora_config(Method(kind="qdora", rank=8, alpha=24, dropout=0.1, targets=("v_proj", "q_proj"), layers=(1,)))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_dora) == (8, 24, 0.1, True)
    assert config.target_modules == {"q_proj", "v_proj"} and config.layers_to_transform == [1]
    assert config.modules_to_save is None and config.bias == "none"
    assert not lora_config(QLORA).use_dora and lora_config(QLORA).layers_to_transform is None


T4, A100 = (7, 5), (8, 0)


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"adapter_dtype": "bfloat16"}, {"adapter_dtype": "autocast"}]
)
def test_no_bfloat16_on_a_gpu_that_only_emulates_it(options):
    method = Method(**({"kind": "qlora", "dtype": "float32"} | options))
    check_method(method, capability=A100)
    check_method(method, capability=None)  # a CPU
    with pytest.raises(LabError, match=r"7\.5.*no bfloat16 units"):
        check_method(method, capability=T4)


def test_a_t4_trains_in_float16_with_float32_adapters_only():
    check_method(Method(kind="qlora", dtype="float16"), capability=T4)
    with pytest.raises(LabError, match="float32 adapters only"):
        check_method(Method(kind="qlora", dtype="float16", adapter_dtype="bfloat16"), capability=T4)


def test_loading_asks_for_the_gpus_capability(weights, tokenizer, monkeypatch):
    monkeypatch.setattr(loading, "capability_of", lambda device: T4)
    with pytest.raises(LabError, match="no bfloat16 units"):
        load_base(weights, Method(kind="qlora", dtype="bfloat16"), tokenizer=tokenizer, device="cuda:0")


@pytest.mark.parametrize("broken", ["missing", "empty"])
def test_a_folder_without_a_model_is_refused(weights, tokenizer, tmp_path, broken):
    folder = tmp_path / "model"
    if broken == "empty":
        folder.mkdir()
    elsewhere = dataclasses.replace(weights, folder=folder)
    with pytest.raises(LabError, match="no model can be read"):
        load_base(elsewhere, QLORA, tokenizer=tokenizer, device="cpu")
    with pytest.raises(LabError, match="no tokenizer can be read"):
        load_tokenizer(elsewhere)


def test_pickled_weights_are_refused_and_never_opened(weights, tokenizer, tmp_path, pickled):
    shutil.copytree(weights.folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickled.bomb)
    with pytest.raises(LabError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        load_base(dataclasses.replace(weights, folder=tmp_path / "model"), QLORA, tokenizer=tokenizer, device="cpu")
    assert not pickled.mark.exists()


def test_a_vocabulary_without_chat_tokens_is_refused(weights, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(str(tmp_path))
    with pytest.raises(LabError, match=r"<\|im_start\|>"):
        load_tokenizer(dataclasses.replace(weights, folder=tmp_path))


def test_quiet_gives_back_what_it_took():
    import logging

    import datasets
    from transformers.utils import logging as hf_logging

    logging.getLogger("trl").setLevel(logging.INFO)
    before = (datasets.is_progress_bar_enabled(), hf_logging.is_progress_bar_enabled())
    with pytest.raises(ZeroDivisionError), loading.quiet():
        assert not datasets.is_progress_bar_enabled() and logging.getLogger("trl").level == logging.ERROR
        raise ZeroDivisionError
    assert (datasets.is_progress_bar_enabled(), hf_logging.is_progress_bar_enabled()) == before
    assert logging.getLogger("trl").level == logging.INFO
