"""``labkit sweep``: plan, run, continue, refuse."""

import json

import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.training import sweep
from labkit.training.trial import blank_row

GRID = 'profile = "tiny"\n[[grid]]\nname = "r"\nrank = [2, 4]\nseeds = [0, 1]\n'


@pytest.fixture
def run(tmp_path, monkeypatch):
    def quick(trial):
        scores = {"heldout_loss_before": 5.0, "heldout_loss_after": 4.0}
        return blank_row(trial) | (scores if trial.seed else {"error": "ValueError: seed 0"})

    monkeypatch.chdir(tmp_path)
    real = sweep.run_sweep
    monkeypatch.setattr(sweep, "run_sweep", lambda *given, **options: real(*given, run=quick, **options))
    (tmp_path / "my.toml").write_text(GRID)
    return lambda *flags: CliRunner().invoke(app, ["sweep", "my.toml", *flags])


def test_a_plan_lists_the_trials_and_runs_nothing(run, tmp_path):
    plan = json.loads(run("--plan", "--json").stdout)
    assert [(trial["settings"]["rank"], trial["settings"]["seed"]) for trial in plan if trial["blocks"] == ["r"]]
    assert len(plan) == 4
    assert not (tmp_path / "runs").exists()
    assert "4 trials" in run("--plan").stdout


def test_a_sweep_runs_goes_on_and_tells_what_it_did(run, tmp_path):
    told = json.loads(run("--json").stdout)
    assert told | {"seconds": 0} == {
        "file": "runs/my.jsonl", "trials": 4, "found": 0, "ran": 4, "failed": 2, "seconds": 0,
    }  # fmt: skip
    again = run()
    assert "0 trials run, 0 failed, 4 were there" in again.stdout
    assert json.loads(run("--retry", "--json").stdout)["ran"] == 2
    assert json.loads(run("--force", "--json").stdout)["ran"] == 4
    assert json.loads(run("--out", str(tmp_path / "other.jsonl"), "--json").stdout)["ran"] == 4


def test_progress_says_each_result(run):
    said = run().output
    assert "held-out loss 5.000 to 4.000" in said
    assert "ValueError: seed 0" in said


def test_a_chinese_student_follows_a_sweep_in_chinese(run, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    assert "4 次试验" in run("--plan").stdout
    said = run().output
    for words in ("留出集损失 5.000 → 4.000", "：ValueError: seed 0", "运行了 4 次试验，失败 2 次，原来就有 0 次"):
        assert words in said


@pytest.mark.parametrize(
    ("flags", "message"), [(["--engine", "slurm"], "local, ray"), (["--profile", "lap"], "laptop")]
)
def test_what_cannot_be_is_refused(run, flags, message):
    error = run(*flags).exception
    assert isinstance(error, LabError)
    assert message in str(error)
