"""What comes and goes inside a step: logits, gradients in flight, the largest working set of a layer. In bytes.

Each function names the instant that it counts. Symbols as in `labkit.theory.activations`. Nothing is fitted: the terms
list the tensors that are alive at that instant in transformers, PEFT, bitsandbytes and TRL, on CUDA.
"""

from __future__ import annotations

from labkit.models.methods import DTYPE_BYTES, Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory import activations as act
from labkit.theory.dora_transients import dora_layer_bytes, dora_norm_bytes

CHUNK_TOKENS = 256  # tokens per chunk of the "chunked" loss
FUSED_TOKENS, FUSED_VOCAB = 4096, 32768  # tile of TRL 1.16's fused LM head


def logit_bytes(shape: ModelShape, method: Method, step: Step, *, backward: bool) -> int:
    """Bytes of everything as wide as the vocabulary V at the loss's peak.

    ``full`` (transformers), per token: logits e V, their float32 copy 4V and log-softmax 4V in the forward pass; in the
    backward pass log-softmax 4V, its incoming gradient 4V and its outgoing one 4V, so 12V, plus the logits e V if the
    caller keeps them. ``chunked``: 8V and 12V for 256 tokens. ``fused``: one tile of TRL 1.16's
    `ChunkedLogProbFunction` (min(N, 4,096) tokens by 32,768 columns, however small V is, in the compute type), in both
    passes; assumed are
    its Triton kernels, which work inside the tile (the torch fallback off CUDA makes several float32 copies of it),
    and that every token carries loss (it skips masked ones).
    """
    e, vocab = act.compute_bytes(method), shape.vocab_size
    if step.loss == "fused":
        return e * min(step.tokens, FUSED_TOKENS) * FUSED_VOCAB
    tokens = min(step.tokens, CHUNK_TOKENS) if step.loss == "chunked" else step.tokens
    if not backward:
        return tokens * vocab * (8 + (e if e < 4 and step.loss == "full" else 0))
    return tokens * vocab * (12 + (e if step.keep_logits else 0))


def kept_logit_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes of the logits that the caller keeps through the backward pass: e V per token."""
    return act.compute_bytes(method) * step.tokens * shape.vocab_size if step.keep_logits else 0


def head_cast_bytes(shape: ModelShape, method: Method, step: Step, *, backward: bool) -> int:
    """Bytes of autocast's 16-bit copy of an LM head that k-bit preparation raised to float32.

    2 V h while the loss runs; ``fused`` casts 2 h of its input per token, and 32,768 rows at a time, and in the
    backward pass makes the next copy before it lets go of the last.
    """
    if not (act.autocast(method) and act.element_bytes(method) == 4):
        return 0
    weight = 2 * shape.embedding_params() if method.kbit_prepare else 0
    if step.loss != "fused":
        return weight
    inputs = 2 * min(step.tokens, FUSED_TOKENS) * shape.hidden_size
    rows = min(shape.vocab_size, FUSED_VOCAB * (2 if backward else 1))
    return (2 * rows * shape.hidden_size if weight else 0) + inputs


def head_gradient_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes of the gradients that leave the LM head, at the instant of `logit_bytes`.

    ``fused`` accumulates in float32 and casts at the end: (4 + e) h per token, and (4 + e) V h if the LM head trains.
    ``chunked``: e h per token of the other chunks, and what they have accumulated, e V h, if the LM head trains.
    ``full``: nothing yet, they follow once the logits' gradient is complete.
    """
    e, trains = act.element_bytes(method), method.kind == "full"
    hidden, matrix = step.tokens * shape.hidden_size, shape.embedding_params() if trains else 0
    if step.loss == "fused":
        return (4 + (e if e < 4 else 0)) * (hidden + matrix)
    if step.loss == "chunked":
        others = max(step.tokens - CHUNK_TOKENS, 0)
        return e * (others * shape.hidden_size + (matrix if others else 0))
    return 0


def head_weight_gradient_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes after the logits' gradient, as the LM head's weight gradient appears.

    ``full``: e V and e h per token, and e V h; it outweighs the 12V per token of `logit_bytes` only for batches of
    fewer tokens than about h / 5. ``chunked``: a chunk's gradient, the sum so far and their sum, 3 e V h, beside the
    e h per token that leave the head.
    """
    if method.kind != "full" or step.loss == "fused":
        return 0
    e, matrix, hidden = act.element_bytes(method), shape.embedding_params(), step.tokens * shape.hidden_size
    if step.loss == "chunked":
        return e * (hidden + matrix * (3 if step.tokens > CHUNK_TOKENS else 1))
    return e * (step.tokens * shape.vocab_size + hidden + matrix)


def forward_layer_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes of a layer's largest working set in the forward pass, beside what stays saved.

    Checkpointed, in the MLP: silu(gate), up_proj's output and their product, 3 e i per token; if up_proj is adapted,
    silu(gate), the base output, the adapter's output and its scaled copy, (2e + 2a) i. With them the residual, the
    normalized input and its float32 copy, 8h. Eager attention: scores and their copy in e, softmax in float32. A
    quantized base: its largest weight, dequantized. Not checkpointed, nearly everything is saved: what is left is
    DoRA's work on the weights, and down_proj's in the last layer.
    """
    e, a = act.element_bytes(method), act.adapter_element_bytes(method)
    if not step.checkpointing:
        work = (dora_layer_bytes(shape, method, step, backward=False), _last_down(shape, method, step))
        return max(0, *work, _last_weight(shape, method, step))
    adapted = "up_proj" in method.targets and method.uses_adapters
    wide = step.tokens * (2 * e + 2 * a if adapted else 3 * e) * shape.intermediate_size
    scores = (4 + 2 * e) * _scores(shape, step)
    weight = _weight_bytes(shape, method) if method.quantized else 0
    norms = [dora_norm_bytes(shape, method, name, saved=False) for name in method.targets if method.uses_magnitude]
    work = max(wide, scores, weight, *norms)
    return work + step.tokens * 8 * shape.hidden_size


def _last_down(shape: ModelShape, method: Method, step: Step) -> int:
    """At the end of the last layer, not checkpointed: down_proj's inputs that nothing keeps, see `_passing_inputs`.

    As wide as the residual: the adapter's output and its scaled copy, 2 a h, the residual twice, the base output and
    the normalized input, 4 e h; one more e h where PEFT clones the output of a quantized base.
    """
    e, a = act.element_bytes(method), act.adapter_element_bytes(method)
    if not (method.uses_adapters and "down_proj" in method.targets):
        return 0
    inner = _passing_inputs(method) * shape.intermediate_size
    return step.tokens * (inner + (2 * a + (5 if method.quantized else 4) * e) * shape.hidden_size)


def _last_weight(shape: ModelShape, method: Method, step: Step) -> int:
    """At down_proj of the last layer, not checkpointed, on a quantized base: its weight, dequantized.

    The MLP's product e i is there, and the adapter's copy of it not yet; the residual, the normalized input and the
    output, 3 e h.
    """
    if not method.quantized:
        return 0
    e = act.element_bytes(method)
    inner = (e - _down_copy(method)) * shape.intermediate_size
    return _weight_bytes(shape, method) + step.tokens * (inner + 3 * e * shape.hidden_size)


def backward_layer_bytes(shape: ModelShape, method: Method, step: Step, *, trains: bool, adapted: bool) -> int:
    """Bytes in flight inside a layer's backward pass, beside `activations.layer_bytes`: the largest instant."""
    instants = [_down_gradient(shape, method, step, trains=trains, adapted=adapted)]
    if trains:
        instants.append(_gate_gradient(shape, method, step))
    if method.quantized:
        again = adapted and step.checkpointing and "down_proj" in method.targets  # else recomputation stops before it
        recomputed = (False, True) if again else (False,)
        instants += [_dequantized(shape, method, step, recomputed=on) for on in recomputed]
    if step.attention == "eager":
        gone = act.mlp_half_bytes(shape, method, step, trains=trains, adapted=adapted)
        gone += act.output_half_bytes(shape, method, step, trains=trains, adapted=adapted)
        instants.append(_score_gradients(shape, method, step, trains=trains) - gone)
    if adapted and step.checkpointing:
        instants += [_recomputed_up(shape, method, step), _recomputed_down(shape, method, step)]
        instants.append(dora_layer_bytes(shape, method, step, backward=True))
    return max(instants)


def _scores(shape: ModelShape, step: Step) -> int:
    """Attention scores that eager attention stores per layer (flash kernels store none)."""
    return shape.n_heads * step.batch * step.seq_len**2 if step.attention == "eager" else 0


def _down_gradient(shape: ModelShape, method: Method, step: Step, *, trains: bool, adapted: bool) -> int:
    """Gradients of the MLP's product: one from the base, one from the adapter or the MLP, (e + c) i per token.

    c is the type of the base's product: the 4-bit base's own type if quantized, else e. Then the gradients of its two
    factors beside it, 3 e i, less the input that down_proj kept, which is gone by then. Beside them the residual's
    gradient, e h.
    """
    e = act.element_bytes(method)
    kept = (
        (e if "down_proj" in act.trained_linears(method) else 0) if trains else (_down_copy(method) if adapted else 0)
    )
    wide = max(e + (DTYPE_BYTES[method.dtype] if method.quantized else e), 3 * e - kept)
    done = trains and bool(method.modules) and "down_proj" in method.targets  # else `_gate_gradient` has more
    matrix = e * shape.hidden_size * shape.intermediate_size if done else 0
    return matrix + step.tokens * (wide * shape.intermediate_size + e * shape.hidden_size)


def _gate_gradient(shape: ModelShape, method: Method, step: Step) -> int:
    """A trained layer at the weight gradients of up_proj: those of down_proj and of it, 2 e h i, and per token the
    gradients of the product's factors, 2 e i, in place of the product, e i; the residual's gradient, e h."""
    e = act.element_bytes(method)
    wide = {"up_proj", "down_proj"} & set(act.trained_linears(method))
    matrices = len(wide) * e * shape.hidden_size * shape.intermediate_size
    return matrices + step.tokens * e * (shape.intermediate_size + shape.hidden_size)


def norm_gradient_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes in flight at the very end of a layer's backward pass, in its first norm: five float32 copies, and e h."""
    return step.tokens * (20 + act.element_bytes(method)) * shape.hidden_size


def _dequantized(shape: ModelShape, method: Method, step: Step, *, recomputed: bool) -> int:
    """The largest weight (down_proj's, as large as up_proj's), dequantized.

    For the gradient of its input, 2 i per token (4 i if float32) if the adapter shares that input (else the freed
    float32 input makes room), and e h. Or recomputing down_proj: its input e i is there, but the adapter's copy of it
    not yet; as wide as the residual, see `_recomputed_up`.
    """
    e, shared = act.element_bytes(method), act.shares_input(method)
    inner, outer = DTYPE_BYTES[method.dtype] if shared else 0, e
    if recomputed:
        inner, outer = e - _down_copy(method), (3 if shared else 4) * e + act.adapter_element_bytes(method)
    wide = step.tokens * (inner * shape.intermediate_size + outer * shape.hidden_size)
    return _weight_bytes(shape, method) + wide


def _weight_bytes(shape: ModelShape, method: Method) -> int:
    """The largest linear's weight in 16 bits and, after double quantization, its absmax restored to float32."""
    elements = max(d_in * d_out for d_in, d_out in shape.linears().values())
    return DTYPE_BYTES[method.dtype] * elements + (4 * -(-elements // method.block_size) if method.double_quant else 0)


def _down_copy(method: Method) -> int:
    """Bytes per element of down_proj's input that its adapter keeps."""
    if "down_proj" not in method.targets:
        return 0
    if act.shares_input(method):
        return act.element_bytes(method)
    return act.adapter_element_bytes(method) + (1 if method.dropout else 0)


def _score_gradients(shape: ModelShape, method: Method, step: Step, *, trains: bool) -> int:
    """Eager attention's scores in the backward pass: float32 gradient, the softmax kernel's float32 product and the
    result, 4 + 4 + 4 each, of which the 16-bit copy that is gone by then makes up for 2. In float16, whose softmax
    casts inside its kernel, the result takes 2. Beside them the residual's gradient, e h, and the weight gradients of
    the MLP and of o_proj if they train; the values' gradient takes the place of the values."""
    e, narrow = act.element_bytes(method), act.compute_bytes(method) == 2
    result = (0 if method.dtype == "float16" else 2) if narrow else 4
    later = [name for name in act.trained_linears(method) if name not in act.QKV] if trains else []
    matrices = sum(d_in * d_out for d_in, d_out in map(shape.linears().get, later))
    return (8 + result) * _scores(shape, step) + e * (step.tokens * shape.hidden_size + matrices)


def _recomputed_up(shape: ModelShape, method: Method, step: Step) -> int:
    """Recomputing up_proj: the adapter's output and its scaled copy, 2 a i, while down_proj's input is still to come.

    As wide as the residual: the residual, its gradient, the gradients into down_proj's base (e each) and into its
    adapter (a); the normalized input (e) unless the adapter shares, and so keeps, it.
    """
    e, a, shared = act.element_bytes(method), act.adapter_element_bytes(method), act.shares_input(method)
    wide = (2 * a if "up_proj" in method.targets else 0) - _down_copy(method)
    return step.tokens * (wide * shape.intermediate_size + ((3 if shared else 4) * e + a) * shape.hidden_size)


def _passing_inputs(method: Method) -> int:
    """Bytes per element of down_proj's input that are there and not kept: itself, unless it is, and float32 copies.

    One copy if dropout or autocast follows PEFT's cast, two if both do (its bitsandbytes layer has no cast under
    autocast).
    """
    e, autocast = act.element_bytes(method), act.autocast(method) and not method.quantized
    copies = (autocast + (method.dropout > 0 and (autocast or method.adapter_dtype == "float32"))) if e < 4 else 0
    return (0 if act.shares_input(method) else e) + 4 * copies


def _recomputed_down(shape: ModelShape, method: Method, step: Step) -> int:
    """Recomputing down_proj: its inputs that nothing keeps, see `_passing_inputs`.

    As wide as the residual: the residual, the base output, the normalized input and the residual's gradient,
    4 e h, and the adapter's, a h; one more gradient, e h, if the sum of both outputs is cast back, as PEFT does on a
    plain base of another type.
    """
    e, a = act.element_bytes(method), act.adapter_element_bytes(method)
    inner = _passing_inputs(method) * shape.intermediate_size if "down_proj" in method.targets else 0
    cast_back = e if a != e and not method.quantized else 0
    return step.tokens * (inner + (4 * e + a + cast_back) * shape.hidden_size)
