"""The one fine-tuning recipe, shared by ``labkit sft`` and lesson 04: trl's SFTTrainer with its traps closed.

`build_trainer` makes a trainer and `audit` proves, on the object that will train, that nothing was lost on the way:
which parameters train and in which precision, that every row is there, that exactly the answer and its stop token
carry loss. TRL and PEFT change their defaults often; a default that breaks the recipe fails the audit, not the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.labels import text
from labkit.models.methods import Method
from labkit.models.profiles import Profile, settled_method
from labkit.training.audit import audit, refuse_long_rows, trainable_dtype
from labkit.training.data import Example, to_messages
from labkit.training.loading import default_device, freeze_all_but, lora_config, quiet
from labkit.training.processes import share

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig, SFTTrainer

WARMUP_SHARE = 0.1
CURVE = ("loss", "learning_rate", "grad_norm")


def mixed_precision(method: Method) -> dict[str, bool]:
    """The trainer's ``fp16`` and ``bf16`` switches, both always said (TRL turns bf16 on by itself).

    float16 needs the gradient scaler. bfloat16 and float32 need nothing: PEFT casts between the base's element type
    and the adapters' by itself. ``autocast`` runs float32 adapters in bfloat16.
    """
    return {"fp16": method.dtype == "float16", "bf16": method.adapter_dtype == "autocast"}


def sft_config(
    profile: Profile,
    out_dir: Path | str,
    *,
    seed: int = 0,
    device: str | None = None,
) -> SFTConfig:
    """TRL's settings for ``profile``, every trap's switch said in full.

    Args:
        profile: model, sizes, learning rate and method.
        out_dir: TRL demands one; nothing is written there (for checkpoints see `labkit.training.resume`).
        seed: seeds the adapter's init, the dropout and the order of rows.
        device: ``cpu`` or ``cuda:0``; None chooses as `loading.default_device`.
    """
    from trl import SFTConfig

    batch, accumulation = share(profile)
    on_cpu = (device or default_device()) == "cpu"
    with quiet():
        config = SFTConfig(
            output_dir=str(out_dir),
            max_steps=profile.steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=profile.learning_rate,  # TRL's default of 2e-5 is meant for full fine-tuning
            lr_scheduler_type="linear",
            warmup_steps=round(WARMUP_SHARE * profile.steps),
            max_length=profile.seq_len,
            completion_only_loss=True,
            packing=False,
            use_cpu=on_cpu,
            **mixed_precision(settled_method(profile)),
            average_tokens_across_devices=True,  # several processes: the loss is per token of the step, not of a share
            ddp_find_unused_parameters=False,  # everything that trains is used in every step
            gradient_checkpointing=profile.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            dataloader_pin_memory=not on_cpu,
            seed=seed,
            data_seed=seed,
            logging_steps=1,
            logging_nan_inf_filter=False,  # the default shows the last good loss in place of one that is no number
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
    return one_gpu(config)


def one_gpu(config: SFTConfig) -> SFTConfig:
    """Train on the first GPU where several are visible: transformers would wrap the model in DataParallel, TRL refuses.

    Under ``accelerate launch`` each process sees one GPU as its own and nothing changes.
    """
    if config.n_gpu > 1:
        config._n_gpu = 1  # the property has no setter
    return config


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    profile: Profile,
    examples: Sequence[Example],
    out_dir: Path | str,
    *,
    seed: int = 0,
    truncate: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """A trainer for ``profile``'s method on ``examples``, checked by `audit`; call its ``train()``.

    Args:
        model: from `loading.load_base`.
        tokenizer: from `loading.load_tokenizer`.
        profile: sizes, learning rate and method.
        examples: the training rows.
        out_dir: see `sft_config`.
        seed: see `sft_config`.
        truncate: cut rows that are longer than ``profile.seq_len`` tokens, instead of refusing them.
        callbacks: transformers callbacks, e.g. `Progress`.

    Raises:
        LabError: no rows, rows that are too long (with their ids), a layer that the model lacks, or a failed audit.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    method = settled_method(profile)
    _check_layers(method, model.config.num_hidden_layers)
    refuse_long_rows(examples, tokenizer, seq_len=profile.seq_len, truncate=truncate)
    with quiet():
        trainer = SFTTrainer(
            model=_prepared(model, method),
            args=sft_config(profile, out_dir, seed=seed, device=str(model.device)),
            train_dataset=Dataset.from_list([to_messages(example) for example in examples]),
            processing_class=tokenizer,
            peft_config=lora_config(method) if method.uses_adapters else None,
            callbacks=list(callbacks),
        )
    trainer.remove_callback(PrinterCallback)
    cast_trainables(trainer.model, method)
    score_answers_only(trainer)
    audit(trainer, examples, method, truncate=truncate)
    return trainer


def _prepared(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    """What PEFT's k-bit preparation does (the 16-bit rest of the model to float32) happens only where asked for.

    PEFT freezes the base by itself; where no adapter is made, what is not selected is frozen here.
    """
    if method.kind == "spectrum":
        freeze_all_but(model, method)
    if not method.kbit_prepare:
        return model
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def cast_trainables(model: torch.nn.Module, method: Method) -> None:
    """Put the trainable parameters in the precision that ``method`` names; call it after the trainer is made.

    TRL casts the adapters of a quantized model to bfloat16 (``SFTTrainer.__init__``, TRL 1.16). There a step of 1e-4
    is lost on a weight of 0.02, and float16 training crashes in the gradient scaler.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trainable_dtype(method, name))


def score_answers_only(trainer: SFTTrainer) -> None:
    """Let only the positions that carry loss enter the LM head on a CPU too, as TRL lets them on a GPU.

    Without Triton, TRL 1.16 (``trl.trainer.utils.add_fused_lm_head``) projects prompts and padding onto the vocabulary
    as well and drops them afterwards: a seventh of a step on the laptop profile. The losses are the same bits
    (``benchmarks/sft_speed.py``). A TRL that has no such switch is left as it is.
    """
    from trl.trainer import utils

    if not (without := getattr(utils, "_use_triton", None)):
        return
    compute_loss = trainer.compute_loss

    def compute(*args: Any, **options: Any) -> Any:
        utils._use_triton = lambda device: True  # this module's alone: it decides about positions, not about kernels
        try:
            return compute_loss(*args, **options)
        finally:
            utils._use_triton = without

    trainer.compute_loss = compute


def _check_layers(method: Method, n_layers: int) -> None:
    if method.layers and max(method.layers) >= n_layers:
        rule = f"this model has the layers 0 to {n_layers - 1}, and PEFT would leave out the others silently"
        raise LabError(f"layers={method.layers}", rule, "name layers that exist")


def progress_callback(
    on_event: Callable[[str, dict[str, Any]], None] | None = None, *, bar: bool = True
) -> TrainerCallback:
    """A callback with a one-line progress bar (on standard error) that hands each logged step to ``on_event``.

    ``on_event("step", point)`` is called once per optimizer step, with a `curve_point`.
    """
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            done = state.global_step  # of a run that is continued
            words = {"desc": text("training", "训练"), "unit": text("step", "步")}
            self.bar = tqdm(initial=done, total=state.max_steps, disable=not bar, dynamic_ncols=True, **words)

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                self.bar.update(state.global_step - self.bar.n)
                self.bar.set_postfix(loss=f"{logs['loss']:.3f}")
                if on_event is not None:
                    on_event("step", curve_point({**logs, "step": state.global_step}))

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    return Progress()


def curve_point(log: dict[str, Any]) -> dict[str, Any]:
    """One entry of ``trainer.state.log_history`` as a point of the loss curve; ``tokens`` counts from the start.

    A number that is not finite (a run that diverged) becomes None, which JSON can hold.
    """
    finite = {name: log[name] if math.isfinite(log.get(name, math.nan)) else None for name in CURVE}
    return {"step": log["step"], **finite, "tokens": int(log["num_tokens"])}
