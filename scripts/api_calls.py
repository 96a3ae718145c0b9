"""What the book asks of transformers, trl, peft, bitsandbytes, datasets and their kin, held against what is installed.

Reads the source of labkit, the lessons, the scripts and the benchmarks without running them: every name that is
imported from these libraries must exist, and every call of such a name must fit its signature. tests/test_api_calls.py
runs it with the versions of .venv and, in `make oldest`, with the oldest supported ones.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("labkit", "lessons", "scripts", "benchmarks")
LIBRARIES = ("transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "huggingface_hub")
# Private names that the source reaches through objects, where reading it cannot tell the class.
REACHED = {
    "transformers.Trainer": ("_load_from_checkpoint", "add_callback", "remove_callback", "train"),
    "transformers.TrainingArguments": ("n_gpu", "save_strategy", "save_steps", "output_dir"),
    "transformers.GenerationMixin": ("generate",),
    "transformers.PreTrainedModel": (
        "save_pretrained",
        "get_input_embeddings",
        "enable_input_require_grads",
    ),
    "transformers.TrainerState": ("load_from_json",),
    "peft.PeftModel": ("save_pretrained", "from_pretrained"),
    "datasets.Dataset": ("from_list",),
    "trl.trainer.utils": ("_use_triton",),
}
WRITTEN = {
    "trl.SFTTrainer": ("_total_train_tokens",),
    "transformers.TrainingArguments": ("_n_gpu",),
}  # set in their bodies


def sources() -> list[Path]:
    """Every Python file that may call the libraries."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def moved(text: str, *, where: str) -> list[str]:
    """What the code in ``text`` asks of the libraries and they do not have, one line each, with its place."""
    tree = ast.parse(text)
    names, wrong = _imported(tree, where)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (found := _resolve(node.func, names)) is not None:
            name, target = found
            wrong += [f"{where}:{node.lineno}: {name}{fault}" for fault in _faults(node, target)]
        elif isinstance(node, ast.Attribute):
            wrong += [f"{where}:{node.lineno}: {fault}" for fault in _missing_attribute(node, names)]
    return wrong


def missing_reached() -> list[str]:
    """Names of `REACHED` and `WRITTEN` that are gone."""
    gone = [f"{path}.{name}" for path, names in REACHED.items() for name in names if not hasattr(_load(path), name)]
    for path, names in WRITTEN.items():
        code = inspect.getsource(_load(path))
        gone += [f"{path}.{name}" for name in names if name not in code]
    return gone


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _imported(tree: ast.Module, where: str) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Local name -> (full name, object) of what is imported from the libraries, and what could not be."""
    names, wrong = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            wanted = [(node.module, alias.name, alias.asname or alias.name) for alias in node.names]
        else:
            continue
        for module, name, local in wanted:
            if module.partition(".")[0] not in LIBRARIES:
                continue
            full = f"{module}.{name}" if name else module
            try:
                names[local] = full, _import(module, name)
            except (ImportError, AttributeError) as error:
                wrong.append(f"{where}:{node.lineno}: {full} cannot be imported ({str(error).splitlines()[0]})")
    return names, wrong


def _import(module: str, name: str | None) -> Any:
    found = importlib.import_module(module)
    if name is None:
        return importlib.import_module(module.partition(".")[0]) if "." in module else found
    try:
        return getattr(found, name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


def _resolve(node: ast.expr, names: dict[str, tuple[str, Any]]) -> tuple[str, Any] | None:
    """The library object that an expression such as ``AutoModel.from_pretrained`` means, if it means one."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (base := _resolve(node.value, names)) is not None:
        name, value = base
        return (f"{name}.{node.attr}", getattr(value, node.attr)) if hasattr(value, node.attr) else None
    return None


def _missing_attribute(node: ast.Attribute, names: dict[str, tuple[str, Any]]) -> Iterator[str]:
    base = _resolve(node.value, names)
    if base is not None and (inspect.ismodule(base[1]) or inspect.isclass(base[1])) and not hasattr(base[1], node.attr):
        yield f"{base[0]}.{node.attr} is gone"


def _faults(call: ast.Call, target: Any) -> Iterator[str]:
    """Arguments of a call that the signature of its target does not have."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # written in C, or no callable at all
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:  # it hands on what it is given, and its signature says little
        return
    for keyword in call.keywords:
        if keyword.arg is not None and keyword.arg not in parameters:
            yield f" takes no {keyword.arg!r}"
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    if inspect.Parameter.VAR_POSITIONAL not in kinds and not starred and len(call.args) > len(positional):
        yield f" takes {len(positional)} positional arguments, {len(call.args)} are given"
