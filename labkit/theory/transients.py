"""What comes and goes inside a step: logits, gradients in flight, the largest working set of a layer. In bytes.

Each function names the instant that it counts. Symbols as in `labkit.theory.activations`. Nothing is fitted: the terms
list the tensors that are alive at that instant in transformers, PEFT, bitsandbytes and TRL, on CUDA.
"""

from __future__ import annotations

from labkit.models.methods import DTYPE_BYTES, Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory import activations as act

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


def head_cast_bytes(shape: ModelShape, method: Method, step: Step, *, backward: bool) -> int:
    """Bytes of autocast's 16-bit copy of an LM head that k-bit preparation raised to float32.

    2 V h while the loss runs; ``fused`` casts 32,768 rows at a time, and in the backward pass makes the next copy
    before it lets go of the last.
    """
    if not (act.autocast(method) and act.element_bytes(method) == 4):
        return 0
    if step.loss != "fused":
        return 2 * shape.embedding_params()
    rows = min(shape.vocab_size, FUSED_VOCAB * (2 if backward else 1))
    return 2 * rows * shape.hidden_size


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
    """Bytes after the full loss, as the LM head's weight gradient appears: e V and e h per token, and e V h.

    It outweighs the 12V per token of `logit_bytes` only for batches of fewer tokens than about h / 5.
    """
    if step.loss != "full" or method.kind != "full":
        return 0
    e = act.element_bytes(method)
    return e * (step.tokens * (shape.vocab_size + shape.hidden_size) + shape.embedding_params())


def dora_norm_bytes(shape: ModelShape, method: Method, *, saved: bool) -> int:
    """Bytes that PEFT's DoRA needs to find the norm of W0 + BA for one linear, whatever the tokens.

    It multiplies B A with an identity (in x in), then holds BA, W0 in the adapter's type, the scaled BA and the sum (in
    x out each): a (in^2 + 4 in out) for the largest adapted linear. A plain W0 of that type is not copied. Where
    autograd saves nothing (``saved=False``: forward under checkpointing) the identity is gone before W0 comes.
    """
    if not method.uses_magnitude:
        return 0
    a = 2 if method.adapter_dtype == "bfloat16" else 4
    held = 4 if method.quantized or a != DTYPE_BYTES[method.dtype] else 3
    if saved and method.dropout:
        held -= 1  # this W0 is the one that `activations.dora_fixed_bytes` counts
    sizes = [(d_in**2, d_in * d_out) for d_in, d_out in (shape.linears()[name] for name in method.targets)]
    return a * max(eye + held * weight if saved else max(eye + weight, held * weight) for eye, weight in sizes)


def forward_layer_bytes(shape: ModelShape, method: Method, step: Step) -> int:
    """Bytes of a layer's largest working set in the forward pass, beside what stays saved.

    Checkpointed, in the MLP: silu(gate), up_proj's output and their product, 3 e i per token; if up_proj is adapted,
    silu(gate), the base output, the adapter's output and its scaled copy, (2e + 2a) i. With them the residual, the
    normalized input and its float32 copy, 8h. Eager attention: scores and their copy in e, softmax in float32. A
    quantized base: its largest weight, dequantized. Not checkpointed, everything but DoRA's work on the weights is
    saved, or smaller than the loss.
    """
    e, a = act.element_bytes(method), act.adapter_element_bytes(method)
    if not step.checkpointing:
        return dora_norm_bytes(shape, method, saved=True)
    adapted = "up_proj" in method.targets and method.uses_adapters
    wide = step.tokens * (2 * e + 2 * a if adapted else 3 * e) * shape.intermediate_size
    scores = (4 + 2 * e) * _scores(shape, step)
    weight = _weight_bytes(shape, method) if method.quantized else 0
    work = max(wide, scores, weight, dora_norm_bytes(shape, method, saved=False))
    return work + step.tokens * 8 * shape.hidden_size


def backward_layer_bytes(shape: ModelShape, method: Method, step: Step, *, trains: bool, adapted: bool) -> int:
    """Bytes in flight inside a layer's backward pass, beside `activations.layer_bytes`: the largest instant."""
    instants = [_down_gradient(shape, method, step, trains=trains, adapted=adapted)]
    if method.quantized:
        recomputed = (False, True) if adapted and step.checkpointing else (False,)
        instants += [_dequantized(shape, method, step, recomputed=again) for again in recomputed]
    if step.attention == "eager":
        gone = act.mlp_half_bytes(shape, method, step, trains=trains, adapted=adapted)
        instants.append(_score_gradients(shape, method, step) - gone)
    if adapted and step.checkpointing:
        instants += [_recomputed_up(shape, method, step), _recomputed_down(shape, method, step)]
    return max(instants)


def _scores(shape: ModelShape, step: Step) -> int:
    """Attention scores that eager attention stores per layer (flash kernels store none)."""
    return shape.n_heads * step.batch * step.seq_len**2 if step.attention == "eager" else 0


def _down_gradient(shape: ModelShape, method: Method, step: Step, *, trains: bool, adapted: bool) -> int:
    """Gradients of the MLP's product: one from the base, one from the adapter or the MLP, (e + c) i per token.

    c is the type of the base's product: 2 if quantized, else e. One e i more if down_proj keeps no input that could be
    freed by then. Beside them the residual's gradient, e h.
    """
    e = act.element_bytes(method)
    wide = e + (2 if method.quantized else e)
    if not (trains or (adapted and "down_proj" in method.targets)):
        wide += e
    return step.tokens * (wide * shape.intermediate_size + e * shape.hidden_size)


def _dequantized(shape: ModelShape, method: Method, step: Step, *, recomputed: bool) -> int:
    """The largest weight (down_proj's, as large as up_proj's), dequantized.

    For the gradient of its input, 2 i per token if the adapter shares that input (else the freed float32 input makes
    room), and e h. Or recomputing down_proj: its input e i is there, but the adapter's copy of it not yet; as wide as
    the residual, see `_recomputed_up`.
    """
    e, shared = act.element_bytes(method), act.shares_input(method)
    inner, outer = 2 if shared else 0, e
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


def _score_gradients(shape: ModelShape, method: Method, step: Step) -> int:
    """Eager attention's scores in the backward pass: float32 gradient, the softmax kernel's float32 product, and the
    result in e: 4 + 4 + e each."""
    return (8 + act.element_bytes(method)) * _scores(shape, step)


def _recomputed_up(shape: ModelShape, method: Method, step: Step) -> int:
    """Recomputing up_proj: the adapter's output and its scaled copy, 2 a i, while down_proj's input is still to come.

    As wide as the residual: the residual, its gradient, the gradients into down_proj's base (e each) and into its
    adapter (a); the normalized input (e) unless the adapter shares, and so keeps, it.
    """
    e, a, shared = act.element_bytes(method), act.adapter_element_bytes(method), act.shares_input(method)
    wide = (2 * a if "up_proj" in method.targets else 0) - _down_copy(method)
    return step.tokens * (wide * shape.intermediate_size + ((3 if shared else 4) * e + a) * shape.hidden_size)


def _recomputed_down(shape: ModelShape, method: Method, step: Step) -> int:
    """Recomputing down_proj: the MLP's product e i, and float32 copies of it, 4 i each, that nothing keeps.

    One if dropout or autocast follows PEFT's cast, two if both do (its bitsandbytes layer has no cast under autocast).
    DoRA works on the weight at that instant. As wide as the residual: the residual, the base output, the normalized
    input and two gradients, 5 e h; DoRA has a gradient in the adapter's type instead of one of them.
    """
    e, a = act.element_bytes(method), act.adapter_element_bytes(method)
    autocast = act.autocast(method) and not method.quantized
    copies = (autocast + (method.dropout > 0 and (autocast or method.adapter_dtype == "float32"))) if e < 4 else 0
    inner = (e + 4 * copies) * shape.intermediate_size if "down_proj" in method.targets else 0
    outer = (4 * e + a if method.uses_magnitude else 5 * e) * shape.hidden_size
    return step.tokens * (inner + outer) + dora_norm_bytes(shape, method, saved=True)
