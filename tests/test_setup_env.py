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
        said = json.dumps([str(path), str(path), list(version), venv, torch, False, None])
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
    assert here.cpu_torch == (torch.version.cuda is None and torch.__file__.startswith(sys.prefix))


@pytest.mark.parametrize(
    ("version_file", "cpu"),
    [
        ("cuda: 'str | None' = None\n", True),
        ("cuda = '12.8'\n", False),
        (None, False),  # no torch of a kind that we know
    ],
)
def test_a_torch_for_the_cpu_is_told_without_importing_it(tmp_path, version_file, cpu):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("raise ImportError('takes seconds')")
    if version_file:
        (site / "torch" / "version.py").write_text(version_file)
    assert setup_env.inspect(tmp_path / "bin" / "python").cpu_torch is cpu


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
    for text in ('{"folder": "/some', "null", "[]"):
        stamp.write_text(text)
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


# --- a card that comes and goes ---------------------------------------------------------------------------------------


class Rented(setup_env.Venv):
    """A ``.venv`` whose pip installs nothing and remembers; torch becomes what ``brings`` says, or fails without."""

    python = Path("/bin/true")

    def __init__(self):
        self.torch, self.cpu, self.machines, self.brings, self.asked = None, False, False, None, []

    def inspect(self):
        about = ("python", "python", tuple(sys.version_info[:3]), True, self.torch, self.cpu, None)
        return setup_env.Interpreter(*about)

    def create(self, base, *, keep_torch):
        raise AssertionError("a .venv that can be used is kept")

    def step(self, what, command):
        return None

    def pip(self, what, *arguments):
        if not arguments[0].startswith("torch"):
            return None
        self.asked.append(arguments)
        if self.brings is None:
            return "the package index does not answer. Fix: check the network."
        self.torch, self.cpu = self.brings, self.brings.endswith("+cpu")
        return None


@pytest.fixture
def rented(tmp_path, monkeypatch):
    """rented(gpu=True, brings="2.14.0", LABKIT_TORCH="") runs setup on this machine and returns what pip was asked."""
    venv = Rented()
    for name, value in {"VENV": tmp_path, "STAMP": tmp_path / "stamp.json", "Venv": lambda: venv}.items():
        monkeypatch.setattr(setup_env, name, value)
    monkeypatch.setattr(setup_env, "check_disk", lambda folder, needed_bytes: None)
    monkeypatch.setattr(setup_env, "cuda_packages", lambda venv: [] if venv.cpu else ["nvidia-cublas"])
    monkeypatch.setattr(setup_env.platform, "system", lambda: "Linux")

    def setup(*, gpu, brings=None, override=""):
        monkeypatch.setenv("LABKIT_TORCH", override)
        monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: gpu)
        venv.brings, venv.asked = brings, []
        setup_env.setup(None)
        return venv.asked

    setup.venv = venv
    return setup


CUDA, CPU = "2.13.0", f"{setup_env.CPU_TORCH}+cpu"
RENEWED = [("torch>=2.11", "--force-reinstall")]


def test_a_card_that_appears_brings_cuda_once_and_says_why(rented, capsys):
    assert rented(gpu=False, brings=CPU) == [(f"torch=={CPU}",)]
    assert rented(gpu=False) == []
    capsys.readouterr()
    assert rented(gpu=True, brings=CUDA) == RENEWED
    assert f"there is an NVIDIA GPU now, and torch {CPU} is a build for the CPU" in capsys.readouterr().out
    assert rented(gpu=True) == []
    assert "up to date" in capsys.readouterr().out


def test_a_card_that_goes_takes_nothing_with_it(rented, monkeypatch, capsys):
    rented(gpu=True, brings=CUDA)
    assert rented(gpu=False) == []
    monkeypatch.setattr(setup_env, "INPUTS", setup_env.INPUTS[:1])  # the book has changed meanwhile
    assert rented(gpu=False) == []
    assert f"torch {CUDA} is there and is kept" in capsys.readouterr().out
    assert rented.venv.torch == CUDA
    assert setup_env.stamp()["gpu"] is True


def test_without_a_network_the_torch_for_the_cpu_stays_and_the_next_setup_tries_again(rented, capsys):
    rented(gpu=False, brings=CPU)
    assert rented(gpu=True) == RENEWED
    said = capsys.readouterr().out
    assert "does not answer" in said
    assert "the torch for the CPU stays" in said
    assert rented.venv.torch == CPU
    assert rented(gpu=True, brings=CUDA) == RENEWED


def test_an_index_without_cuda_is_asked_once(rented):
    rented(gpu=False, brings=CPU)
    rented(gpu=True, brings=CPU)
    assert rented(gpu=True) == []


def test_the_machines_own_torch_stays_until_another_is_asked_for(rented):
    rented.venv.torch, rented.venv.cpu = CUDA, False  # cpu_torch is False for one that is not in .venv
    assert rented(gpu=False) == rented(gpu=True) == []
    assert rented(gpu=True, brings="2.11.0", override="torch==2.11.0") == [("torch==2.11.0", "--force-reinstall")]


def test_a_torch_that_was_asked_for_is_installed_kept_and_changed_on_request(rented):
    wanted = f"torch=={CPU}"
    assert rented(gpu=True, brings=CPU, override=wanted) == [(wanted,)]
    assert rented(gpu=True) == rented(gpu=True, override=wanted) == []
    assert rented(gpu=True, brings=CUDA, override="torch>=2.11") == [("torch>=2.11", "--force-reinstall")]
    assert rented(gpu=False) == []
    with pytest.raises(SetupError, match="no torch for"):
        rented(gpu=False, override="torch==2.12.0")


def test_an_older_python_can_read_the_script():
    # python3 is 3.8 or 3.9 on many machines that have a newer one beside it; the script looks for that one.
    source = Path(setup_env.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    imported = {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported <= sys.stdlib_module_names
