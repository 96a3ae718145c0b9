"""What one decoder layer keeps for its backward pass, in bytes, term by term.

The counts follow what autograd saves when transformers runs the layer with SDPA flash attention: an operation keeps an
input only if a gradient needs it, and tensors that share storage count once. Nothing is fitted. Korthikanti et al.
(2205.05198) made such a bill, 34 h + 5 a s bytes per token, for GPT with GeLU, dropout and LayerNorm; no term of it
holds for RMSNorm, SwiGLU, grouped queries and a frozen base.

Symbols: N tokens, h hidden, q and k widths of queries and keys, i width of the MLP, e bytes of an activation element,
a bytes of an element inside an adapter, r rank.
"""

from __future__ import annotations

from dataclasses import replace

from labkit.models.methods import DTYPE_BYTES, TARGETS, Method, Step
from labkit.models.shapes import ModelShape

QKV, GATE_UP = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}


def element_bytes(method: Method) -> int:
    """e: bytes of an element of the residual stream. K-bit preparation raises norms and embeddings, so e, to 4.

    So does DoRA on a 4-bit base under autocast: PEFT multiplies by the float32 magnitude and does not cast back there.
    """
    raised = method.kind == "qdora" and autocast(method) and bool({"o_proj", "down_proj"} & set(method.targets))
    return 4 if method.kbit_prepare or raised else DTYPE_BYTES[method.dtype]


def autocast(method: Method) -> bool:
    """Whether the step runs under bf16 autocast."""
    return method.uses_adapters and method.adapter_dtype == "autocast"


def compute_bytes(method: Method) -> int:
    """Bytes of an element that a matrix product works on and returns: 2 under autocast, else e."""
    return 2 if autocast(method) else element_bytes(method)


def adapter_element_bytes(method: Method) -> int:
    """a: bytes of an element inside an adapter: 4 for float32 adapters, else 2 (autocast computes in bf16)."""
    return 4 if method.adapter_dtype == "float32" else 2


def shares_input(method: Method) -> bool:
    """Whether adapters use the layer's own activation, so that q, k and v (gate and up) keep one input between them.

    Not so if dropout makes a new tensor, or if the element types differ: PEFT casts the input once per module. Under
    autocast PEFT's plain LoRA casts to float32 and autocast back to bf16; its bitsandbytes layer leaves the cast out.
    """
    # TRL makes half-precision adapters of a 4-bit base bf16, whatever the base's own type.
    mixed = method.quantized and method.dtype == "float16" and method.adapter_dtype == "bfloat16"
    same_type = adapter_element_bytes(method) == element_bytes(method) and not mixed
    return method.dropout == 0 and same_type and (method.quantized or not autocast(method))


def trained_linears(method: Method) -> tuple[str, ...]:
    """The linears whose weights train in a layer that trains: all seven, or the selected modules'."""
    return method.targets if method.modules else TARGETS


def norm_bytes(shape: ModelShape, method: Method, *, trains: bool) -> int:
    """Bytes per token of the RMSNorms: 2 * 4h for the float32 input, 8 for two rsqrt; Qwen3 adds 4(q + k) + rsqrt.

    A norm whose weight trains also keeps its normalized input: e * width.
    """
    width, rows = 2 * shape.hidden_size, 2
    if shape.qk_norm:
        width, rows = width + shape.q_size + shape.kv_size, rows + shape.n_heads + shape.n_kv_heads
    return (4 + (element_bytes(method) if trains else 0)) * width + 4 * rows


def attention_bytes(shape: ModelShape, method: Method, step: Step, *, keeps_output: bool) -> int:
    """Bytes of a whole batch: queries and keys after rotation, values, and what the kernel keeps.

    Flash: e(q + k) + e k + the output e q + the float32 logsumexp, 4 per head. A padded batch needs a dense mask: keys
    and values are repeated to the query heads (2e(q - k) more), and e s^2 per sequence for the mask. Eager: keys and
    values repeated, softmax in float32 (4) and its 16-bit copy (2) per score, 6 * heads * s^2 per sequence in all; the
    output is kept only if o_proj needs it as its input.
    """
    e = compute_bytes(method)
    q, k, scores = shape.q_size, shape.kv_size, step.batch * step.seq_len**2
    if step.attention == "eager":
        softmax = 4 if e == 4 else 4 + e
        return step.tokens * e * (3 * q + (q if keeps_output else 0)) + softmax * shape.n_heads * scores
    flash = step.tokens * (e * (2 * q + 2 * k) + 4 * shape.n_heads)
    return flash + (step.tokens * 2 * e * (q - k) + e * scores if step.padded else 0)


def mlp_bytes(shape: ModelShape, method: Method) -> int:
    """Bytes per token of gate, silu(gate) and up: 3 e i (their product is down_proj's input)."""
    return 3 * element_bytes(method) * shape.intermediate_size


def input_bytes(shape: ModelShape, method: Method, targets: tuple[str, ...]) -> int:
    """Bytes per token of the inputs that weight gradients need, shared between linears: e(h + h + i) at most.

    q, k and v share one, gate and up share one; o_proj's is the attention output, counted in `attention_bytes`.
    """
    named = set(targets)
    hidden = shape.hidden_size * (bool(named & QKV) + bool(named & GATE_UP))
    return element_bytes(method) * (hidden + (shape.intermediate_size if "down_proj" in named else 0))


def adapter_bytes(shape: ModelShape, method: Method) -> int:
    """Bytes per token that the adapters of a layer keep: a r each, and their inputs.

    Inputs that cannot be shared cost a * d_in per adapted linear, plus a one-byte dropout mask (CUDA's fused dropout).
    DoRA (PEFT) keeps its LoRA output, a * d_out, and the base output that the magnitude scales: e * d_out, or with
    dropout, which runs the base linear again in the adapter's type, a * d_out.
    """
    a, linears = adapter_element_bytes(method), shape.linears()
    saved = a * method.rank * len(method.targets)
    if shares_input(method):
        saved += input_bytes(shape, method, method.targets)
    else:
        saved += sum(linears[name][0] for name in method.targets) * (a + (1 if method.dropout else 0))
    if method.uses_magnitude:
        base = a if method.dropout else element_bytes(method)
        saved += sum(linears[name][1] for name in method.targets) * (a + base)
    return saved


def dora_fixed_bytes(shape: ModelShape, method: Method, targets: tuple[str, ...] | None = None) -> int:
    """Bytes that DoRA keeps per layer, whatever the tokens: norm, magnitude / norm and that minus 1, 3 a d_out.

    With dropout PEFT computes the base output a second time, from the dropped input, and autograd keeps the weight for
    it: a d_in d_out, unless that is the base's own weight, which is there anyway.

    Args:
        targets: count these linears only; None counts all that are adapted.
    """
    if not method.uses_magnitude:
        return 0
    copied = method.dropout > 0 and copies_weight(method)
    named = map(shape.linears().get, method.targets if targets is None else targets)
    return adapter_element_bytes(method) * sum(d_out * (3 + (d_in if copied else 0)) for d_in, d_out in named)


def copies_weight(method: Method) -> bool:
    """Whether DoRA needs the weight in another form than the base has it: dequantized, or in the adapter's type."""
    return method.quantized or autocast(method) or adapter_element_bytes(method) != DTYPE_BYTES[method.dtype]


def autocast_bytes(shape: ModelShape, method: Method) -> int:
    """Bytes of one layer's adapters in bf16, copies that autocast makes and autograd keeps: 2r(in + out)."""
    if not autocast(method):
        return 0
    return 2 * method.rank * sum(sum(shape.linears()[name]) for name in method.targets)


def layer_bytes(shape: ModelShape, method: Method, step: Step, *, trains: bool, adapted: bool) -> int:
    """Bytes that one decoder layer keeps for a batch.

    Args:
        trains: its own weights train (full, or a selected layer of spectrum).
        adapted: it carries adapters.
    """
    needs_output = "o_proj" in (trained_linears(method) if trains else method.targets)
    keeps_output = needs_output and (trains or (adapted and shares_input(method)))
    per_token = norm_bytes(shape, method, trains=trains and not method.modules) + mlp_bytes(shape, method)
    if trains:
        per_token += input_bytes(shape, method, trained_linears(method))
    if adapted:
        per_token += adapter_bytes(shape, method)
    whole = attention_bytes(shape, method, step, keeps_output=keeps_output)
    return step.tokens * per_token + whole + (dora_fixed_bytes(shape, method) if adapted else 0)


def mlp_half_bytes(shape: ModelShape, method: Method, step: Step, *, trains: bool, adapted: bool) -> int:
    """Bytes of `layer_bytes` that belong to the MLP and its norm: gone when the backward pass reaches the attention."""
    mlp = tuple(name for name in method.targets if name in GATE_UP or name == "down_proj")
    per_token = mlp_bytes(shape, method) + 4 * shape.hidden_size
    if trains:
        norm = 0 if method.modules else element_bytes(method) * shape.hidden_size
        own = tuple(name for name in trained_linears(method) if name in GATE_UP or name == "down_proj")
        per_token += norm + input_bytes(shape, method, own)
    if adapted and mlp:
        per_token += adapter_bytes(shape, replace(method, targets=mlp))
    return step.tokens * per_token


def output_half_bytes(shape: ModelShape, method: Method, step: Step, *, trains: bool, adapted: bool) -> int:
    """Bytes that o_proj keeps, its input and its adapter: gone when the backward pass reaches the attention scores."""
    if adapted and "o_proj" in method.targets:
        shared = element_bytes(method) * shape.q_size if shares_input(method) else 0
        return step.tokens * (shared + adapter_bytes(shape, replace(method, targets=("o_proj",))))
    needed = trains and "o_proj" in trained_linears(method)
    return step.tokens * element_bytes(method) * shape.q_size if needed else 0


def dora_own_bytes(shape: ModelShape, method: Method, step: Step, name: str) -> int:
    """Bytes that DoRA keeps for one linear once it has the norm.

    Its LoRA output, a d_out; with dropout its base output too; and `dora_fixed_bytes`.
    """
    outputs = shape.linears()[name][1] * (2 if method.dropout else 1)
    return step.tokens * adapter_element_bytes(method) * outputs + dora_fixed_bytes(shape, method, (name,))


def unmade_bytes(shape: ModelShape, method: Method, step: Step, name: str) -> int:
    """Bytes of an adapted layer's `layer_bytes` that are not there yet when DoRA takes the norm of ``name``'s weight:
    its own, see `dora_own_bytes`, and whatever comes after it in the layer. The a r of later adapters are left out (a
    moment stays a straight line in the rank that way)."""
    method = replace(method, rank=1, alpha=1)
    a, e, tokens = adapter_element_bytes(method), element_bytes(method), step.tokens
    if name in QKV:
        made = 4 + (e if shares_input(method) else a + (1 if method.dropout else 0))
        return layer_bytes(shape, method, step, trains=False, adapted=True) - tokens * made * shape.hidden_size
    later = tuple(target for target in method.targets if TARGETS.index(target) > TARGETS.index(name))
    unmade = dora_own_bytes(shape, method, step, name) + dora_fixed_bytes(shape, method, later)
    if name == "o_proj":
        return unmade + mlp_half_bytes(shape, method, step, trains=False, adapted=True)
    wide = {"gate_proj": 3, "up_proj": 1, "down_proj": 0}[name] * e * shape.intermediate_size
    return unmade + tokens * (wide + (adapter_bytes(shape, replace(method, targets=later)) if later else 0))


def before_first_gradient_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes that the first trained layer does *not* keep, because its input needs no gradient (no checkpointing).

    The first norm's float32 input, 4h per token; if no adapter sits on q, k or v, the attention before the first
    adapter too; if none sits before down_proj, everything but the adapters. The first adapters keep no dropout
    mask.
    """
    if method.kind == "full":  # the embedding trains, so its output needs a gradient
        return 0
    if method.modules:
        method = method.at(min(method.layers))
    if method.kind == "spectrum":
        return _before_first_adapter(shape, method, step) if method.modules else step.tokens * 4 * shape.hidden_size
    return _first_dropout(shape, method, step) + _before_first_adapter(shape, method, step)


def _first_dropout(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes of the first adapters' dropout masks, and of DoRA's weights for them: their input needs no gradient."""
    if not method.dropout:
        return 0
    targets = set(method.targets)
    first = next(group for group in (QKV, {"o_proj"}, GATE_UP, {"down_proj"}) if group & targets) & targets
    copied = adapter_element_bytes(method) if method.uses_magnitude and copies_weight(method) else 0
    sizes = [shape.linears()[name] for name in first]
    return sum(step.tokens * d_in + copied * d_in * d_out for d_in, d_out in sizes)


def _before_first_adapter(shape: ModelShape, method: Method, step: Step) -> int:
    if early := QKV & set(method.targets):
        return step.tokens * 4 * shape.hidden_size + _without_scores(shape, method, step, early)
    norms, half = norm_bytes(shape, method, trains=False), 4 * shape.hidden_size + 4
    attention = attention_bytes(shape, method, step, keeps_output=False)
    if "o_proj" in method.targets:
        return attention + step.tokens * (norms - half)
    # The product of silu(gate) and up keeps each factor for the other's gradient; silu keeps its input for its own.
    unkept = {frozenset(): 3, frozenset({"gate_proj"}): 1, frozenset({"up_proj"}): 2}
    wide = unkept.get(frozenset(GATE_UP & set(method.targets)), 0)
    mlp = wide * element_bytes(method) * shape.intermediate_size
    return attention + step.tokens * (norms + mlp)


def _without_scores(shape: ModelShape, method: Method, step: Step, early: set[str]) -> int:
    """Bytes of the first trained layer's attention that only queries or keys with a gradient would keep.

    Their own norms (Qwen3); and, if only v_proj trains, eager attention's softmax and its factors: of the scores the
    16-bit copy stays, which the values' gradient needs. Flash kernels keep all or nothing.
    """
    widths = {"q_proj": (shape.q_size, shape.n_heads), "k_proj": (shape.kv_size, shape.n_kv_heads)}
    idle = [widths[name] for name in widths if name not in early and shape.qk_norm]
    unkept = step.tokens * 4 * sum(width + heads for width, heads in idle)
    if step.attention == "eager" and early == {"v_proj"}:
        e = compute_bytes(method)
        softmax = 4 if e == 4 else 4 + e
        unkept += shape.n_heads * step.batch * step.seq_len**2 * (softmax - e) + 3 * step.tokens * e * shape.q_size
    return unkept


def kept_in_layer(shape: ModelShape, method: Method, step: Step, layer: int) -> int:
    """Bytes that one decoder layer keeps for a batch, by its number (no checkpointing, some layer below it trains)."""
    here = method.at(layer)
    if here is None:
        return layer_bytes(shape, method, step, trains=False, adapted=False)
    adapted = method.uses_adapters
    return layer_bytes(shape, here, step, trains=not adapted, adapted=adapted) + autocast_bytes(shape, here)


def saved_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes that all decoder layers together keep until the backward pass, and the mask they share.

    With checkpointing each layer's input, e h per token, and nothing else; frozen layers too, because transformers then
    makes the embedding's output require a gradient. Without, nothing is kept below the first trained layer.
    """
    if step.checkpointing:
        return shape.n_layers * step.tokens * element_bytes(method) * shape.hidden_size + mask_bytes(method, step)
    if method.modules:
        kept = sum(kept_in_layer(shape, method, step, layer) for layer in range(min(method.layers), shape.n_layers))
        return kept - before_first_gradient_bytes(shape, method, step) + mask_bytes(method, step)
    chosen = len(method.layers) or shape.n_layers
    frozen = shape.n_layers - min(method.layers, default=0) - chosen
    adapted = method.uses_adapters
    one = layer_bytes(shape, method, step, trains=not adapted, adapted=adapted) + autocast_bytes(shape, method)
    bare = layer_bytes(shape, method, step, trains=False, adapted=False)
    return chosen * one + frozen * bare - before_first_gradient_bytes(shape, method, step) + mask_bytes(method, step)


def mask_bytes(method: Method, step: Step) -> int:
    """Bytes of the attention mask that all layers share: s^2 per sequence, of e for eager attention; of 1 if padded.

    Without padding SDPA needs none. Each layer of a padded batch makes its own of e besides, see `attention_bytes`.
    """
    if step.attention == "eager":
        return element_bytes(method) * step.batch * step.seq_len**2
    return step.batch * step.seq_len**2 if step.padded else 0


def head_saved_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes that the final norm and the LM head's input keep: 4h per token, and e h for each of two more.

    The normalized input is kept if the norm trains; the LM head's input if the LM head trains or the loss recomputes
    the logits from it (fused, chunked).
    """
    e, trains = element_bytes(method), method.kind == "full"
    inputs = (e if trains else 0) + (e if trains or step.loss != "full" else 0)
    return step.tokens * ((4 + inputs) * shape.hidden_size + 4)
