"""What stays on the GPU against peft, transformers, bitsandbytes and torch's optimizers, to the byte."""

from __future__ import annotations

from dataclasses import replace

import bitsandbytes.functional as bnb_functional
import pytest
import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

from labkit.models.methods import TARGETS, Method, Step
from labkit.models.shapes import CATALOGUE, shape_of
from labkit.theory.memory import predict
from labkit.theory.resident import optimizer_bytes, parameter_bytes, quantization_bytes
from labkit.training.ledger import random_model
from tests.theory.built import MLP, QV, SMALL, method, trainable, with_adapters

# --- parameters and adapters -----------------------------------------------------------------------------------------

# Rank 8, 16, 32, 64 on all linears; rank 32 on attention and on the MLP; DoRA's magnitudes. Counted with peft.
LORA_TABLE = {
    "qwen3-0.6b": (5_046_272, 10_092_544, 20_185_088, 40_370_176, 9_175_040, 11_010_048, 344_064),
    "qwen3-1.7b": (8_716_288, 17_432_576, 34_865_152, 69_730_304, 12_845_056, 22_020_096, 573_440),
    "qwen3-4b": (16_515_072, 33_030_144, 66_060_288, 132_120_576, 23_592_960, 42_467_328, 1_105_920),
    "qwen3-8b": (21_823_488, 43_646_976, 87_293_952, 174_587_904, 30_670_848, 56_623_104, 1_400_832),
    "qwen3-14b": (32_112_640, 64_225_280, 128_450_560, 256_901_120, 41_943_040, 86_507_520, 2_088_960),
    "qwen3-32b": (67_108_864, 134_217_728, 268_435_456, 536_870_912, 79_691_776, 188_743_680, 4_587_520),
}


def count(name: str, chosen: Method) -> int:
    return predict(shape_of(name), chosen, Step()).trainable_params


@pytest.mark.parametrize("name", LORA_TABLE)
def test_the_published_table_of_adapter_sizes(name):
    mine = [count(name, method("lora", rank=rank)) for rank in (8, 16, 32, 64)]
    mine += [count(name, method("lora", rank=32, targets=targets)) for targets in (TARGETS[:4], MLP)]
    mine.append(count(name, method("dora", rank=32)) - mine[2])
    assert tuple(mine) == LORA_TABLE[name]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("targets", [TARGETS, QV, ("down_proj",)])
@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen2.5-7b", "smollm2-135m", "mistral-7b"])
def test_trainable_parameters_and_bytes_are_pefts(name, kind, targets):
    shape = replace(shape_of(name), n_layers=3)
    for chosen in (method(kind, rank=5, targets=targets), method(kind, targets=targets, layers=(0, 2))):
        with torch.device("meta"):
            parameters = trainable(with_adapters(random_model(shape, device="meta"), chosen))
        prediction = predict(shape, chosen, Step())
        assert prediction.trainable_params == sum(p.numel() for p in parameters)
        assert prediction.components["adapters"] == sum(p.nbytes for p in parameters)
        assert prediction.total_params == shape.n_params + prediction.trainable_params


def test_bf16_adapters_are_pefts():
    chosen = method("dora", adapter_dtype="bfloat16")
    parameters = trainable(with_adapters(random_model(SMALL), chosen))
    assert predict(SMALL, chosen, Step()).components["adapters"] == sum(p.nbytes for p in parameters)


@pytest.mark.parametrize("name", CATALOGUE)
def test_full_and_selected_layers_train_what_they_say(name):
    shape = shape_of(name)
    assert predict(shape, method("full"), Step()).trainable_params == shape.n_params
    model = random_model(replace(shape, n_layers=2), device="meta")
    layer = sum(p.numel() for p in model.model.layers[1].parameters())
    assert predict(shape, method("spectrum", layers=(0, 5)), Step()).trainable_params == 2 * layer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_parameter_bytes_are_transformers(dtype):
    model = random_model(SMALL, device="meta", dtype=dtype)
    held = predict(SMALL, method("full", dtype=dtype), Step()).components["parameters"]
    assert held == sum(p.nbytes for p in model.parameters())


# --- quantized storage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block", [32, 64, 256])
@pytest.mark.parametrize("sizes", [(128, 384, 32), (100, 60, 20)])
def test_nf4_bytes_are_bitsandbytes(double, block, sizes):
    hidden, intermediate, width = sizes
    shape = replace(SMALL, hidden_size=hidden, intermediate_size=intermediate, head_dim=width)
    packed, tables = 0, {}
    for d_in, d_out in shape.linears().values():
        for _ in range(shape.n_layers):
            weight = torch.randn(d_out, d_in, dtype=torch.bfloat16)
            data, state = bnb_functional.quantize_4bit(weight, None, None, block, double, "nf4")
            constants = [state.absmax, state.code]
            constants += [state.offset, state.state2.absmax, state.state2.code] if double else []
            packed += data.nbytes
            tables |= {t.data_ptr(): (t, t.nbytes) for t in constants}  # shared ones would count once; t keeps it alive
    chosen = method("qlora", double_quant=double, block_size=block)
    prediction = predict(shape, chosen, Step())
    rest = 2 * (shape.n_params - shape.linear_params())
    assert prediction.components["parameters"] == packed + rest
    assert prediction.components["quantization_constants"] == sum(size for _, size in tables.values())


def test_bits_per_weight():
    shape = shape_of("qwen3-8b")
    bits = {}
    for double in (True, False):
        chosen = method("qlora", double_quant=double)
        constants = quantization_bytes(shape, chosen)
        packed = parameter_bytes(shape, chosen) - 2 * (shape.n_params - shape.linear_params())
        bits[double] = 8 * (packed + constants) / shape.linear_params()
    assert bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=4e-4)  # the code tables: 0.0003
    assert bits[False] == pytest.approx(4.5, abs=4e-4)


def test_kbit_preparation_raises_what_is_not_quantized():
    shape = shape_of("qwen3-8b")
    rest = shape.n_params - shape.linear_params()
    plain, raised = (parameter_bytes(shape, method("qlora", kbit_prepare=k)) for k in (False, True))
    assert raised - plain == 2 * rest
    assert round((raised - plain) / 2**30, 2) == 2.32


# --- optimizers ------------------------------------------------------------------------------------------------------

SIZES = [(1, 1), (3, 5), (63, 65), (64, 64), (257, 64), (400, 400)]  # 4,095, 4,096 and 160,000 elements among them


def state_bytes(optimizer: torch.optim.Optimizer, *, device: str = "cpu") -> int:
    unique = {}
    for state in optimizer.state.values():
        for tensor in state.values():
            if isinstance(tensor, torch.Tensor) and tensor.device.type == device:
                unique[id(tensor)] = tensor.nbytes
    return sum(unique.values())


def parameters_with_gradients(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in SIZES]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return parameters


def tensors(dtype: torch.dtype) -> list[tuple[int, int, int]]:
    return [(1, a * b, dtype.itemsize) for a, b in SIZES]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["adamw", "adamw_foreach", "sgd"])
def test_torch_optimizer_states(dtype, name):
    parameters = parameters_with_gradients(dtype)
    made = {
        "adamw": lambda: torch.optim.AdamW(parameters, fused=True),
        "adamw_foreach": lambda: torch.optim.AdamW(parameters, foreach=True),
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
    }[name]()
    made.step()
    # On a GPU foreach leaves its 4-byte step counters on the CPU; here everything is on the CPU, so take them off.
    counters = 4 * len(SIZES) if name == "adamw_foreach" else 0
    assert optimizer_bytes(tensors(dtype), name) == state_bytes(made) - counters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_8bit_optimizer_states(dtype):
    optimizer = AdamW8bit(parameters_with_gradients(dtype))
    optimizer.step()
    assert optimizer_bytes(tensors(dtype), "adamw_8bit") == state_bytes(optimizer)


def test_paged_states_leave_the_gpu_from_100_000_elements_on(monkeypatch):
    # Paging needs CUDA, so bitsandbytes sets its states up on `meta`, and its pager hands out CPU tensors instead.
    monkeypatch.setattr(bnb_functional, "get_paged", lambda *shape, dtype, device: torch.zeros(shape, dtype=dtype))
    monkeypatch.setattr(bnb_functional, "fill", lambda tensor, value: None)
    parameters = [torch.nn.Parameter(torch.zeros(size, device="meta")) for size in SIZES]
    optimizer = PagedAdamW8bit(parameters)
    optimizer.check_overrides()
    for index, parameter in enumerate(parameters):
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    expected = state_bytes(optimizer, device="meta")
    assert optimizer_bytes(tensors(torch.float32), "paged_adamw_8bit") == expected
    assert optimizer_bytes(tensors(torch.float32), "adamw_8bit") - expected == 2 * 400 * 400
