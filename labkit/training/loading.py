"""From weights on the disk to a model that is safe to fine-tune: element type, NF4 and the adapter's config."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.models.integrity import INDEX, SINGLE, refuse_pickles
from labkit.models.methods import TARGETS, Method, module_parts
from labkit.models.profiles import AMPERE
from labkit.training import processes
from labkit.training.template import align, install

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

    from labkit.models.weights import Weights

ATTENTION = TARGETS[:4]
BLOCK_SIZE = 64  # transformers' BitsAndBytesConfig has no argument for it
NOISY_LOGGERS = ("transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "torchao")


def default_device() -> str:
    """``cuda:0`` where torch sees a GPU (of several processes each has its own), else ``cpu``."""
    import torch

    return f"cuda:{processes.local_rank()}" if torch.cuda.is_available() else "cpu"


def unused_gpus() -> int:
    """How many visible GPUs stay idle because the book trains on one; 0 under ``accelerate launch``."""
    import torch

    return max(0, torch.cuda.device_count() - 1) if processes.count() == 1 else 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' progress bars, notes and deprecation warnings inside the block; errors still show."""
    import datasets
    from transformers.utils import logging as hf_logging

    loggers = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
    bars = {datasets: datasets.is_progress_bar_enabled(), hf_logging: hf_logging.is_progress_bar_enabled()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        hf_logging.disable_progress_bar()
        try:
            yield
        finally:
            for name, level in loggers.items():
                logging.getLogger(name).setLevel(level)
            if bars[datasets]:
                datasets.enable_progress_bars()
            if bars[hf_logging]:
                hf_logging.enable_progress_bar()


def load_tokenizer(weights: Weights) -> PreTrainedTokenizerBase:
    """The model's tokenizer with the book's chat template, stop token and padding (see `template.install`).

    Raises:
        LabError: no readable tokenizer there, or one without ChatML tokens.
    """
    from transformers import AutoTokenizer

    folder = weights.tokenizer_folder or weights.folder
    try:
        return install(AutoTokenizer.from_pretrained(str(folder), local_files_only=True))
    except (OSError, ValueError) as error:
        rule = f"no tokenizer can be read from it ({_first_line(error)})"
        raise LabError(str(folder), rule, "name a folder with tokenizer.json and tokenizer_config.json") from error


def bnb_config(method: Method) -> BitsAndBytesConfig:
    """The lecture's four arguments. Left to itself, bitsandbytes would use FP4 and a float32 computation.

    Raises:
        LabError: a block size that this route cannot set.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if method.block_size != BLOCK_SIZE:
        rule = f"transformers loads NF4 with blocks of {BLOCK_SIZE} weights and has no argument for it"
        raise LabError(f"block_size={method.block_size}", rule, f"train with block_size={BLOCK_SIZE}")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, method.dtype),
        bnb_4bit_use_double_quant=method.double_quant,
    )


def lora_config(method: Method) -> LoraConfig:
    """The adapter as PEFT describes it: LoRA, or DoRA for ``dora`` and ``qdora``.

    ``modules_to_save`` stays empty: the embedding and the LM head of a small model are one tied matrix, and saving one
    of them would untie it and train hundreds of millions of parameters (peft issue 2777).
    """
    from peft import LoraConfig

    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        use_rslora=method.rslora,
        lora_dropout=method.dropout,
        target_modules=[module_path(module) for module in method.modules] or list(method.targets),
        layers_to_transform=None if method.modules else list(method.layers) or None,
        use_dora=method.uses_magnitude,
        bias="none",
        task_type="CAUSAL_LM",
    )


def module_path(module: str) -> str:
    """Where a module is in the model: ``"3.up_proj"`` is ``"layers.3.mlp.up_proj"`` of the decoder."""
    layer, name = module_parts(module)
    return f"layers.{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}"


def freeze_all_but(model: PreTrainedModel, method: Method) -> None:
    """Train what ``spectrum`` selects and nothing else: whole decoder layers, or single linears."""
    model.requires_grad_(False)
    paths = [module_path(module) for module in method.modules] or [f"layers.{layer}" for layer in method.layers]
    for path in paths:
        model.get_decoder().get_submodule(path).requires_grad_(True)


def check_method(method: Method, *, capability: tuple[int, int] | None) -> None:
    """Refuse what would crash, or silently run slowly, on a GPU of this CUDA compute capability (None: a CPU).

    Raises:
        LabError: bfloat16 below capability 8.0 (a T4 only emulates it), or bfloat16 adapters under float16 (the
            gradient scaler has no kernel for them).
    """
    if method.dtype == "float16" and method.adapter_dtype != "float32":
        rule = "float16 training scales the gradients, which works on float32 adapters only"
        raise LabError(f"adapter_dtype={method.adapter_dtype!r}", rule, 'use adapter_dtype="float32"')
    wants_bfloat16 = method.dtype == "bfloat16" or method.adapter_dtype in ("bfloat16", "autocast")
    if wants_bfloat16 and capability is not None and capability < AMPERE:
        given = f"dtype={method.dtype!r}, adapter_dtype={method.adapter_dtype!r}"
        rule = f"this GPU (compute capability {'.'.join(map(str, capability))}) has no bfloat16 units"
        raise LabError(given, rule, 'use dtype="float16" with adapter_dtype="float32"')


def capability_of(device: str) -> tuple[int, int] | None:
    """CUDA compute capability of ``device``, None for a CPU."""
    import torch

    return torch.cuda.get_device_capability(device) if device.startswith("cuda") else None


def load_base(
    weights: Weights, method: Method, *, tokenizer: PreTrainedTokenizerBase, device: str | None = None
) -> PreTrainedModel:
    """The pretrained model in ``method.dtype``, its linears in NF4 for ``qlora`` and ``qdora``, ready to train.

    Three traps are closed here: the element type is always said (transformers and TRL each have their own default),
    bitsandbytes may not repack the weights on a CPU, and the stop token is the tokenizer's.

    Raises:
        LabError: see `check_method`; or the folder holds no readable model, or pickled weights, which are not read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = device or default_device()
    check_method(method, capability=capability_of(device))
    refuse_pickles(weights.folder, SINGLE, INDEX)
    options = {"dtype": getattr(torch, method.dtype), "attn_implementation": "sdpa", "local_files_only": True}
    if method.quantized:
        options |= {"quantization_config": bnb_config(method), "device_map": {"": device}}
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(str(weights.folder), use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        rule = f"no model can be read from it ({_first_line(error)})"
        raise LabError(str(weights.folder), rule, "name a folder with config.json and model.safetensors") from error
    forbid_cpu_repacking(model)
    align(model, tokenizer)
    return model if method.quantized else model.to(device)


def forbid_cpu_repacking(model: torch.nn.Module) -> int:
    """Keep bitsandbytes from rewriting 4-bit weights on CPUs with AVX512-BF16; returns how many linears there are.

    Its first forward without gradients repacks a weight in place (``Linear4bit.forward``, bitsandbytes 0.50). From then
    on training loses the gradient through that weight, and dequantizing it (DoRA's norms, a merge) reads garbage.
    """
    from bitsandbytes.nn import Linear4bit

    linears = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for linear in linears:
        linear.support_avx512bf16_for_cpu = False
    return len(linears)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
