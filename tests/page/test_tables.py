"""Tables against the functions that they are made from, to the byte; functions that are no lines are refused."""

import random

import pytest

from labkit.errors import LabError
from labkit.models.shapes import shape_of
from labkit.page.memory_tables import AXES, look_up, memory_tables, setting
from labkit.page.tables import Pool, pieces, trace, value
from labkit.theory.memory import predict

GRID = (1, 2, 4, 8, 16, 32)


def test_a_line_is_one_piece_and_a_kink_makes_two():
    assert pieces([3 + 5 * n for n in GRID], GRID) == [[1, 3, 5]]
    assert pieces([max(7, 2 * n) for n in GRID], GRID) == [[1, 7, 0], [4, 0, 2]]
    assert pieces([min(n, 4) for n in GRID], GRID) == [[1, 0, 1], [8, 4, 0]]


def test_pieces_of_anything_come_back_exactly():
    chance = random.Random(0)
    values = [chance.randrange(10**12) for _ in GRID]
    traced = [pieces(values, GRID), 0, 0]
    assert [value(traced, n, 9) for n in GRID] == values
    assert pieces([5], [1]) == [[1, 5, 0]]


def test_a_rank_enters_as_a_straight_line():
    def function(tokens, rank):
        return 11 + 3 * min(tokens, 8) + rank * (7 + 2 * tokens)

    traced = trace(function, GRID, (1, 4, 16, 64))
    assert traced[1:] == [7, 2]
    assert all(value(traced, n, rank) == function(n, rank) for n in GRID for rank in (1, 2, 3, 64))


@pytest.mark.parametrize("function", [lambda n, r: r * r, lambda n, r: -(-r // 3), lambda n, r: r * n * n])
def test_a_rank_that_is_no_line_is_refused(function):
    with pytest.raises(LabError, match="not a straight line"):
        trace(function, GRID, (1, 4, 16, 64))


def test_a_pool_keeps_equal_entries_once():
    pool = Pool()
    assert [pool.add([1, 2]), pool.add([3]), pool.add([1, 2])] == [0, 1, 0]
    assert pool.entries == [[1, 2], [3]]


def test_the_tables_give_what_predict_gives():
    tables, chance = memory_tables(), random.Random(1)
    for _ in range(1500):
        at = {name: chance.randrange(len(axis)) for name, axis in AXES.items()}
        model, method, step = setting(at)
        held = max(look_up(tables, at), key=lambda components: sum(components.values()))
        assert held == predict(shape_of(model), method, step).components, at


def test_an_interaction_between_axes_is_noticed(monkeypatch):
    from labkit.page import memory_tables as module

    true = module.predict

    def other(shape, method, step):
        found = true(shape, method, step)
        return type(found)(**{**vars(found), "peak_allocated_bytes": found.peak_allocated_bytes + 1})

    monkeypatch.setattr(module, "predict", other)
    with pytest.raises(LabError, match="no longer add up"):
        module.memory_tables.__wrapped__()
