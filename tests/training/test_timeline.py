"""The timeline against the ledger's own curve, against tensors counted by hand, and against what autograd saves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from labkit.errors import LabError
from labkit.models.methods import Method, Step
from labkit.models.shapes import ModelShape
from labkit.theory.memory import COMPONENTS, PHASES
from labkit.training import dryrun, meta_model
from labkit.training.dryrun import trace, trace_step
from labkit.training.ledger import Ledger, random_model, run_step
from labkit.training.timeline import Timeline, timeline

SMALL = ModelShape("small", "qwen3", 4096, 64, 192, 3, 2, 1, 32, tied_embeddings=True, qk_norm=True)
FULL = Method(kind="full")
CASES = [
    (FULL, Step(batch=2, seq_len=64, loss="full", checkpointing=False)),
    (Method(kind="qlora", rank=4, dropout=0.0), Step(batch=2, seq_len=64)),
    (Method(kind="dora", rank=4, dropout=0.0), Step(batch=2, seq_len=64, loss="chunked", optimizer="adamw_8bit")),
]


@pytest.mark.parametrize(("method", "step"), CASES)
def test_every_moment_adds_up_to_the_ledgers_curve(method, step):
    traced = trace_step(SMALL, method, step)
    line = traced.timeline
    assert tuple(line.components) == COMPONENTS
    assert line.total[1:].tolist() == traced.ledger.curve
    assert all((sizes >= 0).all() for sizes in line.components.values())
    loaded = sum(e.size_bytes for e in traced.ledger.entries if e.kind in COMPONENTS[:3])
    assert line.total[0] == loaded == line.phases["load"]
    assert traced.dry_run.components == line.at(line.peaks[traced.dry_run.peak_phase])
    assert traced.dry_run.phases == line.phases
    assert tuple(line.starts) == PHASES


def test_components_of_a_tiny_ledger_are_those_counted_by_hand():
    """A step of one weight: 4 KB of weight, 8 KB of states, a product that the backward pass needs, a gradient."""
    weight = torch.zeros(1000, requires_grad=True)
    states, ledger = torch.zeros(2000), Ledger()
    ledger.add([weight], "parameters")
    ledger.add([states], "optimizer_states")
    weight.register_post_accumulate_grad_hook(lambda w: ledger.mark_gradient(w.grad))
    with ledger:
        run_step(lambda: ((weight * weight).exp().sum(), None), torch.optim.SGD([weight]), ledger.mark)
    line = timeline(ledger, widths=())
    begin, turn, end = (line.at(line.starts[phase]) for phase in ("forward", "backward", "optimizer"))
    assert line.at(0) == dict.fromkeys(COMPONENTS, 0) | {"parameters": 4000}
    assert begin == line.at(0) | {"optimizer_states": 8000}
    assert turn["activations"] == 4000 + 4  # exp keeps its own result; the loss is a float32
    assert end == begin | {"gradients": 4000}
    assert line.at(-1) == begin | {"temporary": 0}


def test_activations_are_what_autograd_saves():
    step = CASES[0][1]
    model, saved = random_model(SMALL), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = dryrun.batch_of(step, device="cpu")
    own |= {tensor.untyped_storage().data_ptr() for tensor in batch.values()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = dryrun.forward_pass(model, batch, FULL, step)
    line = trace_step(SMALL, FULL, step).timeline
    turn = line.at(line.starts["backward"])
    assert turn["activations"] + turn["logits"] == pytest.approx(sum(saved.values()), rel=0.002)
    assert loss.requires_grad


def test_gradients_grow_in_the_backward_pass_and_are_gone_after_the_update():
    line = trace_step(SMALL, *CASES[0]).timeline
    gradients, trained = line.components["gradients"], 2 * SMALL.n_params
    assert gradients[: line.starts["backward"] + 1].max() == 0
    assert gradients[line.starts["optimizer"]] == trained
    assert gradients[-1] == 0
    assert len(set(line.components["optimizer_states"][1:].tolist())) == 1


def test_lora_keeps_more_activations_than_full_fine_tuning_where_nothing_is_checkpointed():
    step = Step(batch=2, seq_len=64, loss="full", checkpointing=False)
    lora = Method(kind="lora", rank=4, dropout=0.0)
    full, with_adapters = (trace_step(SMALL, method, step).timeline for method in (FULL, lora))
    most = [line.components["activations"].max() for line in (full, with_adapters)]
    assert 1.2 * most[0] < most[1]


@pytest.mark.parametrize("points", [16, 40, 400])
@pytest.mark.parametrize(("method", "step"), CASES)
def test_a_sample_keeps_begins_and_peaks(method, step, points):
    whole = trace_step(SMALL, method, step).timeline
    few = whole.sampled(points)
    assert len(few.moments) <= points + 16
    assert few.phases == whole.phases
    assert few.moments[-1] == whole.moments[-1]
    for phase, moment in whole.starts.items():
        assert few.at(few.starts[phase]) == whole.at(moment)
    for phase, moment in whole.peaks.items():
        assert few.at(few.peaks[phase]) == whole.at(moment)
    assert (np.diff(few.moments) > 0).all()


def test_a_sample_of_more_points_than_there_are_is_the_whole():
    whole = trace_step(replace(SMALL, n_layers=1), *CASES[0]).timeline
    assert whole.sampled(10**6).total.tolist() == whole.total.tolist()


def test_a_sample_needs_points():
    whole = Timeline({"parameters": np.zeros(3)}, {"load": 0, "forward": 1}, np.arange(3))
    with pytest.raises(LabError, match="points=3"):
        whole.sampled(3)


def test_a_real_step_has_the_timeline_of_its_dry_run():
    """The same books on real tensors of a CPU: every phase's peak to the byte."""
    method, step = CASES[0]
    model = meta_model.build(SMALL, method, step, device="cpu")
    real = timeline(dryrun.book_step(model, method, step, Ledger(device="cpu")), widths={SMALL.vocab_size})
    assert real.phases == trace(SMALL, method, step).phases
