"""Is this model folder whole? Checked from the files' own headers, without torch and without reading the weights.

A folder that labkit made also carries a manifest (sizes and SHA-256 of its files), written last.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from labkit.errors import LabError
from labkit.files import file_sha256, write_json
from labkit.labels import text
from labkit.models.shapes import ModelShape, read_config

MANIFEST = "labkit-manifest.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CHAT_STOP = "<|im_end|>"  # ends every turn of ChatML, and so the answers that the book trains on
LARGEST_HEADER_BYTES = 100_000_000  # the safetensors format's own limit


def problems(folder: Path) -> dict[str, str]:
    """What is wrong with a model folder: file name -> reason; empty when it is whole.

    Whole means: a config.json of an architecture of this book, not quantized; every shard present, with a length that
    agrees with its header; as many parameters as the config describes; a tokenizer.
    """
    found: dict[str, str] = {}
    shape = _config(folder, found)
    counts = {name: _shard_params(folder / name, found) for name in _shard_names(folder, found)}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        _json_object(folder / name, found)
    if shape and not found:
        _compare(shape, sum(counts.values()), found)
    return found


def refuse_pickles(folder: Path, *names: str) -> None:
    """Refuse a folder that has none of the safetensors files ``names``, but pickles.

    Raises:
        LabError: says which file is a pickle, and why nobody opens it here.
    """
    if any((folder / name).is_file() for name in names):
        return
    for pattern in PICKLES:
        if pickled := sorted(folder.glob(pattern)):
            raise pickle_error(folder, pickled[0].name)


def pickle_error(place: Path, name: str) -> LabError:
    """What is said of a pickle in place of opening it."""
    rule = text(
        f"{name} is a pickle, which can run code when it is opened, and is not read",
        f"{name} 是 pickle 文件，打开时可能会运行里面的代码，所以不读",
    )
    fix = text(
        "get the model's safetensors files (convert it where you trust it)",
        "去下载这个模型的 safetensors 文件（或者在你信得过的地方转换）",
    )
    return LabError(str(place), rule, fix)


def stop_token(folder: Path) -> str:
    """The token that ends an answer: ChatML's ``<|im_end|>`` where the tokenizer has it, else its ``eos_token``.

    A base model's own eos_token (Qwen3-Base: ``<|endoftext|>``) ends documents; a model that learns to answer in
    ChatML must stop on ``<|im_end|>`` instead.

    Raises:
        LabError: the tokenizer has neither.
    """
    if json.dumps(CHAT_STOP) in (folder / "tokenizer.json").read_text(encoding="utf-8"):
        return CHAT_STOP
    eos = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if not isinstance(eos, str) or not eos:
        rule = text(
            f"its tokenizer has neither {CHAT_STOP} nor an eos_token, so no answer could end",
            f"它的分词器既没有 {CHAT_STOP}，也没有 eos_token，回答没法结束",
        )
        raise LabError(str(folder), rule, text("choose a model with a chat tokenizer", "换一个带对话分词器的模型"))
    return eos


def write_manifest(folder: Path, **facts: str) -> None:
    """Record size and SHA-256 of every file in ``folder``, and ``facts`` about it; call it last."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**facts, "files": files})


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a finished folder; None where it is missing or corrupt, or where a file's size disagrees."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        agree = all((folder / name).stat().st_size == n_bytes for name, n_bytes in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if agree and sizes else None


def changed_files(folder: Path) -> list[str]:
    """Names of files that no longer have the SHA-256 of the manifest; reads every byte."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [MANIFEST]
    return [name for name, entry in manifest["files"].items() if file_sha256(folder / name) != entry["sha256"]]


def _config(folder: Path, found: dict[str, str]) -> ModelShape | None:
    config = _json_object(folder / "config.json", found)
    if config is None:
        return None
    if config.get("quantization_config"):
        found["config.json"] = text(
            "the weights are quantized already; labkit starts from plain ones and quantizes itself",
            "权重已经量化过了；labkit 要从未量化的权重开始，自己量化",
        )
        return None
    try:
        return read_config(folder / "config.json", name=folder.name)
    except LabError as error:
        found["config.json"] = error.rule
        return None


def _shard_names(folder: Path, found: dict[str, str]) -> list[str]:
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return [SINGLE]
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        found[SINGLE] = _missing()
        if pickled:
            found[SINGLE] += text(
                f"; {pickled[0]} is a pickle, which can run code, and is not read",
                f"；{pickled[0]} 是 pickle 文件，可能会运行里面的代码，所以不读",
            )
        return []
    index = _json_object(folder / INDEX, found) or {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found.setdefault(INDEX, text("it names no shards", "里面没有列出任何分片"))
        return []
    return sorted({Path(str(shard)).name for shard in weight_map.values()})


def _shard_params(path: Path, found: dict[str, str]) -> int:
    """Parameters in one safetensors file, from its header; a reason in ``found`` if header and length disagree."""
    try:
        header, data_bytes = safetensors_header(path)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [entry["data_offsets"][1] for entry in tensors]
        names = [name for name in header if name != "__metadata__" and not name.endswith("inv_freq")]  # not a parameter
        n_params = sum(math.prod(header[name]["shape"]) for name in names)
    except FileNotFoundError:
        found[path.name] = _missing()
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        why = str(error) or type(error).__name__
        found[path.name] = text(f"not a readable safetensors file ({why})", f"不是能读的 safetensors 文件（{why}）")
    else:
        if (said := max(ends, default=0)) == data_bytes:
            return n_params
        found[path.name] = text(
            f"holds {data_bytes:,} bytes of weights where its header says {said:,}",
            f"有 {data_bytes:,} 字节的权重，而文件头写的是 {said:,}",
        )
    return 0


def _missing() -> str:
    return text("missing", "缺失")


def safetensors_header(path: Path) -> tuple[dict, int]:
    """The JSON header of a safetensors file (8 bytes of length, then JSON) and the bytes that follow it."""
    with path.open("rb") as file:
        (n_bytes,) = struct.unpack("<Q", file.read(8))
        rest = path.stat().st_size - 8 - n_bytes
        if n_bytes > LARGEST_HEADER_BYTES or rest < 0:
            raise ValueError("its header is cut off")
        return json.loads(file.read(n_bytes)), rest


def _json_object(path: Path, found: dict[str, str]) -> dict | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found[path.name] = _missing()
    except (OSError, ValueError) as error:
        found[path.name] = text(f"not readable as JSON ({error})", f"不能当作 JSON 读取（{error}）")
    else:
        if isinstance(value, dict):
            return value
        found[path.name] = text("not a JSON object", "不是 JSON 对象")
    return None


def _compare(shape: ModelShape, n_params: int, found: dict[str, str]) -> None:
    """A tied model may store its LM head a second time; otherwise the counts must agree exactly."""
    allowed = {shape.n_params, shape.n_params + shape.embedding_params()} if shape.tied_embeddings else {shape.n_params}
    if n_params not in allowed:
        found["config.json"] = text(
            f"describes {shape.n_params:,} parameters, but the weights hold {n_params:,}",
            f"写的是 {shape.n_params:,} 个参数，而权重里有 {n_params:,} 个",
        )
