"""What was trained, saved and found again: the adapter alone, the model with its adapter, or one merged model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.files import new_folder
from labkit.models.integrity import refuse_pickles
from labkit.models.methods import DTYPE_BYTES
from labkit.models.profiles import Profile, settled_method
from labkit.models.shapes import ModelShape
from labkit.theory.resident import adapter_tensors, n_bytes
from labkit.training.record import ADAPTER_FOLDER, read_record

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from labkit.models.weights import Weights

ADAPTER_FILE = "adapter_model.safetensors"
MODEL_FOLDER = "model"  # of full fine-tuning, which has no adapter


def located(profile: Profile) -> Weights:
    """The profile's base weights, found or fetched."""
    from labkit.models.weights import locate

    return locate(profile)


def saved_bytes(shape: ModelShape, profile: Profile) -> int:
    """Bytes of what a run saves: the adapter, or all weights after full fine-tuning."""
    method = settled_method(profile)
    if method.uses_adapters:
        return n_bytes(adapter_tensors(shape, method))
    return shape.n_params * (4 if method.dtype == "float16" else DTYPE_BYTES[method.dtype])


def save_trained(model: PeftModel | PreTrainedModel, profile: Profile, folder: Path) -> Path:
    """The adapter in ``folder/adapter``, or after full fine-tuning the model in ``folder/model``."""
    if not settled_method(profile).uses_adapters:
        model.save_pretrained(str(folder / MODEL_FOLDER))
        return folder / MODEL_FOLDER
    for config in model.peft_config.values():
        config.base_model_name_or_path = profile.hub_id or profile.model  # a local path means nothing elsewhere
    # PEFT's default would ask the Hub whether the vocabulary has grown
    model.save_pretrained(str(folder / ADAPTER_FOLDER), save_embedding_layers=False)
    return folder / ADAPTER_FOLDER


def reload(
    out: Path | str, *, weights: Weights | None = None
) -> tuple[PeftModel | PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a run trained, on its base in the precision of the run, and its tokenizer.

    Args:
        out: the folder of a run.
        weights: the base model's files; None finds or downloads the profile's.

    Raises:
        LabError: no finished run there, or no base model; pickled weights, which are not read.
    """
    from labkit.training.loading import load_base, load_tokenizer, quiet

    profile, folder = read_record(out).profile, Path(out)
    with quiet():
        weights = weights or located(profile)
        tokenizer = load_tokenizer(weights)
        if profile.method.uses_adapters:
            model = load_base(weights, profile.method, tokenizer=tokenizer)
            return _with_adapter(model, folder / ADAPTER_FOLDER), tokenizer
        weights = replace(weights, folder=folder / MODEL_FOLDER)
        return load_base(weights, profile.method, tokenizer=tokenizer), tokenizer


def _with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        if not folder.is_dir():
            raise OSError("no such folder")  # PEFT would take the path for a name on the Hub
        refuse_pickles(folder, ADAPTER_FILE)  # PEFT would fall back on them
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        rule = f"the adapter cannot be read or does not fit this base ({str(error).splitlines()[0]})"
        fix = "use the base model of the run; if the files are damaged, run again"
        raise LabError(str(folder), rule, fix) from error


def merge(out: Path | str, dest: Path | str, *, weights: Weights | None = None, dtype: str | None = None) -> Path:
    """Write the model of a run as one plain model without adapter, with its tokenizer and chat template.

    Args:
        out: the folder of a run.
        dest: a folder that does not exist yet.
        weights: see `reload`.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps the run's (see `merging.merge_correctly`).

    Raises:
        LabError: see `reload`; ``dest`` exists or cannot be written; an unknown dtype.
    """
    from labkit.training.loading import quiet
    from labkit.training.merging import merge_correctly
    from labkit.training.template import align

    if dtype is not None and dtype not in DTYPE_BYTES:
        raise LabError(f"dtype={dtype!r}", f"dtype must be one of {', '.join(DTYPE_BYTES)}", "try dtype='bfloat16'")
    with new_folder(dest) as folder, quiet():
        model, tokenizer = reload(out, weights=weights)
        if hasattr(model, "peft_config"):
            model = merge_correctly(model, dtype=dtype)
        align(model, tokenizer)
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return Path(dest)
