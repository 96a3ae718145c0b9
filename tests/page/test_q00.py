import pytest

from labkit.page.exercises import judge


@pytest.mark.parametrize(
    ("id", "value", "state", "reason"),
    [
        ("q0_1", (3.44, 3.20), "right", "right"),
        ("q0_1", [3.441149952, 3.204], "right", "right"),
        ("q0_1", (3.20, 3.44), "wrong", "swapped"),
        ("q0_1", (3.20, 3.20), "wrong", "that is GiB"),
        ("q0_1", (3.44, 3.44), "wrong", "divides the same bytes"),
        ("q0_1", (6.88, 6.41), "wrong", "2 bytes"),
        ("q0_1", (1.72, 1.6), "wrong", "2 bytes"),
        ("q0_1", 3.44, "wrong", "two numbers"),
        ("q0_1", ("a", "b"), "wrong", "is not parameters"),
        ("q0_1", (..., ...), "not attempted", "not attempted"),
        ("q0_2", lambda n, b: -(-n * b // 8), "right", "right"),
        ("q0_2", lambda n, b: n * b, "wrong", "bits"),
        ("q0_2", lambda n, b: n * b // 8, "wrong", "round half bytes up"),
        ("q0_2", lambda n, b: None, "not attempted", "not attempted"),
        ("q0_2", lambda n: n, "error", "TypeError"),
        ("q0_2", 3, "wrong", "a function is asked for"),
        ("q0_3", 275.3, "right", "right"),
        ("q0_3", 34.4, "wrong", "megabits"),
        ("q0_3", 3.0, "wrong", "not bytes x 8"),
        ("q0_3", ..., "not attempted", "not attempted"),
    ],
)
def test_answers(id, value, state, reason):
    found, message, _ = judge(id, value)
    assert found == state
    assert reason in message
