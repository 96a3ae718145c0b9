"""What goes into the sandbox and comes out of it: plain JSON, never pickles.

Shapes of models and tensors have a spelling of their own; anything else that is not plain comes out as its type's name.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

MAX_ITEMS, MAX_DEPTH = 10_000, 6
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool")


def encode(value: Any, depth: int = MAX_DEPTH) -> Any:
    """``value`` as JSON can hold it. Tensors become lists with their dtype and shape; what is not plain, a name."""
    if value is None or isinstance(value, bool | str):
        return value if not isinstance(value, str) else value[:MAX_ITEMS]
    if isinstance(value, int):
        return value if value.bit_length() <= 256 else {"type": "a huge int"}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if value is ...:
        return {"type": "ellipsis"}
    if depth and isinstance(value, tuple):
        return {"tuple": [encode(item, depth - 1) for item in value[:MAX_ITEMS]]}
    if depth and isinstance(value, list):
        return [encode(item, depth - 1) for item in value[:MAX_ITEMS]]
    if depth and isinstance(value, set | frozenset):
        return [encode(item, depth - 1) for item in sorted(value, key=str)[:MAX_ITEMS]]
    if depth and isinstance(value, dict):
        return {"dict": [[encode(key, 1), encode(item, depth - 1)] for key, item in list(value.items())[:MAX_ITEMS]]}
    if type(value).__name__ == "ModelShape":
        return {"shape": asdict(value)}
    if hasattr(value, "tolist"):
        return _encode_array(value)
    return {"type": type(value).__name__[:80]}


def _encode_array(value: Any) -> Any:
    if math.prod(value.shape) > MAX_ITEMS:
        return {"type": f"an array of shape {tuple(value.shape)}"}
    if len(value.shape) == 0 and type(value).__module__ == "numpy":
        return encode(value.tolist())
    array = value.detach() if hasattr(value, "detach") else value
    dtype, flat = str(value.dtype).removeprefix("torch."), array.reshape(-1).tolist()
    kind = "array" if type(value).__module__ == "numpy" else "tensor"
    return {kind: [encode(item) for item in flat], "dtype": dtype, "sizes": [int(size) for size in value.shape]}


def decode(value: Any) -> Any:
    """What `encode` was given; an object that was not plain comes back as its type's name.

    Raises:
        ValueError: this is not what `encode` makes.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        return _decode_object(value)
    except (KeyError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        raise ValueError(f"not a value: {error}") from None


def _decode_object(value: dict[str, Any]) -> Any:
    match value:
        case {"tuple": items}:
            return tuple(decode(item) for item in items)
        case {"dict": pairs}:
            return {decode(key): decode(item) for key, item in pairs}
        case {"number": "nan" | "inf" | "-inf" as text}:
            return float(text)
        case {"shape": fields}:
            from labkit.models.shapes import ModelShape

            return ModelShape(**fields)
        case {"array": flat, "dtype": dtype, "sizes": sizes} if dtype in DTYPES:
            import numpy as np

            return np.array([decode(item) for item in flat], dtype=dtype).reshape(sizes)
        case {"tensor": flat, "dtype": dtype, "sizes": sizes} if dtype in DTYPES:
            import torch

            return torch.tensor([decode(item) for item in flat], dtype=getattr(torch, dtype)).reshape(sizes)
        case {"type": "ellipsis"}:
            return ...
        case {"type": str(name)}:
            return f"<{name}>"
    raise ValueError("an unknown kind of value")


def same(found: Any, wanted: Any, tolerance: float) -> bool:
    """Whether two plain values agree: numbers within a relative (near zero: absolute) tolerance, the rest exactly.

    A tensor agrees with nested lists of the same sizes; True is not 1.
    """
    found, wanted = (value.tolist() if hasattr(value, "tolist") else value for value in (found, wanted))
    if isinstance(wanted, list | tuple):
        fits = isinstance(found, list | tuple) and len(found) == len(wanted)
        return fits and all(same(a, b, tolerance) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, dict):
        fits = isinstance(found, dict) and found.keys() == wanted.keys()
        return fits and all(same(found[key], wanted[key], tolerance) for key in wanted)
    if isinstance(wanted, bool) or isinstance(found, bool) or not isinstance(wanted, int | float):
        return type(found) is type(wanted) and found == wanted
    return isinstance(found, int | float) and math.isclose(found, wanted, rel_tol=tolerance, abs_tol=tolerance)
