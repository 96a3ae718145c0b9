"""The trainer that comes out of the recipe, checked on the object itself; and the audit, which must catch each trap."""

import dataclasses
import types

import pytest
import torch
from trl.trainer import utils

from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.theory.memory import predict
from labkit.training import recipe
from labkit.training.audit import audit, refuse_long_rows, token_counts, trainable_dtype
from labkit.training.evaluate import answer, heldout_loss
from labkit.training.recipe import build_trainer, cast_trainables, mixed_precision, one_gpu, sft_config

QLORA = Method(kind="qlora", rank=4, dtype="float32")
GPU = PROFILES["gpu"]


def trainable(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def without(monkeypatch, name, replacement=lambda *_, **__: None):
    """Build as if one of the recipe's fixes were not there."""
    monkeypatch.setattr(recipe, name, replacement)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "qlora", "dora", "qdora"])
def test_adapters_train_in_float32_on_every_base(trainer_for, kind):
    model = trainer_for(kind, dtype="bfloat16").model
    assert {weight.dtype for weight in trainable(model).values()} == {torch.float32}
    assert all("lora_" in name for name in trainable(model))


def test_without_the_cast_trl_leaves_bfloat16_adapters_and_the_audit_says_so(trainer_for, monkeypatch):
    without(monkeypatch, "cast_trainables")
    with pytest.raises(LabError, match=r"is torch\.bfloat16.*must train in torch\.float32"):
        trainer_for("qlora")


def test_bfloat16_adapters_only_where_asked_for_and_never_the_magnitude(trainer_for):
    dtypes = {
        name: weight.dtype for name, weight in trainable(trainer_for("qdora", adapter_dtype="bfloat16").model).items()
    }
    assert {dtype for name, dtype in dtypes.items() if "magnitude" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "magnitude" not in name} == {torch.bfloat16}


def test_full_fine_tuning_trains_every_weight_in_the_methods_type(trainer_for):
    model = trainer_for("full", dtype="bfloat16").model
    assert len(trainable(model)) == len(list(model.parameters()))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert trainable_dtype(Method(kind="full", dtype="float16")) == torch.float32  # for the gradient scaler


def test_float16_turns_on_the_gradient_scaler_and_nothing_turns_on_bf16_by_itself():
    assert mixed_precision(Method(kind="qlora", dtype="float16")) == {"fp16": True, "bf16": False}
    assert mixed_precision(Method(kind="qlora", dtype="bfloat16")) == {"fp16": False, "bf16": False}
    assert mixed_precision(Method(kind="lora", adapter_dtype="autocast")) == {"fp16": False, "bf16": True}


@pytest.mark.parametrize(("capability", "dtype", "fp16"), [((7, 5), "float16", True), ((8, 0), "bfloat16", False)])
def test_the_gpu_profile_on_a_t4_and_on_an_a100(monkeypatch, tmp_path, capability, dtype, fp16):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
    assert recipe.settled_method(GPU).dtype == dtype
    assert mixed_precision(recipe.settled_method(GPU)) == {"fp16": fp16, "bf16": False}
    assert trainable_dtype(recipe.settled_method(GPU)) == torch.float32


def scaled(trainer):
    """The trainer as accelerate prepares it on a T4, under float16 autocast with the gradient scaler; on the CPU."""
    assert (trainer.args.fp16, trainer.args.bf16, trainer.accelerator.mixed_precision) == (True, False, "fp16")
    trainer.accelerator.scaler, trainer.accelerator.native_amp = torch.amp.GradScaler("cpu"), True
    return trainer


def test_a_t4s_recipe_trains_float32_adapters_on_a_float16_base_through_the_gradient_scaler(trainer_for):
    trainer = scaled(trainer_for("qlora", dtype="float16", checkpointing=True, steps=8))
    linear = trainer.model.get_decoder().layers[0].mlp.up_proj.base_layer
    assert linear.compute_dtype == torch.float16
    assert trainer.model.get_input_embeddings().weight.dtype == torch.float16
    before = {name: weight.detach().clone() for name, weight in trainable(trainer.model).items()}
    assert {weight.dtype for weight in before.values()} == {torch.float32}
    losses = [log["loss"] for log in _trained(trainer)]
    assert losses[-1] < 0.9 * losses[0]
    assert trainer.accelerator.scaler.get_scale() == 65536  # no step was skipped for an overflow
    assert {weight.dtype for weight in trainable(trainer.model).values()} == {torch.float32}
    assert not [name for name, weight in trainable(trainer.model).items() if torch.equal(weight, before[name])]


def test_float16_adapters_would_stop_in_the_scaler(trainer_for):
    """So the test above sees the scaler at work."""
    trainer = scaled(trainer_for("qlora", dtype="float16"))
    for weight in trainable(trainer.model).values():
        weight.data = weight.data.half()
    with pytest.raises(ValueError, match="unscale FP16"):
        trainer.train()


def test_a_t4_trains_and_measures_whole_weights_in_float32_inside_a_float16_model(
    trainer_for, tokenizer, rows, weights
):
    """What stays is 6 of the 10 bytes that `peak_bytes` counts; the gradient's 2 and autocast's 2 are gone by then."""
    chosen = {"modules": ("0.up_proj", "1.q_proj"), "dtype": "float16"}
    trainer = scaled(trainer_for("spectrum", steps=8, **chosen))
    losses = [log["loss"] for log in _trained(trainer)]
    assert losses[-1] < losses[0]
    model, trained = trainer.model, trainable(trainer.model)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.float16}
    states = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *states])
    found = predict(shape_of(str(weights.folder)), Method(kind="spectrum", **chosen), Step(batch=4, seq_len=96))
    assert found.trainable_params == sum(weight.numel() for weight in trained.values())
    assert held == found.static_bytes + 6 * found.trainable_params
    measured, texts = heldout_loss(model, tokenizer, rows)[0], answer(model, tokenizer, ["Tea?"], max_new_tokens=4)
    exact = model.float()
    assert measured == pytest.approx(heldout_loss(exact, tokenizer, rows)[0], rel=2e-3)
    assert texts == answer(exact, tokenizer, ["Tea?"], max_new_tokens=4)


# --- TRL's settings --------------------------------------------------------------------------------------------------


def test_settings_on_a_cpu(profile, tmp_path):
    config = sft_config(profile, tmp_path, device="cpu")
    assert (config.use_cpu, config.bf16, config.fp16) == (True, False, False)
    assert (config.gradient_checkpointing, config.dataloader_pin_memory) == (False, False)
    assert (config.max_length, config.max_steps, config.learning_rate) == (96, 3, 5e-3)
    assert (config.completion_only_loss, config.packing, config.report_to) == (True, False, [])
    assert config.n_gpu <= 1 and config.device.type == "cpu"


def test_checkpointing_is_never_reentrant(profile, tmp_path):
    config = sft_config(dataclasses.replace(profile, checkpointing=True), tmp_path, device="cpu")
    assert config.gradient_checkpointing and config.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_two_visible_gpus_do_not_mean_dataparallel(profile, tmp_path):
    config = sft_config(profile, tmp_path, device="cpu")
    config._n_gpu = 2  # what transformers finds on a machine with two
    assert one_gpu(config).n_gpu == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_updates_the_adapters_and_nothing_else(trainer_for, checkpointing):
    trainer = trainer_for("qlora", checkpointing=checkpointing, dropout=0.0)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == set(trainable(trainer.model))


def test_checkpointing_changes_memory_not_results(trainer_for):
    losses = [[log["loss"] for log in _trained(trainer_for(checkpointing=on, dropout=0.0))] for on in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _trained(trainer):
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


def test_the_same_seed_gives_the_same_curve_and_another_seed_another(trainer_for):
    curves = [[log["loss"] for log in _trained(trainer_for(seed=seed))] for seed in (1, 1, 2)]
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_only_answers_enter_the_head_and_the_curve_is_the_one_without(trainer_for, monkeypatch, kind):
    """Of TRL 1.16; where its switch is gone `score_answers_only` does nothing, and this test says so."""
    head, scored = utils._ChunkedLogProbFunction, []

    def apply(hidden, *rest):
        scored.append(len(hidden))
        return head.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", types.SimpleNamespace(apply=apply))
    switch, trainer = utils._use_triton, trainer_for(kind, steps=6)  # 6 steps see each of the 24 rows once
    curve = _trained(trainer)
    assert utils._use_triton is switch
    assert sum(scored) == sum(label != -100 for row in trainer.train_dataset for label in row["labels"])
    without(monkeypatch, "score_answers_only")
    plain = _trained(trainer_for(kind, steps=6))
    assert sum(scored[6:]) > 2 * sum(scored[:6])
    for name in ("loss", "grad_norm", "mean_token_accuracy", "num_tokens"):
        assert [log[name] for log in curve] == pytest.approx([log[name] for log in plain], rel=1e-5)


def test_training_learns(trainer_for, rows):
    losses = [log["loss"] for log in _trained(trainer_for("qlora", steps=25))]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_an_evaluation_in_mid_training_leaves_the_gradient_alone(trainer_for, tokenizer):
    """Fails without `forbid_cpu_repacking` on a CPU with AVX512-BF16: the gradient through the base is lost."""
    trainer = trainer_for("qlora", dropout=0.0)
    batch = trainer.data_collator([trainer.train_dataset[0]])

    def gradient():
        trainer.model.zero_grad()
        trainer.model.train()
        trainer.model(**batch).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in trainable(trainer.model).values()])

    before = gradient()
    trainer.model.eval()
    with torch.no_grad():
        trainer.model(**batch)
    assert torch.equal(gradient(), before)
    assert before.norm() > 0


def test_kbit_preparation_happens_only_where_asked_for(trainer_for):
    assert trainer_for("qlora", dtype="bfloat16").model.get_input_embeddings().weight.dtype == torch.bfloat16
    prepared = trainer_for("qlora", dtype="bfloat16", kbit_prepare=True).model
    assert prepared.get_input_embeddings().weight.dtype == torch.float32


def test_adapters_go_into_the_selected_layers_only(trainer_for):
    assert {name.split(".layers.")[1][0] for name in trainable(trainer_for("lora", layers=(1,)).model)} == {"1"}
    with pytest.raises(LabError, match="layers 0 to 1"):
        trainer_for("lora", layers=(1, 2))


# --- what carries loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_spectrum_trains_the_selected_modules_whole_and_nothing_else(trainer_for, checkpointing):
    chosen = {"modules": ("0.v_proj", "1.down_proj"), "dtype": "float32"}
    trainer = trainer_for("spectrum", checkpointing=checkpointing, **chosen)
    wanted = {"model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    assert set(trainable(trainer.model)) == wanted
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == wanted


def test_spectrum_trains_whole_layers_where_layers_are_given(trainer_for):
    names = set(trainable(trainer_for("spectrum", layers=(1,), dtype="float32").model))
    assert names and all(".layers.1." in name for name in names)
    assert any("norm" in name for name in names)


def test_adapters_go_into_the_selected_modules_only(trainer_for):
    names = trainable(trainer_for("lora", modules=("0.v_proj", "1.down_proj")).model)
    assert {name.split(".lora_")[0].split("layers.")[1] for name in names} == {"0.self_attn.v_proj", "1.mlp.down_proj"}


def test_exactly_the_answer_and_its_stop_token_carry_loss(trainer_for, tokenizer, rows):
    dataset = trainer_for().train_dataset
    for row, labels in zip(rows, dataset["labels"], strict=True):
        assert tokenizer.decode([label for label in labels if label != -100]) == row.response + "<|im_end|>"


def test_a_padded_batch_keeps_the_stop_token_and_ignores_the_padding(trainer_for, tokenizer):
    trainer = trainer_for()
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    rows = [trainer.train_dataset[lengths.index(length)] for length in (min(lengths), max(lengths))]
    labels = trainer.data_collator([{k: row[k] for k in ("input_ids", "labels")} for row in rows])["labels"]
    short = labels[0].tolist()
    assert short[min(lengths) - 1] == tokenizer.eos_token_id
    assert set(short[min(lengths) :]) == {-100}


def test_a_template_that_puts_loss_on_the_wrong_tokens_fails_the_audit(load, tokenizer, profile, rows, tmp_path):
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>' }}", "'<|im_end|>\\n' }}")
    with pytest.raises(LabError, match="the loss is on"):
        build_trainer(load(), tokenizer, profile, rows, tmp_path)


@pytest.mark.parametrize("where", ["tokenizer", "config", "generation_config"])
def test_a_lost_stop_token_fails_the_audit(trainer_for, rows, where):
    trainer = trainer_for()
    if where == "tokenizer":
        trainer.processing_class.eos_token = "<|endoftext|>"
    elif where == "config":
        trainer.model.config.eos_token_id = 0
    else:
        trainer.model.generation_config.eos_token_id = 0
    with pytest.raises(LabError, match="eos_token"):
        audit(trainer, rows, QLORA)


def test_padding_with_the_stop_token_fails_the_audit(trainer_for, rows):
    trainer = trainer_for()
    trainer.processing_class.pad_token = "<|im_end|>"
    with pytest.raises(LabError, match="padding must not be the stop token"):
        audit(trainer, rows, QLORA)


def test_a_collator_that_masks_by_token_id_fails_the_audit(trainer_for, tokenizer, rows):
    """The classic mistake: every label equal to the padding's id becomes -100, and with it the stop token."""
    trainer = trainer_for()
    right = trainer.data_collator

    def by_id(features):
        batch = right(features)
        batch["labels"][batch["labels"] == tokenizer.eos_token_id] = -100
        return batch

    trainer.data_collator = by_id
    with pytest.raises(LabError, match="padding must not change what carries loss"):
        audit(trainer, rows, QLORA)


def test_a_dropped_row_fails_the_audit(trainer_for, rows):
    trainer = trainer_for()
    trainer.train_dataset = trainer.train_dataset.select(range(len(rows) - 1))
    with pytest.raises(LabError, match="23 of 24 rows: no row may be dropped"):
        audit(trainer, rows, QLORA)


def test_a_repackable_linear_fails_the_audit(trainer_for, rows):
    trainer = trainer_for()
    linear = next(m for m in trainer.model.modules() if type(m).__name__ == "Linear4bit" and hasattr(m, "quant_state"))
    linear.support_avx512bf16_for_cpu = True
    with pytest.raises(LabError, match="repack"):
        audit(trainer, rows, QLORA)


def test_a_tied_head_that_would_be_saved_alone_fails_the_audit(trainer_for, rows):
    trainer = trainer_for()
    trainer.model.peft_config["default"].modules_to_save = ["lm_head"]
    with pytest.raises(LabError, match="tied weights"):
        audit(trainer, rows, QLORA)


def test_nothing_trainable_fails_the_audit(trainer_for, rows):
    trainer = trainer_for()
    trainer.model.requires_grad_(False)
    with pytest.raises(LabError, match="no trainable parameter"):
        audit(trainer, rows, QLORA)


def test_casting_leaves_frozen_weights_alone():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    cast_trainables(model, QLORA)
    assert [weight.dtype for weight in model.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2


# --- no silent loss of rows ------------------------------------------------------------------------------------------


def test_token_counts_are_the_trainers(trainer_for, tokenizer, rows):
    assert token_counts(rows, tokenizer) == [len(ids) for ids in trainer_for().train_dataset["input_ids"]]


def test_long_rows_are_refused_with_their_ids_and_the_length_that_would_do(load, tokenizer, profile, rows, tmp_path):
    longest = max(token_counts(rows, tokenizer))
    assert refuse_long_rows(rows, tokenizer, seq_len=longest) == []
    short = dataclasses.replace(profile, seq_len=longest - 1)
    with pytest.raises(LabError, match=rf"row-\d+.*longer than seq_len={longest - 1}.*seq_len={longest} or more"):
        build_trainer(load(), tokenizer, short, rows, tmp_path)


def test_long_rows_are_cut_where_asked_for_and_still_counted(load, tokenizer, profile, rows, tmp_path):
    longest = max(token_counts(rows, tokenizer))
    long = refuse_long_rows(rows, tokenizer, seq_len=longest - 1, truncate=True)
    assert long and set(long) <= {row.id for row in rows}
    short = dataclasses.replace(profile, seq_len=longest - 1)
    trainer = build_trainer(load(), tokenizer, short, rows, tmp_path, truncate=True)
    assert len(trainer.train_dataset) == len(rows)


def test_rows_whose_whole_answer_would_be_cut_are_refused_even_then(load, tokenizer, profile, rows, tmp_path):
    tiny = dataclasses.replace(profile, seq_len=8)  # TRL would drop all these rows without a word
    with pytest.raises(LabError, match=r"row-0.*nothing is left of the answer"):
        build_trainer(load(), tokenizer, tiny, rows, tmp_path, truncate=True)


def test_no_rows_at_all_are_refused(load, tokenizer, profile, tmp_path):
    with pytest.raises(LabError, match="nothing to train on"):
        build_trainer(load(), tokenizer, profile, [], tmp_path)


def test_progress_hands_every_step_to_the_listener(load, tokenizer, profile, rows, tmp_path, capsys):
    seen = []
    callback = recipe.progress_callback(lambda name, point: seen.append((name, point)), bar=False)
    trainer = build_trainer(load(), tokenizer, profile, rows, tmp_path, callbacks=[callback])
    trainer.train()
    assert [(name, point["step"]) for name, point in seen] == [("step", 1), ("step", 2), ("step", 3)]
    assert [point["tokens"] for _, point in seen] == sorted(point["tokens"] for _, point in seen)
    assert capsys.readouterr().out == ""  # standard output belongs to --json


def test_a_curve_point_survives_a_loss_that_is_no_number():
    log = {"step": 1, "loss": float("nan"), "learning_rate": 0.1, "grad_norm": float("inf"), "num_tokens": 7.0}
    point = recipe.curve_point(log)
    assert point == {"step": 1, "loss": None, "learning_rate": 0.1, "grad_norm": None, "tokens": 7}
