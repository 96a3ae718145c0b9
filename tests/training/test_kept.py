"""Results that come back from the disk: only with the same settings, never damaged, and said aloud."""

import dataclasses

import pytest

from labkit.training import kept as kept_module
from labkit.training.evaluate import heldout_loss
from labkit.training.kept import digest, identity, kept
from labkit.training.resume import train_kept


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def made():
    """``made()`` counts its calls in ``made.calls``."""

    def make():
        make.calls += 1
        return {"loss": 1.5}, ["text"]

    make.calls = 0
    return make


def test_a_result_is_made_once_and_comes_back_said_aloud(made, capsys, monkeypatch):
    first = kept("loss", {"seed": 0}, made)
    assert capsys.readouterr().out == ""
    loss, texts = kept("loss", {"seed": 0}, made)
    assert (loss, texts) == (first[0], list(first[1]))
    assert "taken from" in capsys.readouterr().out
    monkeypatch.setenv("LABKIT_LANG", "zh")
    assert kept("loss", {"seed": 0}, made)[0] == loss
    assert capsys.readouterr().out.startswith("loss：取自 ")
    assert made.calls == 1


def test_other_settings_names_versions_and_force_make_it_again(made, monkeypatch):
    for name, settings in (("loss", {"seed": 0}), ("loss", {"seed": 1}), ("other", {"seed": 0})):
        kept(name, settings, made)
    kept("loss", {"seed": 0}, made, force=True)
    monkeypatch.setattr(kept_module, "versions", lambda: {"torch": "another"})
    kept("loss", {"seed": 0}, made)
    assert made.calls == 5


@pytest.mark.parametrize("damage", [lambda text: text[:-5], lambda text: text.replace("1.5", "2.5"), lambda _: "[1]"])
def test_a_damaged_file_is_said_and_made_again(made, runs, capsys, damage):
    kept("loss", {}, made)
    (path,) = (runs / "kept").iterdir()
    path.write_text(damage(path.read_text()))
    assert kept("loss", {}, made)[0]["loss"] == 1.5
    assert f"{path} is damaged" in capsys.readouterr().out
    assert made.calls == 2
    kept("loss", {}, made)
    assert made.calls == 2


def test_what_fails_is_not_kept(runs):
    with pytest.raises(ZeroDivisionError):
        kept("loss", {}, lambda: 1 / 0)
    assert list(runs.iterdir()) == []


def test_the_identity_changes_with_everything_that_decides_the_result(profile, rows):
    one = identity(profile, rows)
    others = [
        identity(dataclasses.replace(profile, steps=4), rows),
        identity(profile, rows, seed=1),
        identity(profile, rows, truncate=True),
        identity(profile, rows[1:]),
        identity(profile, [dataclasses.replace(rows[0], response="Other."), *rows[1:]]),
    ]
    assert len({digest(settings) for settings in (one, *others)}) == 6
    assert digest(dict(reversed(one.items()))) == digest(one)


def test_a_finished_training_is_loaded_and_force_trains_again(trainer_for, profile, rows, tokenizer, tmp_path):
    settings, said = identity(profile, rows), []
    first = trainer_for(dropout=0.0)
    train_kept(first, tmp_path / "checkpoints", settings, say=said.append)
    assert said == []
    second = trainer_for(dropout=0.0)
    used = train_kept(second, tmp_path / "checkpoints", settings, say=said.append)
    assert "3 of 3 steps taken from" in said[0]
    assert used.resumed == [3]
    losses = [heldout_loss(trainer.model, tokenizer, rows)[0] for trainer in (first, second)]
    assert losses[0] == losses[1]
    curves = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (first, second)]
    assert curves[0] == curves[1] and len(curves[0]) == profile.steps
    assert train_kept(trainer_for(), tmp_path / "checkpoints", settings, force=True).resumed == []
