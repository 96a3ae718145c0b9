"""The installed packages and the versions that labkit asks for, each as one finding for `labkit.doctor`."""

from __future__ import annotations

import importlib.metadata
import tomllib

from labkit.labels import text
from labkit.machine import Finding
from labkit.paths import PACKAGE

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "ipywidgets")
FRONTENDS = ("jupyterlab",)  # Colab and AutoDL bring their own
TORCHAO_FLOOR = "0.16"  # PEFT raises ImportError on every import beside an older one


def packages() -> list[Finding]:
    """Whether what the lessons import is installed, in a version that labkit asks for."""
    ranges = floors()
    needed = [_package(name, ranges.get(name, ""), missing="fail") for name in PACKAGES]
    return needed + [_package(name, ranges.get(name, ""), missing="warn") for name in FRONTENDS]


def _package(name: str, wanted: str, *, missing: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    install = f'pip install -U "{name}{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, missing, text("not installed", "没有安装"), install)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        found = text(f"{version}, but labkit needs {wanted}", f"{version}，但 labkit 需要 {wanted}")
        return Finding(name, "fail", found, install + _then_restart())
    return Finding(name, "ok", version)


def _then_restart() -> str:
    return text(", then restart the kernel", "，然后重启内核")


def torchao() -> Finding:
    """Whether a torchao is here that PEFT cannot stand."""
    from packaging.version import Version

    try:
        version = importlib.metadata.version("torchao")
    except importlib.metadata.PackageNotFoundError:
        return Finding("torchao", "ok", text("not installed (nothing here needs it)", "没有安装（这里也不需要）"))
    if Version(version) < Version(TORCHAO_FLOOR):
        found = text(
            f"{version}: with one older than {TORCHAO_FLOOR} PEFT makes no adapter (ImportError)",
            f"{version}：低于 {TORCHAO_FLOOR} 时 PEFT 建不了适配器（ImportError）",
        )
        return Finding("torchao", "fail", found, "pip uninstall -y torchao" + _then_restart())
    return Finding("torchao", "ok", version)


def floors() -> dict[str, str]:
    """The version ranges that labkit asks for: package -> specifier such as ``>=1.16``.

    They come from the installed distribution, else from the pyproject.toml of the checkout; empty without either.
    """
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in _requirement_lines()]
    return {requirement.name.lower(): str(requirement.specifier) for requirement in requirements}


def _requirement_lines() -> list[str]:
    try:
        if lines := importlib.metadata.requires("labkit"):
            return lines
    except importlib.metadata.PackageNotFoundError:
        pass
    file = PACKAGE.parent / "pyproject.toml"
    if not file.is_file():
        return []
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    extras = project.get("optional-dependencies", {}).values()
    return [*project.get("dependencies", []), *(line for extra in extras for line in extra)]
