"""The setup cell on a machine without labkit, and what `labkit.start` mends and reports."""

import importlib.metadata
import os
import subprocess
import sys
import types

import pytest

from labkit.course.setup_cell import setup_cell
from labkit.page import start as module


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Runs the setup cell in an interpreter without labkit; `pip` is replaced by a script that writes its arguments."""
    stand_in = tmp_path / "site" / "sitecustomize.py"
    stand_in.parent.mkdir()
    stand_in.write_text(
        "import importlib.util, subprocess, sys, types\n"
        "real = importlib.util.find_spec\n"
        "def find_spec(name, *rest):\n"
        "    return real(name, *rest) if name != 'labkit' else None\n"
        "importlib.util.find_spec = find_spec\n"
        "def run(command, **options):\n"
        "    print('PIP', *command[3:])\n"
        "    fake = types.ModuleType('labkit'); fake.start = lambda lang: print('START', lang)\n"
        "    fake.origin = 'site'\n"
        "    sys.modules['labkit'] = fake\n"
        "    importlib.util.find_spec = lambda name, *rest: fake\n"
        "    return subprocess.CompletedProcess(command, 0, '')\n"
        "subprocess.run = run\n"
    )

    def run(folder, **env):
        kept = {key: value for key, value in os.environ.items() if key not in ("LABKIT_REPO", "PYTHONPATH")}
        return subprocess.run(
            [sys.executable, "-c", setup_cell("zh")],
            cwd=folder,
            env=kept | {"PYTHONPATH": str(stand_in.parent)} | env,
            capture_output=True,
            text=True,
        )

    return run


def test_the_book_is_installed_and_torch_is_kept(bare, tmp_path):
    done = bare(tmp_path, LABKIT_REPO="git+https://example.org/book")
    assert done.returncode == 0, done.stderr
    _, pip, started = done.stdout.splitlines()
    assert pip.startswith("PIP install --no-color git+https://example.org/book ")
    for name in ("torch", "numpy"):
        assert f"{name}=={importlib.metadata.version(name)}" in pip
    assert started == "START zh"


def test_a_checkout_beside_the_notebook_is_used(bare, tmp_path):
    (tmp_path / "book" / "labkit").mkdir(parents=True)
    (tmp_path / "book" / "labkit" / "cli.py").touch()
    for folder in ("notebooks", "notebooks/zh"):
        (tmp_path / "book" / folder).mkdir(parents=True, exist_ok=True)
        done = bare(tmp_path / "book" / folder)
        assert f"PIP install --no-color {tmp_path / 'book'} " in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("https://example.org/owner/book", "git+https://example.org/owner/book"),
        ('"git+https://example.org/owner/book"', "git+https://example.org/owner/book"),
        ("https://example.org/labkit-0.1.0-py3-none-any.whl", "https://example.org/labkit-0.1.0-py3-none-any.whl"),
        (" '/content/drive/MyDrive/the book' ", "/content/drive/MyDrive/the book"),
    ],
)
def test_an_address_is_taken_as_people_paste_it(bare, tmp_path, typed, asked):
    assert f"PIP install --no-color {asked} torch==" in bare(tmp_path, LABKIT_REPO=typed).stdout


def test_without_a_repository_the_way_out_is_named(bare, tmp_path):
    done = bare(tmp_path)
    assert done.returncode == 1
    assert "%env LABKIT_REPO=" in done.stderr


def test_where_labkit_is_installed_nothing_is_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import subprocess\nsubprocess.run = None\n" + setup_cell("en")],
        cwd=tmp_path,
        env=os.environ | {"LABKIT_PROFILE": "tiny"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "profile tiny" in done.stdout


def test_a_module_replaced_under_the_kernel_stops_there_and_asks_for_a_restart(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(__version__="18.1.0"))
    assert any(name.startswith("pyarrow (18.1.0 -> ") for name in module.stale_modules())
    with pytest.raises(SystemExit, match="RESTART NEEDED: pyarrow"):
        module.start("en")


@pytest.mark.parametrize(
    ("version", "where", "removed"),
    [("0.10.0", "colab", True), ("0.15.3", "autodl", True), ("0.10.0", "local", False), ("0.16.0", "colab", False)],
)
def test_old_torchao_is_removed_only_where_it_came_preinstalled(monkeypatch, capsys, version, where, removed):
    calls = []
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(module, "place", lambda: where)
    monkeypatch.setattr(module.subprocess, "run", lambda command, check: calls.append(command))
    module.mend_torchao()
    assert bool(calls) == removed
    if where == "local":
        assert "breaks PEFT" in capsys.readouterr().out
