"""The flags that describe a method and a step, defined once for every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.errors import LabError
from labkit.models.profiles import PROFILES

if TYPE_CHECKING:
    from labkit.models.methods import Method, Step
    from labkit.models.shapes import ModelShape

GPU = PROFILES["gpu"]  # the defaults are what `labkit sft` runs on a GPU


@dataclass(frozen=True)
class Asked:
    """What the flags say."""

    shape: ModelShape
    method: Method
    step: Step


def read_flags(
    model: Annotated[
        str, typer.Option(help="Catalogue name, cached Hub id, or folder with config.json.")
    ] = "qwen3-1.7b",
    method: Annotated[str, typer.Option(help="full, lora, qlora, dora, qdora or spectrum.")] = GPU.method.kind,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = GPU.method.rank,
    targets: Annotated[str, typer.Option(help="all, or linears separated by commas.")] = "all",
    layers: Annotated[str, typer.Option(help="Selected layers, e.g. 0,3,24-27 (spectrum needs some).")] = "",
    modules: Annotated[str, typer.Option(help="Selected linears, e.g. 3.up_proj,4.q_proj.")] = "",
    batch: Annotated[int, typer.Option(help="Sequences per forward pass.")] = GPU.batch,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = GPU.seq_len,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    adapter_dtype: Annotated[str, typer.Option(help="float32, bfloat16 or autocast.")] = "float32",
    double_quant: Annotated[bool, typer.Option(help="Quantize NF4's constants once more.")] = True,
    kbit_prepare: Annotated[bool, typer.Option(help="peft's k-bit preparation ran.")] = False,
    optimizer: Annotated[str, typer.Option(help="adamw[_foreach|_8bit], paged_adamw_8bit or sgd.")] = "adamw",
    checkpointing: Annotated[bool, typer.Option(help="Gradient checkpointing.")] = True,
    attention: Annotated[str, typer.Option(help="sdpa or eager.")] = "sdpa",
    loss: Annotated[str, typer.Option(help="full, fused or chunked.")] = "fused",
    keep_logits: Annotated[bool, typer.Option(help="Logits live through the backward pass.")] = False,
    padded: Annotated[bool, typer.Option(help="The batch holds padding.")] = False,
) -> Asked:
    """The model's shape, the method and the step that the flags describe.

    Raises:
        LabError: a value outside its range, or a model that is not known.
    """
    from labkit.models.methods import Method, Step, parse_layers, parse_modules, parse_targets
    from labkit.models.shapes import shape_of

    if modules and (layers or targets != "all"):
        rule = "modules say which linears of which layers, so targets and layers have no say"
        raise LabError(f"modules={modules!r}", rule, "give modules, or targets and layers")
    chosen = Method(
        kind=method,
        rank=rank,
        targets=parse_targets(targets),
        layers=parse_layers(layers),
        modules=parse_modules(modules),
        dtype=dtype,
        adapter_dtype=adapter_dtype,
        double_quant=double_quant,
        kbit_prepare=kbit_prepare,
    )
    step = Step(
        batch=batch,
        seq_len=seq_len,
        optimizer=optimizer,
        checkpointing=checkpointing,
        attention=attention,
        loss=loss,
        keep_logits=keep_logits,
        padded=padded,
    )
    return Asked(shape_of(model), chosen, step)


def takes_step_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command(asked, **own)`` the flags of `read_flags` before its own; typer reads them off the signature."""
    shared = inspect.signature(read_flags, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def wrapper(**given: Any) -> None:
        asked = read_flags(**{name: given.pop(name) for name in shared})
        command(asked, **given)

    parameters = [*shared.values(), *own]
    wrapper.__signature__ = inspect.Signature(parameters)
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
