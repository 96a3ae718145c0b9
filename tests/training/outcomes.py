"""What two runs are compared by: bytes where nothing may differ, a tolerance where sums add up in another order."""

import pytest

from labkit.training.record import read_record

# Float32 has a relative precision of 6e-8; a sum over two processes or batches adds up in another order than a sum in
# one, and six steps of Adam carry the difference on. On the tiny model 40 steps differed by 2e-7 in the loss and 7e-7
# in the norm of the gradient; without the tokens' common count (average_tokens_across_devices=False) by 11 % and 49 %.
TOLERANCE = 1e-5


def result(folder):
    """What a continued run must have in common with one that ran in one go."""
    record = read_record(folder)
    (trained,) = folder.rglob("*model.safetensors")
    return trained.read_bytes(), record.curve, record.before, record.after, record.trained_tokens


def assert_same_curve(record, other):
    """The same tokens; losses, gradient norms, learning rates and the held-out loss up to rounding."""
    assert [point["tokens"] for point in record.curve] == [point["tokens"] for point in other.curve]
    for name in ("loss", "grad_norm", "learning_rate"):
        expected = [point[name] for point in other.curve]
        assert [point[name] for point in record.curve] == pytest.approx(expected, rel=TOLERANCE, abs=1e-12), name
    assert record.after["heldout_loss"] == pytest.approx(other.after["heldout_loss"], rel=TOLERANCE)
