"""What stays on the GPU through a whole step, exact to the byte: parameters, constants, adapters, optimizer states.

Everything is counted in tensors, because optimizers and quantizers keep something for each tensor, however small.
`labkit.theory.memory` puts what a step adds on top.
"""

from __future__ import annotations

from labkit.models.methods import DTYPE_BYTES, Method, Step, module_parts
from labkit.models.shapes import ModelShape
from labkit.theory.activations import QKV

STATES_32BIT_BELOW = 4096  # bitsandbytes keeps 32-bit states for smaller tensors (min_8bit_size)
PAGED_FROM = 100_000  # bitsandbytes pages states from this many elements on

Tensors = list[tuple[int, int, int]]  # (how many tensors, elements in each, bytes per element)


def adapter_tensors(shape: ModelShape, method: Method) -> Tensors:
    """A (r, in) and B (out, r) of every adapted linear and, for DoRA, a magnitude (out).

    On a quantized base TRL 1.16 makes adapters bf16 but leaves the magnitude float32: in bf16 its small updates would
    be rounded away. On a plain base PEFT's ``autocast_adapter_dtype=False`` gives both the base's type.
    """
    if not method.uses_adapters:
        return []
    size = 2 if method.adapter_dtype == "bfloat16" else 4
    tensors: Tensors = []
    for name in method.targets:
        layers = _layers_with(shape, method, name)
        d_in, d_out = shape.linears()[name]
        tensors += [(layers, method.rank * d_in, size), (layers, method.rank * d_out, size)]
        tensors += [(layers, d_out, 4 if method.quantized else size)] if method.uses_magnitude else []
    return tensors


def trainable_tensors(shape: ModelShape, method: Method) -> Tensors:
    """The tensors that get a gradient: all, the selected layers', or the adapters'."""
    if method.uses_adapters:
        return adapter_tensors(shape, method)
    size = DTYPE_BYTES[method.dtype]
    if method.kind == "full":
        return [(count, elements, size) for count, elements in shape.tensors().values()]
    if method.modules:
        return [tensor for name in method.targets for tensor in _module_tensors(shape, method, name)]
    outside = {"embed_tokens", "lm_head"}
    inside = {name: tensor for name, tensor in shape.tensors().items() if name not in outside}
    per_layer = [(count // shape.n_layers, elements) for count, elements in inside.values()]
    return [(count * len(method.layers), elements, size) for count, elements in per_layer]


def _layers_with(shape: ModelShape, method: Method, name: str) -> int:
    """In how many layers a target trains."""
    if method.modules:
        return sum(module_parts(module)[1] == name for module in method.modules)
    return len(method.layers) or shape.n_layers


def _module_tensors(shape: ModelShape, method: Method, name: str) -> Tensors:
    """Weights of the selected linears of one name, and their biases (Qwen2's q_proj, k_proj and v_proj)."""
    (d_in, d_out), size, layers = shape.linears()[name], DTYPE_BYTES[method.dtype], _layers_with(shape, method, name)
    bias = shape.attention_bias and name in QKV
    return [(layers, d_in * d_out, size)] + ([(layers, d_out, size)] if bias else [])


def parameter_bytes(shape: ModelShape, method: Method) -> int:
    """Bytes of the base model: NF4 packs two weights of a decoder linear into one byte.

    Embeddings, LM head, norms and biases are never quantized; k-bit preparation raises them to float32.
    """
    size = DTYPE_BYTES[method.dtype]
    if not method.quantized:
        return size * shape.n_params
    packed = shape.n_layers * sum(-(-d_in * d_out // 2) for d_in, d_out in shape.linears().values())
    return packed + (4 if method.kbit_prepare else size) * (shape.n_params - shape.linear_params())


def quantization_bytes(shape: ModelShape, method: Method) -> int:
    """Bytes of NF4's constants (bitsandbytes ``QuantState``), linear by linear.

    Plain: float32 absmax per block and the 16 code values (64 bytes). Double quantization (Dettmers et al. 2023,
    section 3): one byte per block, float32 per 256 blocks, a float32 offset, the 16 code values, and the 256 code
    values of the second level (1,024 bytes, a copy per linear).
    """
    if not method.quantized:
        return 0
    total = 0
    for d_in, d_out in shape.linears().values():
        blocks = -(-d_in * d_out // method.block_size)
        constants = blocks + 4 * -(-blocks // 256) + 4 + 1024 if method.double_quant else 4 * blocks
        total += shape.n_layers * (constants + 64)
    return total


def optimizer_bytes(tensors: Tensors, optimizer: str) -> int:
    """Bytes of the optimizer's states on the GPU.

    AdamW keeps two moments in the parameter's own type; fused also a float32 step counter per tensor (foreach keeps it
    on the CPU). 8-bit (bitsandbytes): two bytes per element, two float32 absmax per 256, and two shared 256-value
    codes; tensors below 4,096 elements keep 32-bit moments. Paged: moments of 100,000 elements or more live in managed
    memory outside the CUDA allocator, their absmax does not. SGD without momentum keeps nothing.
    """
    if optimizer == "sgd":
        return 0
    if optimizer in ("adamw", "adamw_foreach"):
        counter = 4 if optimizer == "adamw" else 0
        return sum(count * (2 * elements * size + counter) for count, elements, size in tensors)
    paged = optimizer == "paged_adamw_8bit"
    total = 2048 if any(elements >= STATES_32BIT_BELOW for count, elements, _ in tensors) else 0
    for count, elements, _ in tensors:
        if elements < STATES_32BIT_BELOW:
            total += count * 8 * elements
        else:
            moments = 0 if paged and elements >= PAGED_FROM else 2 * elements
            total += count * (moments + 8 * -(-elements // 256))
    return total


def n_elements(tensors: Tensors) -> int:
    """Elements of all of them together."""
    return sum(count * elements for count, elements, _ in tensors)


def n_bytes(tensors: Tensors) -> int:
    """Bytes of all of them together."""
    return sum(count * elements * size for count, elements, size in tensors)


def resident_bytes(shape: ModelShape, method: Method, step: Step) -> dict[str, int]:
    """Bytes that stay through the whole step, by component."""
    return {
        "parameters": parameter_bytes(shape, method),
        "quantization_constants": quantization_bytes(shape, method),
        "adapters": n_bytes(adapter_tensors(shape, method)),
        "optimizer_states": optimizer_bytes(trainable_tensors(shape, method), step.optimizer),
    }
