"""Both measurements against a plain, slow, unbatched computation of the same thing."""

import pytest
import torch

from labkit.errors import LabError
from labkit.training.constraints import rate
from labkit.training.evaluate import answer, evaluating, follow_report, heldout_loss, tokens_and_labels


def slow_loss(model, tokenizer, rows):
    """transformers' own loss, one row at a time, weighted by the row's answer tokens."""
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([values]) for values in tokens_and_labels(row, tokenizer))
        n = int((labels != -100).sum())
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * n
        count += n
    return total / count, count


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_loss_is_transformers_own_whatever_the_batches(load, tokenizer, rows, kind, batch_size):
    model = load(kind)
    expected, n = slow_loss(model, tokenizer, rows)
    loss, tokens = heldout_loss(model, tokenizer, rows, batch_size=batch_size)
    assert tokens == n and loss == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_trainers_own(trainer_for, tokenizer, rows):
    from labkit.training.data import to_messages

    trainer = trainer_for("qlora")
    trainer.train()
    from datasets import Dataset

    metrics = trainer.evaluate(Dataset.from_list([to_messages(rows[3])]))  # one row: no averaging over batches
    assert heldout_loss(trainer.model, tokenizer, [rows[3]])[0] == pytest.approx(metrics["eval_loss"], rel=1e-5)


def test_labels_are_the_trainers_own(trainer_for, tokenizer, rows):
    dataset = trainer_for().train_dataset
    trained_on = list(zip(dataset["input_ids"], dataset["labels"], strict=True))
    assert [tokens_and_labels(row, tokenizer) for row in rows] == trained_on


def test_no_rows_have_no_mean(load, tokenizer):
    with pytest.raises(LabError, match="0 held-out rows"):
        heldout_loss(load(), tokenizer, [])


def slow_answer(model, tokenizer, instruction, max_new_tokens):
    """Greedy decoding by hand: no batch, no padding, no cache."""
    text = f"<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text)["input_ids"]
    start = len(ids)
    while len(ids) - start < max_new_tokens:
        with torch.no_grad():
            chosen = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if chosen in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            break
        ids.append(chosen)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.fixture
def trained(trainer_for):
    trainer = trainer_for("qlora", steps=40)
    trainer.train()
    return trainer.model.eval()


def test_answers_are_greedy_and_in_order_whatever_the_batches(trained, tokenizer, rows):
    questions = [row.instruction for row in rows[:6]] + ["", "Tea?"]  # lengths differ, so padding matters
    expected = [slow_answer(trained, tokenizer, text, 10) for text in questions]
    assert len(set(expected)) > 1  # or order would not show
    for batch_size in (1, 3, 8):
        assert answer(trained, tokenizer, questions, max_new_tokens=10, batch_size=batch_size) == expected


def test_a_trained_model_stops_by_itself_and_the_stop_token_is_not_in_the_text(trained, tokenizer, rows):
    texts = answer(trained, tokenizer, [row.instruction for row in rows], max_new_tokens=64)
    assert any(len(tokenizer(text)["input_ids"]) < 64 for text in texts)
    assert not any("<|" in text for text in texts)


def test_no_questions_no_answers(load, tokenizer):
    assert answer(load(), tokenizer, [], max_new_tokens=4) == []


def test_evaluation_leaves_the_mode_and_the_weights_as_they_were(trainer_for, tokenizer, rows):
    model = trainer_for("qdora").model
    for mode in (True, False):
        model.train(mode)
        before = [weight.detach().clone() for weight in model.parameters()]
        heldout_loss(model, tokenizer, rows[:3])
        answer(model, tokenizer, ["Tea?"], max_new_tokens=2)
        assert model.training is mode
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_dropout_is_off_and_comes_back_even_after_an_error(trainer_for):
    model = trainer_for("lora", dropout=0.5).model.train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert model.training and torch.is_grad_enabled()


def test_the_report_counts_rows_and_kinds(rows):
    texts = [row.response for row in rows]
    texts[0] = "no bullets"  # row 0 asks for bullets
    report = follow_report(rows, texts)
    assert (report.kept, report.rows) == (23, 24) and report.rate == pytest.approx(rate(rows, texts))
    assert report.by_kind == {"bullets": (7, 8), "language": (8, 8), "yes_no": (8, 8)}
    assert report.low < report.rate < report.high <= 1


def test_rows_without_rules_do_not_count(rows):
    from dataclasses import replace

    free = [replace(row, constraints=()) for row in rows]
    assert follow_report(free, ["x"] * 24) is None
    assert follow_report([*free, rows[1]], ["x"] * 24 + ["Yes."]).rows == 1
    with pytest.raises(ValueError, match="shorter"):
        follow_report(rows, ["one text"])
