"""The setup cell on a machine like Colab, executed by a kernel: what a student reads, what is replaced, what stays.

The machine is an environment of its own, made in a second from links: everything that this interpreter has, but no
labkit, trl or bitsandbytes; beside it torchao 0.10 and the pyarrow and datasets of Colab's image. pip gets tiny wheels
with the real packages' requirements, and newer torch and numpy to tempt it. PEFT, IPython and pip are the real ones.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from labkit.course.setup_cell import KEPT, setup_cell
from scripts.colab_resolve import read_pins
from tests.wheels import write_wheel

OLD = ("torchao", "pyarrow", "datasets")  # of Colab's image, too old for the book
BROUGHT = ("pyarrow", "datasets", "trl", "bitsandbytes")  # what the book asks for and Colab lacks
# PEFT's own question, without the seconds that its import takes.
TORCHAO = """import importlib.util, pathlib, runpy
peft = pathlib.Path(importlib.util.find_spec("peft").origin).parent
torchao = runpy.run_path(str(peft / "import_utils.py"))["is_torchao_available"]()
"""
LOOK = (
    TORCHAO
    + """import json
import numpy, torch, pyarrow, labkit
found = {module.__name__: [module.__version__, module.__file__] for module in (numpy, torch, pyarrow, labkit)}
print(json.dumps(found | {"torchao": torchao}))"""
)


@pytest.fixture(scope="module")
def colab(tmp_path_factory, wheel):
    """Runs notebooks there: colab.run(*cells) gives each cell's text, in one new kernel."""
    folder = tmp_path_factory.mktemp("colab")
    python, site = make_machine(folder)
    shelves = {name: folder / name for name in ("good", "clash")}
    for shelf in shelves.values():
        shelf.mkdir()
        for name in BROUGHT if shelf.name == "good" else BROUGHT[:-1]:
            real = importlib.metadata.distribution(name)
            write_wheel(shelf, name, real.version, metadata=real.read_text("METADATA"))
        write_wheel(shelf, "torch", "99.0")
        write_wheel(shelf, "numpy", "99.0")
        write_wheel(shelf, "bitsandbytes", "99.0", requires=["torch>=99", "numpy>=99"])
    spec = folder / "kernels" / "colab" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))
    content = folder / "content"
    (content / "labkit" / "models").mkdir(parents=True)  # as an earlier session has left it on Drive
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    environment = kept | {
        "COLAB_RELEASE_TAG": "release-colab_20260819",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INDEX": "1",
        "PIP_RETRIES": "1",
        "IPYTHONDIR": str(folder / "ipython"),
    }

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        kernels = KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
        manager = AsyncKernelManager(kernel_name="colab", kernel_spec_manager=kernels)
        place = {"metadata": {"path": str(content)}}
        NotebookClient(notebook, km=manager, timeout=120, allow_errors=True, resources=place).execute(env=environment)
        return [said(cell) for cell in notebook.cells]

    return SimpleNamespace(run=run, python=python, site=site, shelves=shelves, environment=environment)


def make_machine(folder):
    """An environment with this interpreter's packages but the book's own, and Colab's old ones; its python and site."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "machine"], check=True)
    (site,) = (folder / "machine").glob("lib/python*/site-packages")
    linked = folder / "linked"
    linked.mkdir()
    hidden = ("labkit", "__editable__", *OLD, *BROUGHT)
    there = set()
    for source in (Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))):
        found = {path: package(path) for path in (source.iterdir() if source.is_dir() else ())}
        for path, name in found.items():
            if path.suffix != ".pth" and not path.name.startswith(hidden) and name not in there:
                (linked / path.name).symlink_to(path)
        there.update(found.values())  # a later folder's version of a package counts no more, as in imports
    (site / "zz_linked.pth").write_text(f"{linked}\n", encoding="utf-8")  # after its own, and pip removes nothing there
    pins = read_pins()
    for name in OLD:
        unpack(write_wheel(folder, name, pins[name]), site)
    for name in {"aiohttp", "notebook"} - there:  # Colab has both; datasets 4.7 and ipywidgets 7 ask for them
        unpack(write_wheel(folder, name, "99.0"), linked)
    return folder / "machine" / "bin" / "python", site


def package(path):
    """The name of what lies in a folder of packages, without its version."""
    return re.sub(r"-[^-]+(?=\.dist-info$)", "", path.name).lower()


def unpack(wheel, site):
    """Install without pip."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def said(cell):
    """What a cell shows: printed text, results, and errors by name and value."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "error":
            parts.append(f"{output.ename}: {output.evalue}")
        elif output.output_type == "stream":
            parts.append(output.text)
        else:
            parts.append(output.data.get("text/plain", ""))
    return "\n".join(parts)


@pytest.fixture(scope="module")
def first_session(colab, wheel):
    """A student's first session, mistakes included; something has loaded pyarrow before, as pandas does."""
    control = subprocess.run([colab.python, "-c", TORCHAO], env=colab.environment, capture_output=True, text=True)
    setup = setup_cell("en")
    cells = {
        "loaded": "import pyarrow; print(pyarrow.__version__)",
        "no address": setup,
        "typed": f'%env LABKIT_REPO="{wheel}"',
        "network off": 'import os; os.environ |= {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}',
        "offline": setup,
        "network on": f'os.environ |= {{"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": {str(colab.shelves["clash"])!r}}}',
        "clash": setup,
        "good shelf": f"%env PIP_FIND_LINKS={colab.shelves['good']}",
        "good": setup,
        "again": setup,
    }
    texts = colab.run(*cells.values())
    return dict(zip(cells, texts, strict=True)) | {"control": control.stderr}


@pytest.fixture(scope="module")
def after_restart(colab, first_session):
    """A new session on the same machine: the Chinese setup cell twice, then a look at what is there."""
    first, second, look = colab.run(setup_cell("zh"), setup_cell("zh"), LOOK)
    return SimpleNamespace(first=first, second=second, found=json.loads(look))


def test_the_machine_is_as_bad_as_colab(first_session):
    assert f"incompatible version of torchao. Found version {read_pins()['torchao']}" in first_session["control"]
    assert first_session["loaded"].strip() == read_pins()["pyarrow"]


def test_without_an_address_the_student_reads_what_to_type(first_session):
    assert first_session["no address"].startswith("SystemExit: labkit is missing")
    assert "%env LABKIT_REPO=git+https://" in first_session["no address"]


def test_without_a_network_pips_reason_and_the_fix_are_on_the_page(first_session):
    assert "Connection refused" in first_session["offline"]
    assert "Check the address (LABKIT_REPO) and the network" in first_session["offline"]
    assert "Requirement already satisfied" not in first_session["offline"]


def test_a_book_that_asks_for_another_torch_is_refused_and_says_so(first_session):
    torch = importlib.metadata.version("torch")
    assert "bitsandbytes 99.0 depends on torch>=99" in first_session["clash"]
    assert f"The user requested torch=={torch}" in first_session["clash"]


def test_what_was_loaded_and_got_replaced_asks_for_a_restart_until_it_comes(first_session):
    new = importlib.metadata.version("pyarrow")
    for cell in ("good", "again"):
        expected = f"SystemExit: RESTART NEEDED: pyarrow ({read_pins()['pyarrow']} -> {new})"
        assert expected in first_session[cell]
    assert "Installing the book" in first_session["good"]
    assert "Installing the book" not in first_session["again"]
    assert f"torchao {read_pins()['torchao']} removed" in first_session["good"]


def test_after_the_restart_the_book_is_there_and_nothing_is_installed_again(after_restart):
    expected = f"labkit {importlib.metadata.version('labkit')} · 配置 tiny · 模型 tiny\n"
    for said in (after_restart.first, after_restart.second):
        assert said.startswith(expected)
        assert said.count("\n") == 2 and "drive.mount" in said  # Drive is not mounted there


def test_torch_and_numpy_are_the_machines_own_and_the_rest_is_the_books(colab, after_restart):
    for name in KEPT:
        version, file = after_restart.found[name]
        assert version == importlib.metadata.version(name)
        assert Path(file).parts[-3] == "linked"
    assert after_restart.found["pyarrow"][0] == importlib.metadata.version("pyarrow")
    assert Path(after_restart.found["labkit"][1]).parent == colab.site / "labkit"
    assert after_restart.found["torchao"] is False
    own = {path.name.partition("-")[0] for path in colab.site.glob("*.dist-info")}
    assert own == {"labkit", *BROUGHT}
