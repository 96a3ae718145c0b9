"""What a model is, in numbers: the dimensions in its config and the exact parameter counts that follow from them."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.paths import data_folder

ARCHITECTURES = ("qwen3", "qwen2", "llama", "mistral")
TINY = "tiny"  # the book's own model; its shape is read from the data folder, where its weights are


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of a dense decoder-only model with RMSNorm, grouped-query attention and a SwiGLU MLP.

    Args:
        name: catalogue name, Hub id or folder name.
        architecture: ``model_type`` of its config: ``qwen3``, ``qwen2``, ``llama`` or ``mistral``.
        vocab_size: V, rows of the embedding and of the LM head.
        hidden_size: h, width of the residual stream.
        intermediate_size: i, width inside the MLP.
        n_layers: decoder layers.
        n_heads: query heads.
        n_kv_heads: key and value heads, a divisor of n_heads.
        head_dim: width of one head; n_heads * head_dim need not equal h (Qwen3-0.6B: 2048 and 1024).
        tied_embeddings: the LM head is the embedding matrix.
        qk_norm: an RMSNorm over head_dim on the queries and on the keys (Qwen3).
        attention_bias: biases on q_proj, k_proj and v_proj (Qwen2).
    """

    name: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    tied_embeddings: bool
    qk_norm: bool = False
    attention_bias: bool = False

    @property
    def q_size(self) -> int:
        """Width of the queries: n_heads * head_dim."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values: n_kv_heads * head_dim."""
        return self.n_kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """The seven linears of one decoder layer: name -> (in_features, out_features)."""
        h, i, q, kv = self.hidden_size, self.intermediate_size, self.q_size, self.kv_size
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    def tensors(self) -> dict[str, tuple[int, int]]:
        """Every parameter tensor, grouped by kind: kind -> (number of tensors, elements in each). Tied ones once."""
        tensors = {"embed_tokens": (1, self.vocab_size * self.hidden_size)}
        if not self.tied_embeddings:
            tensors["lm_head"] = (1, self.vocab_size * self.hidden_size)
        tensors |= {f"{name}.weight": (self.n_layers, a * b) for name, (a, b) in self.linears().items()}
        if self.attention_bias:
            tensors["q_proj.bias"] = (self.n_layers, self.q_size)
            tensors["kv_proj.bias"] = (2 * self.n_layers, self.kv_size)
        tensors["norm"] = (2 * self.n_layers + 1, self.hidden_size)
        if self.qk_norm:
            tensors["qk_norm"] = (2 * self.n_layers, self.head_dim)
        return tensors

    def embedding_params(self) -> int:
        """Elements of the embedding matrix: V * h."""
        return self.vocab_size * self.hidden_size

    def lm_head_params(self) -> int:
        """Elements of the LM head: V * h, or 0 where it is the embedding matrix."""
        return 0 if self.tied_embeddings else self.vocab_size * self.hidden_size

    def linear_params(self) -> int:
        """Weights of the seven linears of all layers, without biases: what NF4 packs."""
        return self.n_layers * sum(a * b for a, b in self.linears().values())

    def bias_params(self) -> int:
        """Biases of all layers (Qwen2's q_proj, k_proj and v_proj)."""
        return self.n_layers * (self.q_size + 2 * self.kv_size) if self.attention_bias else 0

    def norm_params(self) -> int:
        """Norm weights: two per layer and the last one, of width h; with qk_norm two more per layer, of head_dim."""
        qk = 2 * self.head_dim if self.qk_norm else 0
        return self.n_layers * (2 * self.hidden_size + qk) + self.hidden_size

    def layer_params(self) -> int:
        """All parameters of one decoder layer."""
        norms = self.norm_params() - self.hidden_size
        return (self.linear_params() + self.bias_params() + norms) // self.n_layers

    @property
    def n_params(self) -> int:
        """All parameters, tied ones counted once, biases included."""
        heads = self.embedding_params() + self.lm_head_params()
        return heads + self.linear_params() + self.bias_params() + self.norm_params()


def _row(name: str, architecture: str, vocab: int, hidden: int, inter: int, layers: int, *, heads: tuple, tied: bool):
    n_heads, n_kv_heads, head_dim = heads
    shape = ModelShape(name, architecture, vocab, hidden, inter, layers, n_heads, n_kv_heads, head_dim, tied)
    return name, _with_family(shape)


def _with_family(shape: ModelShape) -> ModelShape:
    """What follows from the architecture alone: Qwen3 normalizes q and k, Qwen2 has biases on q, k and v."""
    family = {"qk_norm": shape.architecture == "qwen3", "attention_bias": shape.architecture == "qwen2"}
    return ModelShape(**{**vars(shape), **family})


# From the published config.json files. heads = (query heads, key/value heads, head width).
CATALOGUE: dict[str, ModelShape] = dict(
    (
        _row("qwen3-0.6b", "qwen3", 151936, 1024, 3072, 28, heads=(16, 8, 128), tied=True),
        _row("qwen3-1.7b", "qwen3", 151936, 2048, 6144, 28, heads=(16, 8, 128), tied=True),
        _row("qwen3-4b", "qwen3", 151936, 2560, 9728, 36, heads=(32, 8, 128), tied=True),
        _row("qwen3-8b", "qwen3", 151936, 4096, 12288, 36, heads=(32, 8, 128), tied=False),
        _row("qwen3-14b", "qwen3", 151936, 5120, 17408, 40, heads=(40, 8, 128), tied=False),
        _row("qwen3-32b", "qwen3", 151936, 5120, 25600, 64, heads=(64, 8, 128), tied=False),
        _row("smollm2-135m", "llama", 49152, 576, 1536, 30, heads=(9, 3, 64), tied=True),
        _row("llama-3.2-3b", "llama", 128256, 3072, 8192, 28, heads=(24, 8, 128), tied=True),
        _row("llama-3.1-8b", "llama", 128256, 4096, 14336, 32, heads=(32, 8, 128), tied=False),
        _row("qwen2.5-1.5b", "qwen2", 151936, 1536, 8960, 28, heads=(12, 2, 128), tied=True),
        _row("qwen2.5-7b", "qwen2", 152064, 3584, 18944, 28, heads=(28, 4, 128), tied=False),
        _row("mistral-7b", "mistral", 32768, 4096, 14336, 32, heads=(32, 8, 128), tied=False),
    )
)
MODELS = (*CATALOGUE, TINY)  # every name that `shape_of` knows


def shape_of(model: str) -> ModelShape:
    """The shape of a catalogue name, of a Hub id that is already in the local cache, or of a folder with config.json.

    Nothing is downloaded.

    Raises:
        LabError: an unknown name (with near matches), or a config.json that is missing, corrupt, incomplete, or of an
            architecture that this book does not treat.
    """
    if model in CATALOGUE:
        return CATALOGUE[model]
    if model == TINY:
        return read_config(data_folder() / "tiny-qwen3" / "config.json", name=TINY)
    folder = os.path.expanduser(model)  # os.path, not pathlib: no error for a name that cannot be a path
    if os.path.isdir(folder):
        return read_config(Path(folder) / "config.json", name=Path(folder).resolve().name)
    if cached := _cached_config(model):
        return read_config(cached, name=model)
    raise _unknown(model)


def read_config(path: Path, *, name: str) -> ModelShape:
    """The shape that a transformers ``config.json`` describes.

    Raises:
        LabError: see `shape_of`.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        rule = f"the config of model {name!r} cannot be read ({error.strerror})"
        raise LabError(str(path), rule, "name a folder with a config.json, or one of " + ", ".join(MODELS)) from error
    except ValueError as error:
        raise LabError(str(path), f"this is not JSON ({error})", "download the config again") from error
    if not isinstance(config, dict):
        raise LabError(str(path), "a config is a JSON object", "download the config again")
    _refuse_other_architectures(config, path)
    return _with_family(_dense_shape(config, path, name))


def _refuse_other_architectures(config: dict[str, Any], path: Path) -> None:
    kind = config.get("model_type")
    given = f"{path} (model_type={kind!r})"
    fix = "choose a dense " + ", ".join(ARCHITECTURES) + " model"
    if "moe" in str(kind) or any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise LabError(given, "mixture-of-experts models are not treated in this book", fix)
    if kind not in ARCHITECTURES:
        raise LabError(given, "this architecture is not treated in this book", fix)
    if kind != "qwen2" and (config.get("attention_bias") or config.get("mlp_bias")):
        raise LabError(given, f"a {kind} with biases on its linears is not treated in this book", fix)


def _dense_shape(config: dict[str, Any], path: Path, name: str) -> ModelShape:
    def size(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LabError(f"{path} ({key}={value!r})", f"{key} must be a whole number above 0", "repair the config")
        return value

    kind, hidden, n_heads = config["model_type"], size("hidden_size"), size("num_attention_heads")
    # Older Llama configs leave out both; the other families' class defaults are not the published models' values.
    n_kv_heads = size("num_key_value_heads", n_heads if kind == "llama" else None)
    head_dim = size("head_dim", None if kind == "qwen3" else hidden // n_heads)
    if n_heads % n_kv_heads:
        given = f"{path} ({n_heads} query heads, {n_kv_heads} key/value heads)"
        raise LabError(given, "key/value heads must divide the query heads", "repair the config")
    tied = config.get("tie_word_embeddings", False)
    sizes = (size("vocab_size"), hidden, size("intermediate_size"), size("num_hidden_layers"))
    return ModelShape(name, kind, *sizes, n_heads, n_kv_heads, head_dim, bool(tied))


def _cached_config(model: str) -> Path | None:
    """Where the Hub's cache on this disk keeps the config of ``owner/name``, if it does."""
    if model.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _unknown(model: str) -> LabError:
    basename = model.rstrip("/").rsplit("/", 1)[-1].lower()
    near = difflib.get_close_matches(basename, MODELS, n=3, cutoff=0.6)
    rule = "not a model name of this book, not a folder, and not a Hub id in the local cache"
    fix = f"did you mean {' or '.join(near)}? " if near else ""
    return LabError(f"model={model!r}", rule, f"{fix}known names: {', '.join(MODELS)}")
