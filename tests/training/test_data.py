"""The book's instruction set, the loader, and the script that composes the set from its material."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from labkit.errors import LabError
from labkit.models import network
from labkit.training import data
from labkit.training.constraints import KINDS, violations

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "data" / "instructions"
ROW = {
    "id": "a-1",
    "language": "en",
    "topic": "tea",
    "instruction": "What is tea?",
    "response": "A drink.",
    "constraints": [{"kind": "max_words", "count": 3}],
}
ZH = {**ROW, "id": "b-1", "language": "zh", "instruction": "茶是什么？", "response": "一种饮料。", "constraints": []}


def jsonl(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


# ---- reading rows ----


def test_read_rows_gives_what_was_written(tmp_path):
    rows = data.read_rows(jsonl(tmp_path / "rows.jsonl", ROW, ZH))
    assert [row.as_dict() for row in rows] == [ROW, ZH]


def test_read_rows_takes_a_byte_order_mark_windows_line_ends_and_no_last_newline(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n" + json.dumps(ZH).encode())
    assert [row.id for row in data.read_rows(path)] == ["a-1", "b-1"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "one JSON object"),
        ("[" * 100_000, "not JSON"),
        ({name: value for name, value in ROW.items() if name != "response"}, "missing field response"),
        ({**ROW, "id": "a-2", "extra": 1}, "unknown field extra"),
        ({**ROW, "id": "a-2", "instruction": " "}, "instruction"),
        ({**ROW, "id": "a-2", "response": 3}, "response=3"),
        ({**ROW, "id": "a-2", "response": None}, "response=None"),
        ({**ROW, "id": "a-2", "language": "fr"}, "fr"),
        ({**ROW, "id": "a-2", "constraints": {}}, "not a list"),
        ({**ROW, "id": "a-2", "constraints": [{"kind": "haiku"}]}, "haiku"),
        ({**ROW, "id": "a-2", "constraints": [{"kind": "bullets"}]}, "count"),
        ({**ROW, "id": "a-1"}, "line 1"),
    ],
)
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path, bad, said):
    path = jsonl(tmp_path / "rows.jsonl", ROW, bad, ZH)
    with pytest.raises(LabError) as error:
        data.read_rows(path)
    assert error.value.given == f"{path}:2"
    assert said in str(error.value)


def test_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + json.dumps(ZH, ensure_ascii=False).encode("gbk") + b"\n")
    with pytest.raises(LabError, match="UTF-8") as error:
        data.read_rows(path)
    assert error.value.given == f"{path}:2"


@pytest.mark.parametrize("content", [None, b"", b"\n \n"])
def test_a_missing_or_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabError) as error:
        data.read_rows(path)
    assert error.value.given == str(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(LabError):
        data.read_rows(tmp_path)


# ---- the book's set ----


@pytest.fixture(scope="module")
def book():
    return {split: data.load_book(split) for split in data.SPLITS}


def test_the_book_is_large_enough_and_bilingual(book):
    assert len(book["train"]) >= 1200
    assert len(book["heldout"]) >= 200
    for rows in book.values():
        languages = Counter(row.language for row in rows)
        assert abs(languages["en"] - languages["zh"]) <= 0.02 * len(rows)


def test_every_reference_answer_keeps_its_own_rules(book):
    for row in [*book["train"], *book["heldout"]]:
        assert 1 <= len(row.constraints) <= 2, row.id
        assert violations(row.constraints, row.response) == [], row.id


def test_every_kind_occurs_in_both_splits_and_every_fitting_language(book):
    for rows in book.values():
        found = {(rule.kind, row.language) for row in rows for rule in row.constraints}
        expected = {(kind, language) for kind in KINDS for language in data.LANGUAGES}
        assert found == expected - {("uppercase", "zh"), ("max_words", "zh"), ("max_chars", "en")}


def test_rows_ask_across_the_languages_both_ways(book):
    for rows in book.values():
        asked = Counter(
            (row.language, rule.args["language"]) for row in rows for rule in row.constraints if rule.kind == "language"
        )
        assert min(asked["en", "zh"], asked["zh", "en"]) >= 10


def test_held_out_topics_are_new_and_no_instruction_occurs_twice(book):
    assert not {row.topic for row in book["train"]} & {row.topic for row in book["heldout"]}
    instructions = Counter(row.instruction for rows in book.values() for row in rows)
    assert instructions.most_common(1)[0][1] == 1


def test_both_answers_of_yes_no_questions_are_common(book):
    answers = Counter(row.response for row in book["train"] if row.constraints[0].kind == "yes_no")
    assert set(answers) == {"Yes.", "No.", "是。", "不是。"}
    assert min(answers.values()) >= 0.15 * answers.total()


def test_rows_are_short_enough_for_a_small_model(book):
    for row in [*book["train"], *book["heldout"]]:
        limit = 320 if row.language == "en" else 260
        assert len(row.instruction) + len(row.response) <= limit, row.id


def test_load_book_by_language_and_limit(book):
    chinese = data.load_book("heldout", language="zh")
    assert {row.language for row in chinese} == {"zh"}
    assert len(chinese) < len(book["heldout"])
    some = data.load_book("train", limit=41, seed=3)
    assert Counter(row.language for row in some) == {"en": 21, "zh": 20}
    assert some == data.load_book("train", limit=41, seed=3)
    assert some != data.load_book("train", limit=41, seed=4)
    assert len({row.id for row in some}) == 41
    assert data.load_book("train", limit=len(book["train"])) == book["train"]


@pytest.mark.parametrize(
    "settings", [{"split": "test"}, {"language": "fr"}, {"limit": 0}, {"limit": -1}, {"limit": 10_000}]
)
def test_load_book_refuses(settings):
    with pytest.raises(LabError, match="Fix"):
        data.load_book(**{"split": "train", **settings})


def test_to_messages_is_the_form_trl_recognises():
    trl_data = pytest.importorskip("trl.data_utils")
    messages = data.to_messages(data.Example("a", "en", "tea", "What is tea?", "A drink.", ()))
    assert trl_data.is_conversational(messages)
    assert messages["prompt"] == [{"role": "user", "content": "What is tea?"}]
    assert messages["completion"] == [{"role": "assistant", "content": "A drink."}]


# ---- your own file, public sets ----


def test_load_your_own_folder_or_file(tmp_path):
    jsonl(tmp_path / "train.jsonl", ROW, ZH)
    jsonl(tmp_path / "heldout.jsonl", ZH)
    assert [row.id for row in data.load(str(tmp_path), "train")] == ["a-1", "b-1"]
    assert [row.id for row in data.load(str(tmp_path), "heldout")] == ["b-1"]
    assert [row.id for row in data.load(str(tmp_path / "train.jsonl"), "train", language="zh")] == ["b-1"]
    with pytest.raises(LabError, match="held-out"):
        data.load(str(tmp_path / "train.jsonl"), "heldout")


def test_a_limit_fills_up_from_the_other_language(tmp_path):
    rows = [{**ROW, "id": f"en-{place}"} for place in range(5)]
    path = jsonl(tmp_path / "train.jsonl", *rows, ZH)
    assert Counter(row.language for row in data.load(str(path), "train", limit=5)) == {"en": 4, "zh": 1}


def test_load_the_book_by_name(book):
    assert data.load("book", "heldout") == book["heldout"]


def test_unknown_names_list_the_known_ones():
    for call in (lambda: data.load("tulu4", "train"), lambda: data.load_public("tulu4", limit=1)):
        with pytest.raises(LabError) as error:
            call()
        assert all(name in str(error.value) for name in data.PUBLIC_SETS)


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        ({"instruction": "写一首诗。", "input": "", "output": "春眠不觉晓。"}, ("写一首诗。", "春眠不觉晓。")),
        ({"instruction": "翻译：", "input": "tea", "output": "茶"}, ("翻译：\ntea", "茶")),
        ({"instruction": "写一首诗。", "input": "无输入", "output": "好。"}, ("写一首诗。", "好。")),
        ({"instruction": "Say hi.", "input": "<noinput>", "output": "Hi.", "text": "..."}, ("Say hi.", "Hi.")),
        ({"instruction": "Say hi.", "input": None, "output": ""}, None),
        ({}, None),
    ],
)
def test_alpaca_records(record, pair):
    assert data.from_alpaca(record) == pair


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        (turns(("user", "Hi?"), ("assistant", "Hi."), ("user", "Bye?"), ("assistant", "Bye.")), ("Hi?", "Hi.")),
        (turns(("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hi.")), ("Hi?", "Hi.")),
        (turns(("user", "Hi?")), None),
        (turns(("assistant", "Hi."), ("user", "Hi?")), None),
        (turns(("user", "Hi?"), ("assistant", " ")), None),
        (turns(), None),
        ({"messages": None}, None),
        ({}, None),
    ],
)
def test_messages_records(record, pair):
    assert data.from_messages(record) == pair


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub: a real stream of the `datasets` library over records in memory."""
    datasets = pytest.importorskip("datasets")
    records = [{"instruction": f"问题{place}？", "input": "", "output": f"答案{place}。"} for place in range(400)]
    records += [
        {"instruction": "Что это?", "input": "", "output": "Чай."},
        {"instruction": "", "input": "", "output": ""},
    ]
    records += records[:50]  # repeats
    asked = []

    def load_dataset_builder(hub_id):
        asked.append(hub_id)
        stream = datasets.Dataset.from_list(records).to_iterable_dataset()
        return types.SimpleNamespace(name="json", as_streaming_dataset=lambda split: stream)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    return asked


def test_public_rows_stream_and_split_without_overlap(hub):
    train = data.load_public("alpaca-gpt4-zh", limit=300, seed=1)
    heldout = data.load("alpaca-gpt4-zh", "heldout", limit=10, seed=2)
    assert hub[0] == "shibing624/alpaca-zh"
    assert len({row.instruction for row in train}) == len({row.id for row in train}) == 300
    assert not {row.instruction for row in train} & {row.instruction for row in heldout}
    assert all(row.response == row.instruction.replace("问题", "答案").replace("？", "。") for row in train)
    assert {(row.language, row.topic, row.constraints) for row in train} == {("zh", "alpaca-gpt4-zh", ())}
    assert train == data.load_public("alpaca-gpt4-zh", limit=300, seed=1)


@pytest.mark.parametrize(
    "settings", [{"limit": 0}, {"limit": 401}, {"limit": 1, "language": "en"}, {"limit": 1, "split": "x"}]
)
def test_public_sets_refuse_what_they_cannot_give(hub, settings):
    with pytest.raises(LabError):
        data.load_public("alpaca-gpt4-zh", **settings)


def test_a_public_set_needs_a_limit():
    with pytest.raises(LabError, match="limit"):
        data.load("tulu3", "train")


def test_an_unreachable_hub_names_the_ways_out(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(LabError) as error:
        data.load_public("tulu3", limit=5)
    said = str(error.value)
    assert all(part in said for part in ("allenai/tulu-3-sft-mixture", "no route", "HF_ENDPOINT", "JSONL", "book"))


def test_the_hub_is_asked_over_the_road_to_it(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in [name for name in os.environ if name.lower() in network.CARRIED]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    (tmp_path / "network_turbo").write_text("export https_proxy=http://10.0.0.9:12798\n")
    monkeypatch.setattr(network, "TURBO_FILE", tmp_path / "network_turbo")
    seen = []
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda hub_id: seen.append(os.environ.get("https_proxy")))
    with pytest.raises(LabError):
        data.load_public("tulu3", limit=5)
    assert (seen, os.environ.get("https_proxy")) == (["http://10.0.0.9:12798"], None)


def write_csv(folder):
    (folder / "train.csv").write_text("instruction,output\nHi?,Hello.\n")


def write_script(folder):
    script = f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\n"
    (folder / f"{folder.name}.py").write_text(script)
    (folder / "train.jsonl").write_text('{"instruction": "Hi?", "output": "Hello."}\n')


@pytest.mark.parametrize(("write", "said"), [(write_csv, "files are csv"), (write_script, "scripts are no longer")])
def test_a_set_of_other_files_or_with_a_script_is_not_read(monkeypatch, tmp_path, write, said):
    write(tmp_path)
    monkeypatch.setitem(data.PUBLIC_SETS, "strange", data.PublicSet(str(tmp_path), data.from_alpaca, "none"))
    with pytest.raises(LabError, match=said):
        data.load_public("strange", limit=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_json_and_parquet_are_read_as_data(monkeypatch, tmp_path, suffix):
    datasets = pytest.importorskip("datasets")
    records = [{"instruction": f"Question <b>{n}</b>?", "output": "__import__('os')"} for n in range(40)]
    made = datasets.Dataset.from_list(records)
    (made.to_json if suffix == "jsonl" else made.to_parquet)(str(tmp_path / f"train.{suffix}"))
    monkeypatch.setitem(data.PUBLIC_SETS, "mine", data.PublicSet(str(tmp_path), data.from_alpaca, "none"))
    rows = data.load_public("mine", limit=5)
    assert {row.response for row in rows} == {"__import__('os')"}


# ---- composing ----


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("make_instructions")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture
def material(tmp_path):
    """A copy of the set's sources that a test may spoil."""
    shutil.copytree(BOOK, tmp_path / "instructions")
    return tmp_path / "instructions"


def test_the_files_and_the_counts_in_the_card_are_what_the_script_writes(script):
    for path, text in script.outputs().items():
        assert path.read_bytes() == text.encode(), f"{path.name} is stale: run python scripts/make_instructions.py"


def test_a_stale_file_fails_the_check(script, material, monkeypatch, capsys):
    (material / "train.jsonl").write_text("{}\n")
    monkeypatch.setattr(script, "outputs", lambda compose=script.outputs: compose(material))
    monkeypatch.setattr(sys, "argv", ["make_instructions.py", "--check"])
    assert script.main() == 1
    assert "train.jsonl" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["make_instructions.py"])
    assert script.main() == 0
    assert (material / "train.jsonl").read_bytes() == (BOOK / "train.jsonl").read_bytes()


def test_each_task_has_four_wordings_and_one_for_the_held_out_rows(script):
    for name, languages in script.read_phrasings(BOOK / "phrasings.toml").items():
        for language, group in languages.items():
            assert len(set(group["train"])) >= 4, (name, language)
            assert len(set(group["heldout"])) >= 1, (name, language)
            assert not set(group["train"]) & set(group["heldout"]), (name, language)


def test_held_out_rows_use_wordings_that_training_never_does(script, book):
    wordings = script.read_phrasings(BOOK / "phrasings.toml")
    new = [text for languages in wordings.values() for group in languages.values() for text in group["heldout"]]
    patterns = [re.compile(re.sub(r"\\\{\w+\\\}", "(.+)", re.escape(text)), re.IGNORECASE) for text in new]

    def share(rows):
        return sum(any(pattern.fullmatch(row.instruction) for pattern in patterns) for row in rows) / len(rows)

    assert share(book["train"]) == 0
    assert 0.3 < share(book["heldout"]) < 0.7


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('id = "rice"', 'id = "green-tea"', "another topic has"),
        ('id = "rice"', 'id = "Rice!"', "slug"),
        ('id = "rice"\n', "", "id"),
        ("Wash the grains before you cook them.", "Wash the grains", "whole sentence"),
        ("Wash the grains before you cook them.", "先洗米。", "not written in en"),
        ("Wash the grains before you cook them.", "Wash them. Cook them.", "whole sentence"),
        ('"Wash the grains before you cook them."', '"Brown rice keeps the outer bran layer."', "points"),
        (', "Wash the grains before you cook them."', "", "points"),
        ('"grains", "paddy"', '"grains, husks", "paddy"', "keyword"),
        ('{ plant = "grass", field = "paddy", main_nutrient = "starch" }', '{ plant = "grass" }', "attributes"),
        (
            'zh = "大米是长在大树上的吗？", answer = false',
            'zh = "大米是长在大树上的吗？", answer = true',
            "both answers",
        ),
        ("稻田里为什么常常有水？", "稻田里为什么常常有水。", "no question"),
    ],
)
def test_broken_material_is_refused_with_file_and_topic(script, material, before, after, said):
    path = material / "material" / "food.toml"
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(LabError, match=r"food\.toml, topic") as error:
        script.compose(material)
    assert said in str(error.value)


def test_broken_toml_and_missing_material_are_refused(script, material):
    (material / "material" / "food.toml").write_text("[[topic]\n")
    with pytest.raises(LabError, match=r"food\.toml"):
        script.compose(material)
    shutil.rmtree(material / "material")
    with pytest.raises(LabError, match="no topics"):
        script.compose(material)


def test_too_little_material_is_refused(script, material):
    for path in (material / "material").glob("*.toml"):
        if path.name != "food.toml":
            path.unlink()
    with pytest.raises(LabError, match="write more topics"):
        script.compose(material)
