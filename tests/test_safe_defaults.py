"""What nobody has to switch on: no code of strangers, no pickles, JupyterLab behind a token, no network on `tiny`."""

import ast
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("labkit", "lessons", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
WITHOUT_WEIGHTS = ("AutoTokenizer", "AutoConfig", "PeftModel")  # PeftModel has no switch: labkit looks first


def calls(text):
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


def said(call, name):
    """The constant that a call gives the keyword ``name``, or None."""
    return next((word.value.value for word in call.keywords if word.arg == name), None)


def faults(text):
    """The calls in a source that would run a stranger's code or open a pickle."""
    found = []
    for call in calls(text):
        function = ast.unparse(call.func)
        name = function.rpartition(".")[2]
        loads = name == "from_pretrained" and function.split(".")[0] not in WITHOUT_WEIGHTS
        if loads and said(call, "use_safetensors") is not True:
            found.append(f"{function} without use_safetensors=True")
        if function == "torch.load" and said(call, "weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if function in ("pickle.load", "pickle.loads", "joblib.load", "dill.load", "pandas.read_pickle", "eval"):
            found.append(function)
        if function.endswith("load_dataset"):
            found.append(f"{function}: use load_dataset_builder and look at its format")
    return found + ["trust_remote_code"] * ("trust_remote_code" in text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_a_strangers_code_or_opens_a_pickle(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoModelForCausalLM.from_pretrained(folder)",
        "transformers.AutoModel.from_pretrained(folder, use_safetensors=False)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "datasets.load_dataset(name)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_what_the_last_test_would_find(line):
    assert len(faults(line)) == 1


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab as `labkit lab` starts it: (port, token, process id)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "labkit.cli", "lab", "--no-browser", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        address = next(
            match
            for line in process.stdout
            if (match := re.search(r"http://127\.0\.0\.1:(\d+)/\S*\?token=(\w+)", line))
        )
        _wait_until_it_listens(int(address[1]))  # it names its address a moment before
        yield int(address[1]), address[2], process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _wait_until_it_listens(port):
    for _ in range(240):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.25)
    raise AssertionError("JupyterLab did not answer within a minute")


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_running_lab_answers_on_loopback_only_and_only_to_its_token(lab):
    import psutil

    port, token, pid = lab
    contents = f"http://127.0.0.1:{port}/api/contents"
    assert status(contents) == status(f"{contents}?token=wrong") == 403
    assert status(f"{contents}?token={token}") == 200
    assert len(token) >= 32
    heard = set()
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # JupyterLab asks short-lived programs for their versions
            places = process.net_connections(kind="inet")
            heard |= {place.laddr.ip for place in places if place.status == psutil.CONN_LISTEN}
    assert heard == {"127.0.0.1"}


def test_importing_every_module_reaches_for_nothing(tmp_path):
    program = (
        "import importlib, pkgutil, labkit\n"
        "for module in pkgutil.walk_packages(labkit.__path__, 'labkit.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    log = tmp_path / "attempts"
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "scripts" / "offline"), str(ROOT)]), "OFFLINE_LOG": str(log)}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | paths
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()


ATTEMPTS = (
    "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
    "import socket; socket.socket().connect(('192.0.2.2', 80))",
    "import urllib.request; urllib.request.urlopen('http://example.org')",
    "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.3', 53))",
    "import os, sys; os.system(sys.executable + ' -c \"import socket; socket.gethostbyname(chr(97))\" 2> /dev/null')",
)


@pytest.mark.parametrize("tried", [(), ATTEMPTS], ids=["at home", "five attempts"])
def test_a_lesson_that_reached_for_the_network_would_fail_ci(tried, tmp_path):
    """`make test` executes the lessons with this plugin; here the cells of a notebook hide their attempts."""
    hidden = [f"try:\n    {line}\nexcept OSError:\n    pass" for line in ("print('at home')", *tried)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in hidden])
    nbformat.write(notebook, tmp_path / "lesson.ipynb")
    flags = ["-p", "scripts.offline.plugin", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", "-q"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OFFLINE_LOG")}
    command = [sys.executable, "-m", "pytest", *flags, "--rootdir", str(tmp_path), str(tmp_path / "lesson.ipynb")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert f"{len(hidden)} passed" in done.stdout, done.stdout + done.stderr
    assert f"{len(tried)} attempts to reach the network" in done.stdout
    assert done.returncode == bool(tried)


def test_make_test_executes_the_lessons_with_the_network_closed():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    flags = re.search(r"^NBVAL := (.+)$", makefile, flags=re.M)[1]
    assert "-p scripts.offline.plugin" in flags
    assert all(
        "$(NBVAL)" in line for line in makefile.splitlines() if "build/solutions/en" in line and "pytest" in line
    )
