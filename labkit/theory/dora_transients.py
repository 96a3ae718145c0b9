"""What comes and goes while DoRA works inside a layer, in bytes: the norm of W0 + BA and the scaled outputs.

Symbols as in `labkit.theory.activations`. Nothing is fitted: the terms list the tensors that are alive at that instant
in PEFT's `DoraLinearLayer`.
"""

from __future__ import annotations

from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory import activations as act


def dora_norm_bytes(shape: ModelShape, method: Method, name: str, *, saved: bool) -> int:
    """Bytes that PEFT's DoRA needs to find the norm of W0 + BA for one linear, whatever the tokens.

    It multiplies B A with an identity (in x in), then holds BA, W0 in the adapter's type, the scaled BA and the sum (in
    x out each): a (in^2 + 4 in out). A W0 that is of that type is not copied. Where autograd saves nothing
    (``saved=False``: forward under checkpointing) the identity is gone before W0 comes. Autocast makes BA from a bf16
    identity, which is what autograd saves; the float32 one is there beside it only until BA is (6 in^2).
    """
    d_in, d_out = shape.linears()[name]
    eye, weight = d_in**2, d_in * d_out
    if act.autocast(method):
        return max(6 * eye + 2 * weight, (2 * eye if saved else 0) + 16 * weight)
    a = 2 if method.adapter_dtype == "bfloat16" else 4
    held = 4 if act.copies_weight(method) else 3
    return a * (eye + held * weight if saved else max(eye + weight, held * weight))


def dora_layer_bytes(shape: ModelShape, method: Method, step: Step, *, backward: bool) -> int:
    """The largest instant of DoRA in a layer that runs forward, beside `activations.layer_bytes`.

    At every adapted linear two: taking the norm (`dora_norm_bytes`), when what the layer keeps later is not there yet;
    and scaling the outputs, 3 a d_out, with the identity, BA and a dequantized or cast W0 still held. Recomputing
    down_proj stops at the first of the three, after which autograd has all that it saves.

    Args:
        backward: the layer is computed again, beside the gradients that have reached it.
    """
    if not method.uses_magnitude:
        return 0
    a, instants = act.adapter_element_bytes(method), []
    for name in method.targets:
        d_in, d_out = shape.linears()[name]
        beside = step.tokens * _beside_dora(shape, method, name, backward=backward)
        unmade, own = act.unmade_bytes(shape, method, step, name), act.dora_own_bytes(shape, method, step, name)
        instants.append(dora_norm_bytes(shape, method, name, saved=True) + beside - unmade)
        weights = 8 if act.autocast(method) else a * (1 + (act.copies_weight(method) and not method.dropout))
        scaled = 1 if backward and name == "down_proj" else 3
        held = a * d_in**2 + weights * d_in * d_out + step.tokens * scaled * a * d_out
        instants.append(held + beside - (unmade - own))
    return max(instants)


def _beside_dora(shape: ModelShape, method: Method, name: str, *, backward: bool) -> int:
    """Bytes per token beside what the layer keeps, while DoRA works on linear ``name``.

    The residual and the linear's input in e, as far as they are not kept; with dropout the undropped input in the
    adapter's type, and the base output. Autocast keeps none of PEFT's float32 inputs (4 each, dropped or not), and
    casts the dropped one once more for the base. In the backward pass the residual's gradient, e h, and down_proj's in
    the adapter's type, a h (if that is another: a h twice, and e h for the base), or its input's, e i, if no adapter
    sits there.
    """
    e, a, hidden = act.element_bytes(method), act.adapter_element_bytes(method), shape.hidden_size
    d_in, d_out = shape.linears()[name]
    shared = act.shares_input(method)
    beside = (0 if shared else e * d_in) + (0 if e == 4 else e * hidden)
    if act.autocast(method):
        cast = (0, e) if method.quantized else (4, 6)
        beside += (cast[0] + (cast[1] if method.dropout else 0)) * d_in
    elif method.dropout:
        beside += a * d_in
    if method.dropout:
        beside += e * d_out
    if name == "down_proj" and not shared:
        beside += e * hidden  # the normalized input that gate_proj and up_proj had
    if backward:
        one_type = a == e or (act.autocast(method) and e == 4)
        arrived = e if one_type else 2 * a + e
        beside += e * hidden + (arrived * hidden if "down_proj" in method.targets else e * shape.intermediate_size)
    return beside
