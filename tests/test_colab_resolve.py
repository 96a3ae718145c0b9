"""The check of Colab's packages, on an index of a few tiny wheels: what it lets pass, and all that it refuses."""

import re

import pytest

from labkit.errors import LabError
from scripts import colab_resolve
from scripts.colab_resolve import read_pins, refuse, replaced, resolve
from tests.wheels import write_wheel

COLAB = {"torch": "2.11.0", "datasets": "4.0.0", "peft": "0.20.0"}


@pytest.fixture
def ask(tmp_path):
    """ask(*requirements) resolves them against COLAB, from wheels of torch, datasets and peft in two versions each."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, version in COLAB.items():
        write_wheel(shelf, name, version)
        write_wheel(shelf, name, "99.0", requires=["torch>=99"] if name == "peft" else ())

    def run(*requirements, where=("--no-index", "--find-links", shelf)):
        wanted = tmp_path / "requirements.in"
        wanted.write_text("\n".join(requirements), encoding="utf-8")
        return replaced(COLAB, resolve(wanted, COLAB, where=where))

    return run


def test_what_fits_is_kept_although_a_newer_one_is_there(ask):
    assert ask("torch>=2.11", "datasets", "peft>=0.20") == {}


def test_what_is_too_old_is_replaced_and_passes_if_it_is_meant(ask):
    changes = ask("torch", "datasets>=4.7")
    assert changes == {"datasets": "4.0.0 -> 99.0"}
    refuse(changes)


def test_another_package_that_would_be_replaced_is_refused_by_name(tmp_path):
    write_wheel(tmp_path, "peft", "0.21.0")
    write_wheel(tmp_path, "torch", "2.11.0")
    wanted = tmp_path / "requirements.in"
    wanted.write_text("peft>=0.21\ntorch", encoding="utf-8")
    changes = replaced(COLAB, resolve(wanted, COLAB, where=("--no-index", "--find-links", tmp_path)))
    with pytest.raises(LabError, match=re.escape("peft 0.20.0 -> 0.21.0: on Colab the setup cell may replace only")):
        refuse(changes)


@pytest.mark.parametrize("requirements", [("torch>=2.12",), ("peft>=0.21",), ("datasets", "datasets<1")])
def test_what_cannot_be_resolved_is_refused_with_the_chain_of_reasons(ask, requirements):
    with pytest.raises(LabError, match=r"(?s)no set of versions fits Python 3\.13.*unsatisfiable.*Fix: ") as error:
        ask(*requirements)
    assert requirements[-1] in str(error.value)


def test_an_index_that_does_not_answer_is_no_verdict(ask, monkeypatch):
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(LabError, match=r"127\.0\.0\.1:9.*does not answer.*nothing was found out"):
        ask("torch", where=("--index-url", "http://127.0.0.1:9/simple"))


def test_anything_else_that_stops_uv_is_passed_on(tmp_path):
    with pytest.raises(LabError, match=r"(?s)uv stopped.*not-there\.in"):
        resolve(tmp_path / "not-there.in", COLAB, where=("--no-index",))


def test_the_index_is_pips_or_pypi(monkeypatch, tmp_path):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example.org/simple\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert colab_resolve.index() == ["--index-url", "https://mirror.example.org/simple"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example.org/simple")
    assert colab_resolve.index() == ["--index-url", "https://other.example.org/simple"]


def test_the_command_fails_with_a_line_that_names_the_package(monkeypatch, capsys):
    pins = read_pins()
    monkeypatch.setattr(colab_resolve, "resolve", lambda *_, **__: pins | {"transformers": "99.0", "pyarrow": "26.0"})
    assert colab_resolve.main() == 1
    assert f"error: transformers {pins['transformers']} -> 99.0: " in capsys.readouterr().err


def test_the_oldest_environment_has_colabs_versions_where_it_says_so():
    oldest, pins = colab_resolve.ROOT / "scripts" / "oldest.txt", read_pins()
    named = re.findall(r"^(\S+)==(\S+) +# Colab's$", oldest.read_text(encoding="utf-8"), flags=re.M)
    assert len(named) >= 8
    assert [(name, version) for name, version in named if pins[name] != version] == []


def test_the_page_on_versions_has_colabs():
    page = (colab_resolve.ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    table = page.partition("\n## Colab\n")[2].partition("\n## ")[0]
    pins = read_pins()
    for names, versions in re.findall(r"^\| ([a-z, -]+) \| ([\d.,+a-z ]+) \|", table, flags=re.M):
        for name, version in zip(names.split(", "), versions.split(", "), strict=True):
            assert version.partition("+")[0] == pins.get(name, version), name
    upgraded = re.findall(r"^\| ([a-z, -]+) \| [\d., ]+ \| upgraded", table, flags=re.M)
    assert {name for names in upgraded for name in names.split(", ")} == set(colab_resolve.REPLACED)
