"""The lecture's ledger: the verdicts follow from the numbers, the known rows are what papers and counts say."""

import json
import re
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.page import lecture, lecture_values
from labkit.page.lecture import cells, claims_file, columns, html_table, ledger, plain_table, show_claims
from labkit.page.verdicts import VERDICTS, Says, judge
from scripts.check_lecture_quotes import misquoted

ROWS = {row.id: row for row in ledger()}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def values(id, judged=True):
    return [reading.value for reading in ROWS[id].readings if reading.judged or not judged]


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "found", "verdict"),
    [
        ({"low": 16, "high": 16, "about": True}, [16.38], "right"),
        ({"low": 16, "high": 16, "about": True}, [17.6], "right"),
        ({"low": 16, "high": 16, "about": True}, [17.7], "imprecise"),
        ({"low": 16, "high": 16, "about": True}, [20.7], "imprecise"),
        ({"low": 16, "high": 16, "about": True}, [20.9], "wrong"),
        ({"low": 100, "high": 112, "about": True}, [98.3, 65.5, 131.1], "right in one convention"),
        ({"low": 0.78, "high": 0.78, "digit": 0.01}, [0.78125], "right"),
        ({"low": 0.78, "high": 0.78, "digit": 0.01}, [0.786], "imprecise"),
        ({"low": 0, "high": 5, "digit": 1}, [26, 141], "wrong"),
        ({"holds": True}, [True, True], "right"),
        ({"holds": True}, [True, False], "right in one convention"),
        ({"holds": False}, [True], "wrong"),
        ({"holds": False}, [False], "right"),
    ],
)
def test_a_verdict_follows_from_the_numbers(says, found, verdict):
    assert judge(Says(**says), found) == verdict


def test_a_statement_of_which_a_part_is_wrong_is_imprecise():
    assert judge(Says(holds=True), [True, False], parts=True) == "imprecise"
    assert judge(Says(holds=True), [False, False], parts=True) == "wrong"


@pytest.mark.parametrize(
    "says",
    [
        {},
        {"low": 1},
        {"low": 2, "high": 1, "about": True},
        {"low": 1, "high": 1},
        {"low": 1, "high": 1, "about": True, "digit": 1},
        {"low": 1, "high": 1, "about": True, "holds": True},
    ],
)
def test_a_claim_that_cannot_be_compared_is_refused(says):
    with pytest.raises(LabError, match="lecture.toml"):
        Says(**says)
    with pytest.raises(LabError, match="at least one value"):
        judge(Says(holds=True), [])


# --- the rows --------------------------------------------------------------------------------------------------------


def test_there_are_at_least_twenty_five_with_ids_of_their_own():
    assert len(ROWS) == len(claims_file()["claims"]) >= 25
    assert {row.topic for row in ROWS.values()} == set(claims_file()["topics"])
    assert all(re.fullmatch(r"0[0-7]", number) for row in ROWS.values() for number in row.lessons)


def test_every_computed_verdict_is_what_its_readings_give():
    for row in ROWS.values():
        if not row.computed:
            continue
        says, judged = Says(**row.says), [reading for reading in row.readings if reading.judged]
        assert all(reading.agrees == says.agrees(reading.value) for reading in row.readings)
        agreeing = {reading.agrees for reading in judged}
        assert (row.verdict == "right") == (agreeing == {True}), row.id
        assert (row.verdict == "wrong") <= (agreeing == {False}), row.id
        assert (row.verdict == "right in one convention") <= (agreeing == {True, False}), row.id


def test_a_verdict_is_typed_only_where_nothing_is_compared():
    for claim in claims_file()["claims"]:
        assert ("verdict" in claim) != ("says" in claim), claim["id"]
        assert ("readings" in claim) == ("says" in claim), claim["id"]
    typed = [row for row in ROWS.values() if not row.computed]
    assert all(row.says is None and row.source["en"] for row in typed)
    assert len(typed) < len(ROWS) / 4


def test_the_numbers_compared_are_the_ones_quoted():
    for row in ROWS.values():
        if row.says is None or "holds" in row.says:
            continue
        quoted = row.quote.replace(",", "")
        if "word" in row.says:
            assert row.says["word"] in row.quote, row.id
        else:
            assert f"{row.says['low']:g}" in quoted or str(row.says["low"]) in quoted, row.id
            assert f"{row.says['high']:g}" in quoted or str(row.says["high"]) in quoted, row.id
            written = re.search(r"[~约]\s?[\d.]+", quoted) is not None
            assert row.says.get("about", False) <= written, row.id


def test_quotes_are_short():
    assert max(len(row.quote) for row in ROWS.values()) <= 60


def test_a_misquoted_claim_is_named():
    heads = {head for row in ROWS.values() for head in row.place["zh"].split(" › ")}
    page = "\n".join([*(f"## {head}" for head in sorted(heads)), *(row.quote for row in ROWS.values())])
    assert misquoted(page) == []
    changed = page.replace(ROWS["lora-params"].quote, "").replace("## 参数效率\n", "")
    assert any(line.startswith("lora-params: no such text") for line in misquoted(changed))
    assert any("no such section: 参数效率" in line for line in misquoted(changed))


# Figures that were found without labkit: counts on the real architecture by PEFT, papers' own numbers.
@pytest.mark.parametrize(
    ("id", "verdict", "figures"),
    [
        ("full-weights", "right", [16.38]),
        ("full-total", "right in one convention", [98.29, 131.05, 65.53]),
        ("one-a100", "right in one convention", [False, False, True, True]),
        ("adamw-eight-bytes", "right in one convention", [8, 4, 2.03]),
        ("lora-params", "wrong", [87.293952]),
        ("lora-bytes", "wrong", [174.59, 349.18]),
        ("lora-optimizer", "wrong", [698.35]),
        ("qlora-load", "imprecise", [6.07, 6.40, 8.56]),
        ("layer-16", "right", [131_072]),
        ("layer-16-share", "right", [0.78125]),
        ("layer-64", "right", [524_288]),
        ("layer-64-share", "right", [3.125]),
        ("share-of-model", "right in one convention", [0.27, 1.07, 2.13, 2.03]),
        ("rank-large", "wrong", [8.53]),
        ("double-quant", "right", [0.373]),
        ("four-bits", "right in one convention", [4.127, 4.5]),
        ("optimal", "wrong", [False, False, False]),
        ("backward-only-lora", "imprecise", [True, False]),
        ("init-a", "right in one convention", [True, False]),
        ("adapter-fp16", "wrong", [False, False, False]),
        ("dora-cost", "wrong", [26, 141, 20]),
        ("dora-axis", "wrong", [False]),
        ("alpha-qwen3", "no source found", []),
        ("all-linear-qwen3", "no source found", []),
        ("rank-guide", "no source found", []),
        ("spectrum-lora", "wrong", []),
        ("spectrum-better", "wrong", [False, False]),
    ],
)
def test_known_rows(id, verdict, figures):
    assert ROWS[id].verdict == verdict
    assert values(id)[: len(figures)] == pytest.approx(figures, rel=2e-3, abs=5e-3)


def test_conventions_that_a_claim_rules_out_are_shown_and_not_judged():
    shown = [reading.value for reading in ROWS["lora-params"].readings if not reading.judged]
    assert shown == [43.646976, 30.670848]  # rank 16, and attention only


def test_figures_in_notes_are_computed_ones():
    from labkit.theory.codes import entropy_bits, normal_error, normal_usage

    assert "3.885" in ROWS["optimal"].note["en"]
    assert entropy_bits(normal_usage("nf4")) == pytest.approx(3.885, abs=5e-4)
    assert normal_error("lloyd") / normal_error("nf4") == pytest.approx(0.90, abs=5e-3)


def test_measured_values_come_from_the_stored_runs():
    origins = {reading.given_by for row in ROWS.values() for reading in row.readings}
    measured = {origin.split()[0] for origin in origins if origin.startswith("data/")}
    assert measured == {"data/measurements/nf4_laptop.json", "data/measurements/sft_laptop/record.json"}
    assert all("2026-" in origin for origin in origins if origin.startswith("data/"))
    assert lecture_values.adapter_dtype_was("float32")


def test_every_function_behind_a_value_exists():
    import importlib

    for _, origin in lecture_values.GIVERS.values():
        if origin.startswith(("labkit.", "torch.")):
            parts = origin.split(".")
            depth = next(n for n in range(len(parts) - 1, 0, -1) if _is_module(".".join(parts[:n])))
            found = importlib.import_module(".".join(parts[:depth]))
            for name in parts[depth:]:
                found = getattr(found, name)


def _is_module(name):
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


# --- what a reader sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "match"),
    [
        ({"topic": "gpu"}, "topic='gpu'.*memory, lora"),
        ({"lesson": "09"}, "lesson='09'.*01, 02"),
        ({"topic": "spectrum", "lesson": "01"}, "no claim has both"),
    ],
)
def test_unknown_filters_are_refused(filters, match):
    with pytest.raises(LabError, match=match):
        ledger(**filters)


def test_filters_choose_rows_in_the_lectures_order():
    assert [row.id for row in ledger(topic="dora")] == ["dora-better", "dora-cost", "dora-axis"]
    assert {row.topic for row in ledger(lesson="01")} == {"memory"}
    order = list(ROWS)
    chosen = [order.index(row.id) for row in ledger(lesson="02")]
    assert chosen == sorted(chosen) != []


def test_both_languages_are_complete():
    for row in ROWS.values():
        assert row.place["en"] and row.place["zh"]
        assert row.en and not CHINESE.search(row.en + row.source["en"] + row.note["en"]), row.id
        assert bool(row.note["en"]) == bool(row.note["zh"])
        assert row.source["zh"], row.id
        for reading in row.readings:
            assert reading.zh and reading.en and not CHINESE.search(reading.en), row.id
    assert set(lecture.NAMES) == set(VERDICTS)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_table_holds_every_row_in_the_students_language(lang, monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", lang)
    rows = ledger(lesson="03")
    html, plain = html_table(rows), plain_table(rows)
    assert html.count("<tr>") == len(rows) + 1
    assert html.count('scope="col"') == len(columns()) == len(cells(rows[0]))
    for row in rows:
        name = lecture.NAMES[row.verdict] if lang == "zh" else row.verdict
        assert f">{name}</td>" in html and f"[{name}]" in plain
    assert "&lt;" not in html.replace("&lt;=", "") and "http" not in html
    assert ("right" in html) == (lang == "en")
    assert plain.splitlines()[-1] == lecture.summary(rows)


def test_a_notebook_gets_html_and_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    show_claims(lesson="04")
    assert set(shown[0]) == {"text/html", "text/plain"}
    assert "A100" in shown[0]["text/plain"]


def test_the_command_prints_json_of_every_field():
    done = CliRunner().invoke(app, ["lecture", "--json"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed == json.loads(json.dumps([asdict(row) for row in ROWS.values()]))
    assert {row["verdict"] for row in printed} == set(VERDICTS)
    fields = ("quote", "en", "place", "readings", "verdict", "computed", "source", "lessons", "topic")
    assert all(set(fields) <= set(row) for row in printed)


def test_the_command_takes_a_lesson_without_its_zero_and_refuses_others():
    invoke = CliRunner().invoke
    printed = json.loads(invoke(app, ["lecture", "--lesson", "3", "--json"]).stdout)
    assert [row["id"] for row in printed] == [row.id for row in ledger(lesson="03")]
    done = invoke(app, ["lecture", "--topic", "gpu"])
    assert isinstance(done.exception, LabError)
    table = invoke(app, ["lecture", "--topic", "dora"])
    assert table.exit_code == 0
    assert "wrong" in table.stdout


def test_no_chinese_is_cut_off_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("LABKIT_LANG", "zh")
    monkeypatch.setenv("COLUMNS", "80")
    printed = CliRunner().invoke(app, ["lecture", "--topic", "nf4"]).stdout
    assert "…" not in printed
