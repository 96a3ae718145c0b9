"""The planted task: its loss is the distance, and its floor is Eckart and Young's."""

import numpy as np
import pytest
import torch

from labkit.errors import LabError
from labkit.theory.planted import PlantedTask


def test_the_loss_is_the_squared_distance_of_the_updates():
    task = PlantedTask(10, 6, rank=3)
    layer = task.layer(2, 4)
    torch.nn.init.normal_(layer.lora_B)
    gap = np.linalg.norm((layer.delta_weight() - task.target).detach().numpy()) ** 2
    assert float(task.loss(layer).detach()) == pytest.approx(gap, rel=1e-4)
    assert task.distance(layer) == pytest.approx(gap / 3, rel=1e-4)  # three singular values of 1


def test_a_layer_that_starts_at_zero_starts_at_distance_one():
    task = PlantedTask(10, 6, rank=3)
    losses = task.train(task.layer(2, 4), steps=5)
    assert losses[0] == 1
    assert len(losses) == 6
    assert losses == pytest.approx(sorted(losses, reverse=True))


def test_what_train_reports_last_is_the_distance_of_the_layer():
    task = PlantedTask(10, 6, rank=3)
    layer = task.layer(6, 12)
    torch.nn.init.normal_(layer.lora_B)
    assert task.train(layer, steps=7)[-1] == pytest.approx(task.distance(layer), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_the_floor_is_the_tail_of_the_planted_update(rank):
    task = PlantedTask(10, 6, rank=3)
    assert task.train(task.layer(rank, 2 * rank), steps=400)[-1] == pytest.approx(max(0, 1 - rank / 3), abs=1e-3)


def test_the_same_seed_gives_the_same_layer():
    task = PlantedTask(10, 6, rank=3)
    one, other, third = task.layer(2, 4), task.layer(2, 8), task.layer(2, 4, seed=1)
    assert torch.equal(one.lora_A, other.lora_A)
    assert torch.equal(one.base.weight, other.base.weight)
    assert not torch.equal(one.lora_A, third.lora_A)


def test_options_reach_the_layer():
    assert PlantedTask(10, 6, rank=3).layer(4, 8, use_rslora=True).scale == 4


@pytest.mark.parametrize("rank", [0, 7])
def test_a_rank_that_cannot_be(rank):
    with pytest.raises(LabError):
        PlantedTask(10, 6, rank=rank)
