"""Setup on machines that are not this one: other Pythons, a GPU, no network, no disk; and what it says then."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import setup_env
from scripts.setup_env import SetupError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A PATH of pretended interpreters: `machine("python3.12", (3, 12, 1), venv=True, torch=None)`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(setup_env, "CANDIDATES", ("pretend-a", "pretend-b"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "there-is-none"))

    def add(name, version, *, venv=True, torch=None):
        path = tmp_path / name
        said = json.dumps([str(path), str(path), list(version), venv, torch, None])
        path.write_text(f"#!/bin/sh\necho '{said}'\n")
        path.chmod(0o755)
        return str(path)

    return add


def test_the_first_interpreter_that_fits_is_taken(machine):
    machine("pretend-a", (3, 10, 4))
    fits = machine("pretend-b", (3, 12, 1), torch="2.11.0+cu128")
    chosen = setup_env.choose_python(None)
    assert (chosen.path, chosen.name, chosen.torch) == (fits, "Python 3.12.1", "2.11.0+cu128")


def test_an_interpreter_without_venv_is_passed_over(machine):
    machine("pretend-a", (3, 11, 2), venv=False)
    fits = machine("pretend-b", (3, 13, 0))
    assert setup_env.choose_python(None).path == fits


def test_without_venv_the_debian_package_is_named(machine):
    machine("pretend-a", (3, 12, 3), venv=False)
    with pytest.raises(SetupError, match=r"Python 3\.12\.3 has no venv.*apt-get install python3\.12-venv"):
        setup_env.choose_python(None)


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 14, 0), (2, 7, 18)])
def test_an_unsupported_python_is_echoed_with_the_rule(machine, version):
    machine("pretend-a", version)
    with pytest.raises(
        SetupError, match="Python {}.{}.{}: the book needs Python 3.11, 3.12 or 3.13. Fix:".format(*version)
    ):
        setup_env.choose_python(None)


def test_a_named_interpreter_is_taken_or_refused_but_never_replaced(machine):
    machine("pretend-a", (3, 12, 1))
    named = machine("other", (3, 9, 0))
    with pytest.raises(SetupError, match=r"PYTHON=.*other"):
        setup_env.choose_python(named)
    with pytest.raises(SetupError, match="PYTHON=nonsense"):
        setup_env.choose_python("nonsense")


def test_a_shim_that_does_not_start_is_no_interpreter(machine, tmp_path):
    shim = tmp_path / "pretend-a"
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert setup_env.inspect(shim) is None
    with pytest.raises(SetupError, match="no Python: the book needs"):
        setup_env.choose_python(None)


def test_this_interpreter_describes_itself():
    import torch

    here = setup_env.inspect(sys.executable)
    assert here.version == tuple(sys.version_info[:3])
    assert here.supported
    assert here.torch == torch.__version__


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("2.11.0", True),
        ("2.11.0+cu128", True),
        ("3.0", True),
        ("2.9.1", False),
        ("1.13.1", False),
        ("", False),
        (None, False),
    ],
)
def test_versions_compare_as_numbers(version, enough):
    assert setup_env.at_least(version, (2, 11)) is enough


def test_without_a_gpu_linux_never_asks_for_a_torch_with_cuda():
    attempts = setup_env.torch_attempts(gpu=False, system="Linux")
    assert attempts
    assert all(arguments[0] == f"torch=={setup_env.CPU_TORCH}+cpu" for arguments in attempts.values())
    assert not any("--extra-index-url" in arguments for arguments in list(attempts.values())[:1])


def test_a_gpu_gets_the_index_as_it_is_and_a_mac_a_plain_version():
    assert list(setup_env.torch_attempts(gpu=True, system="Linux").values()) == [["torch>=2.11"]]
    assert list(setup_env.torch_attempts(gpu=False, system="Darwin").values()) == [["torch==2.13.0"]]


def test_the_override_wins_everywhere():
    wanted = "torch==2.11.0 --index-url https://example.org/cu126"
    for gpu in (True, False):
        assert list(setup_env.torch_attempts(gpu=gpu, system="Linux", override=wanted).values()) == [wanted.split()]


@pytest.mark.parametrize(
    ("script", "there"), [("echo 'GPU 0: Tesla T4 (UUID: x)'", True), ("echo 'No devices'; exit 6", False)]
)
def test_a_gpu_is_what_nvidia_smi_lists(machine, tmp_path, script, there):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    assert setup_env.has_nvidia_gpu() is there


def test_no_network_is_recognised_in_what_pip_really_prints():
    index = ["--isolated", "--index-url", "http://127.0.0.1:9/simple", "--retries", "1", "--timeout", "2"]
    command = [sys.executable, "-m", "pip", "download", *index, "labkit-nothing", "-d", "unused"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "does not answer. Fix: check the network" in setup_env.explain(done.stdout + done.stderr)


def test_a_missing_package_is_named_as_pip_names_it(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--isolated",
        "--no-index",
        "labkit-nothing",
        "-d",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "No matching distribution found for labkit-nothing" in setup_env.explain(done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'", "no permission"),
        ("", "pip failed"),
    ],
)
def test_other_failures_have_a_fix(output, said):
    assert said in setup_env.explain(output)
    assert "Fix: " in setup_env.explain(output)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(SetupError, match=r"GB free, setup needs about 1000000000 GB\. Fix: free some space"):
        setup_env.check_disk(tmp_path, 10**18)
    setup_env.check_disk(tmp_path, 1)


def test_a_stamp_is_believed_only_if_it_is_whole(tmp_path, monkeypatch):
    stamp = tmp_path / "stamp.json"
    monkeypatch.setattr(setup_env, "STAMP", stamp)
    assert setup_env.stamp() == {}
    stamp.write_text('{"folder": "/some')
    assert setup_env.stamp() == {}
    stamp.write_text(json.dumps(setup_env.fingerprint()))
    assert setup_env.stamp() == setup_env.fingerprint()


def test_the_fingerprint_follows_the_folder_and_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    for name in setup_env.INPUTS:
        (tmp_path / name).write_text("one")
    before = setup_env.fingerprint()
    assert before == setup_env.fingerprint()
    (tmp_path / setup_env.INPUTS[0]).write_text("two")
    assert setup_env.fingerprint()["inputs"] != before["inputs"]
    assert before["folder"] == str(tmp_path)


def test_an_older_python_can_read_the_script():
    # python3 is 3.8 or 3.9 on many machines that have a newer one beside it; the script looks for that one.
    source = Path(setup_env.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    imported = {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported <= sys.stdlib_module_names
