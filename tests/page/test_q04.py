import math

import pytest
import torch

from labkit.course.grading.hidden import load_hidden
from labkit.course.grading.rubric import instructor_folder
from labkit.models.profiles import PROFILES
from labkit.page.exercises import Wrong, judge
from labkit.page.questions import q04
from labkit.theory.sizing import fit
from labkit.training.data import Example, to_messages
from labkit.training.template import CHATML


def count(labels):
    return sum(label != -100 for row in labels for label in row[1:])


def by_torch(labels):
    """The terms that torch's cross-entropy really sums, after the shift that transformers makes."""
    targets = torch.tensor(labels)[:, 1:].reshape(-1)
    uniform = torch.zeros(len(targets), 16)
    total = torch.nn.functional.cross_entropy(uniform, targets, ignore_index=-100, reduction="sum")
    return round(float(total) / math.log(16))


CURED = {"A": "stop", "B": "shifted", "C": "healthy", "D": "twice"}
RUN = {
    "choice": {"learning_rate": 5e-3, "steps": 40, "batch": 4},
    "heldout_loss": 2.0,
    "baseline": 2.5,
    "row_budget": 160,
}


def choosing(**changes):
    return RUN | {"choice": RUN["choice"] | changes}


@pytest.mark.parametrize(
    ("id", "value", "state", "reason"),
    [
        ("q4_1", count, "right", "right"),
        ("q4_1", by_torch, "right", "right"),
        ("q4_1", lambda rows: sum(label != -100 for row in rows for label in row), "wrong", "predicts token t + 1"),
        ("q4_1", lambda rows: sum(label > 0 for row in rows for label in row[1:]), "wrong", "like any other"),
        ("q4_1", lambda rows: sum(map(len, rows)), "wrong", "every token"),
        ("q4_1", lambda rows: sum(label == -100 for row in rows for label in row), "wrong", "left out"),
        ("q4_1", lambda rows: count(rows[:1]), "wrong", "should be 4"),
        ("q4_1", lambda rows: None, "not attempted", "not attempted"),
        ("q4_1", lambda: 0, "error", "TypeError"),
        ("q4_1", 3, "wrong", "a function is asked for"),
        ("q4_2", CURED, "right", "right"),
        ("q4_2", CURED | {"A": "healthy"}, "wrong", "A: find the first"),
        ("q4_2", CURED | {"B": "prompt"}, "wrong", "B: compare"),
        ("q4_2", CURED | {"C": "stop"}, "wrong", "Is that a bug?"),
        ("q4_2", CURED | {"D": "healthy"}, "wrong", "D: read"),
        ("q4_2", CURED | {"D": "broken"}, "wrong", "'broken' is none of"),
        ("q4_2", {"A": "stop"}, "wrong", "keys"),
        ("q4_2", dict.fromkeys("ABCD", ...), "not attempted", "not attempted"),
        ("q4_2", CURED | {"B": ...}, "not attempted", "not attempted"),
        ("q4_3", 6.88, "right", "right"),
        ("q4_3", 6.3, "right", "right"),
        ("q4_3", 2.955, "wrong", "a larger batch does"),
        ("q4_3", 11.82, "wrong", "do not grow with the batch"),
        ("q4_3", 5.23, "wrong", "with any batch"),
        ("q4_3", 1.647, "wrong", "static part alone"),
        ("q4_3", 40, "wrong", "not within 10 %"),
        ("q4_3", ..., "not attempted", "not attempted"),
        ("q4_4", RUN, "right", "right"),
        ("q4_4", RUN | {"heldout_loss": 2.5}, "wrong", "2.500 >= 2.500: the baseline is better"),
        ("q4_4", choosing(learning_rate=2e-5) | {"heldout_loss": 3.0}, "wrong", "hardly moves"),
        ("q4_4", choosing(steps=41), "wrong", "164 rows, and the budget is 160"),
        ("q4_4", RUN | {"heldout_loss": math.nan}, "wrong", "not finite"),
        ("q4_4", {"heldout_loss": 1.0}, "wrong", "change only the choice"),
        ("q4_4", choosing(steps=...), "not attempted", "not attempted"),
        ("q4_4", RUN | {"heldout_loss": ...}, "not attempted", "not attempted"),
    ],
)
def test_answers(id, value, state, reason):
    found, message, _ = judge(id, value)
    assert found == state, message
    assert reason in message


@pytest.mark.parametrize("labels", q04.LABEL_CASES)
def test_the_right_count_is_what_cross_entropy_sums(labels):
    assert q04._counts(labels)["right"] == by_torch(labels)


def test_the_recognised_mistakes_of_the_peak_lie_apart_from_the_accepted_range():
    peaks = q04.peaks_gib()
    for name in ("given", "all_scaled", "moving_only", "static_only"):
        assert abs(peaks[name] / peaks["wanted"] - 1) > 0.1 + 0.03


def rendered(instruction, answer):
    from jinja2 import Environment

    row = to_messages(Example("x", "en", "t", instruction, answer, ()))
    template = Environment().from_string(CHATML)
    return template.render(messages=row["prompt"] + row["completion"], add_generation_prompt=False)


def test_patient_c_is_what_the_books_template_makes():
    text = "".join(token for token, _ in q04.patients()["C"])
    instruction, answer = "Name two colours.", "red, blue"
    assert text.removesuffix("<|endoftext|>" * 2) == rendered(instruction, answer)
    learned = [label for _, label in q04.patients()["C"] if label != "-100"]
    assert "".join(learned) == answer + "<|im_end|>"


def test_patient_d_is_a_rendered_prompt_rendered_again():
    text = "".join(token for token, _ in q04.patients()["D"])
    prompt = rendered("Name two colours.", "red").rpartition("red")[0]
    assert text.removesuffix("<|endoftext|>" * 2) == rendered(prompt, "red, blue")


def test_patients_a_and_b_hold_the_healthy_tokens_with_other_labels():
    patients = q04.patients()
    healthy = [token for token, label in patients["C"]][:-2]
    for name in "AB":
        assert [token for token, _ in patients[name]][: len(healthy)] == healthy
    assert dict(patients["A"][-3:]) == {"<|im_end|>": "-100"}
    assert [label for _, label in patients["B"]] == [label for _, label in patients["C"]][1:-1]


@pytest.mark.parametrize("free_gib", [79, 14.6, 3.6, 3.1])
def test_an_honest_run_on_a_small_card_has_its_profiles_row_budget(free_gib):
    """Lesson 04 counts rows of an update; a smaller batch with more accumulation has as many."""
    profile = fit(PROFILES["gpu"], free_bytes=int(free_gib * 2**30), capability=(7, 5)).profile
    check = load_hidden(instructor_folder() / "hidden")["q4_4"].also
    check(RUN | {"row_budget": (profile.steps // 6) * profile.rows_per_step})
    with pytest.raises(Wrong, match="no profile"):
        check(RUN | {"row_budget": (profile.steps // 6) * 3})
