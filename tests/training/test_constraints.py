"""The rules against texts judged by hand, the book's own rows, and Wilson's formula."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from labkit.errors import LabError
from labkit.training.constraints import (
    KINDS,
    Constraint,
    follows,
    language_of,
    parse,
    rate,
    sentences,
    violations,
)

# (constraint, texts that follow it, texts that break it), judged by a person
CASES = [
    (
        {"kind": "json_keys", "keys": ["origin", "taste"]},
        ['{"origin": "China", "taste": "fresh"}', '\n{"taste": "fresh",\n "origin": "China"}\n'],
        [
            '{"origin": "China"}',
            '{"origin": "China", "taste": "fresh", "colour": "green"}',
            '{"origin": "China", "taste": ""}',
            '{"origin": "China", "taste": 3}',
            '{"origin": "China", "taste": "fresh", "taste": "mild"}',
            '["origin", "taste"]',
            'Here it is: {"origin": "China", "taste": "fresh"}',
            "{'origin': 'China', 'taste': 'fresh'}",
            "[" * 100_000,
        ],
    ),
    ({"kind": "json_keys", "keys": ["产地"]}, ['{"产地": "中国"}'], ['{"产地"： "中国"}']),
    (
        {"kind": "bullets", "count": 2},
        ["- one\n- two", "- 一条。\n- 两条。\n", "- one\n\n- two"],
        ["- one", "- one\n- two\n- three", "Facts:\n- one\n- two", "* one\n* two", "-one\n-two", "- \n- two"],
    ),
    (
        {"kind": "numbered", "count": 2},
        ["1. one\n2. two", "1.一\n2.二"],
        ["1. one", "1. one\n3. two", "1) one\n2) two", "1. one\n2. two\n3. three", "- one\n- two", "1. one\n1. two"],
    ),
    (
        {"kind": "language", "language": "zh"},
        ["茶是绿色的。", "水的化学式是H2O。", "英语词典里 apple 在 zebra 前面。"],
        ["Tea is green.", "42", "Tea (茶) is a green plant."],
    ),
    (
        {"kind": "language", "language": "en"},
        ["Tea is green.", "The character 茶 stands for tea in one of the old books on plants."],
        ["茶是绿色的。", "42", "Tea 茶是绿色的。"],
    ),
    ({"kind": "max_words", "count": 3}, ["Tea is green.", "Tea"], ["Tea is very green.", "a b c d"]),
    ({"kind": "max_chars", "count": 6}, ["茶是绿色的。", "茶是 绿色 的。", "茶"], ["茶都是绿色的。", "abcdefg"]),
    (
        {"kind": "sentences", "count": 2},
        ["It is 42.195 km. Run!", "茶是绿的。水是热的。", "Is it? Yes.", "「茶。」水。", "One. and a rest"],
        ["One.", "One. Two. Three.", "茶是绿的，水是热的。", "No stop at all"],
    ),
    (
        {"kind": "starts_with", "text": "In short:"},
        ["In short: tea is green.", "  In short: yes"],
        ["Tea is green. In short: yes", "in short: tea"],
    ),
    ({"kind": "ends_with", "text": "就是这样。"}, ["茶是绿的。就是这样。"], ["就是这样。茶是绿的。", "就是这样"]),
    (
        {"kind": "contains", "words": ["tea", "cup"]},
        ["A CUP of tea.", '"Tea", she said, cup in hand.'],
        ["A cup of milk.", "A cup for the team.", "Teacups."],
    ),
    ({"kind": "contains", "words": ["茶叶"]}, ["好茶叶很香。"], ["茶的叶子很香。"]),
    ({"kind": "avoids", "words": ["tea"]}, ["The team drinks milk.", "Steam."], ["TEA is green.", "I like tea."]),
    ({"kind": "avoids", "words": ["茶"]}, ["水是热的。"], ["茶叶很香。"]),
    ({"kind": "uppercase"}, ["TEA, AT 80 DEGREES!"], ["Tea", "TEa", "80", "茶"]),
    (
        {"kind": "comma_list", "count": 3},
        ["leaf, cup, steam", "茶叶、杯子、香气", "a，b，c", "leaf, cup, steam."],
        ["leaf, cup", "a, b, c, d", "leaf, , cup", "a\nb\nc", "Tea is hot. Milk, water, salt", "a,b,"],
    ),
    ({"kind": "yes_no"}, ["Yes.", "No.", "是。", "不是。", " Yes.\n"], ["Yes", "yes.", "Yes. It is.", "对。", "No!"]),
    (
        {"kind": "title_line"},
        ["Title: Tea\nTea is green.", "标题：茶\n茶是绿的。"],
        ["Tea\nTea is green.", "Title: Tea", "Title:\nTea is green.", "Text\nTitle: Tea"],
    ),
    (
        {"kind": "quoted"},
        ['"Tea is green."', "「茶是绿的。」", "“Tea.”"],
        ['Tea "is" green.', '"Tea', '"', '""', '"Tea" and "milk"', "「茶", "'Tea'"],
    ),
    (
        {"kind": "paragraphs", "count": 2},
        ["One.\n\nTwo.", "One.\n \n\nTwo. Three.\n"],
        ["One.\nTwo.", "One.\n\nTwo.\n\nThree.", "One."],
    ),
]


def test_every_kind_is_judged_both_ways():
    judged = {raw["kind"] for raw, good, bad in CASES if good and bad}
    assert judged == set(KINDS)


@pytest.mark.parametrize(
    ("raw", "good", "bad"), CASES, ids=lambda value: value["kind"] if isinstance(value, dict) else ""
)
def test_rule_against_a_persons_judgement(raw, good, bad):
    constraint = parse(raw)
    assert [text for text in good if not follows(constraint, text)] == []
    assert [text for text in bad if follows(constraint, text)] == []


@pytest.mark.parametrize("raw", [case[0] for case in CASES], ids=lambda raw: raw["kind"])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_answer_breaks_every_rule(raw, text):
    assert violations([parse(raw)], text) == [f"{raw['kind']}: empty answer"]


@pytest.mark.parametrize("raw", [case[0] for case in CASES], ids=lambda raw: raw["kind"])
def test_parse_and_back(raw):
    assert parse(raw).as_dict() == raw
    assert parse(raw) == parse(dict(raw))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"kind": "haiku"}, "haiku"),
        ({"count": 3}, "kind"),
        ({"kind": 3}, "kind"),
        ("bullets", "bullets"),
        (None, "null"),
        ({"kind": "bullets"}, "count"),
        ({"kind": "bullets", "count": 0}, "count=0"),
        ({"kind": "bullets", "count": True}, "count=True"),
        ({"kind": "bullets", "count": 2.0}, "count=2.0"),
        ({"kind": "bullets", "count": "3"}, "count='3'"),
        ({"kind": "bullets", "count": 3, "words": ["a"]}, "bullets takes exactly: count"),
        ({"kind": "yes_no", "count": 1}, "no arguments"),
        ({"kind": "language", "language": "fr"}, "fr"),
        ({"kind": "language", "language": ["en"]}, "language"),
        ({"kind": "contains", "words": []}, "words"),
        ({"kind": "contains", "words": "tea"}, "words"),
        ({"kind": "contains", "words": ["tea", " "]}, "words"),
        ({"kind": "json_keys", "keys": ["a", "a"]}, "keys"),
        ({"kind": "json_keys", "keys": [["a"]]}, "keys"),
        ({"kind": "starts_with", "text": ""}, "text"),
    ],
)
def test_parse_refuses(raw, said):
    with pytest.raises(LabError) as error:
        parse(raw)
    assert said in str(error.value)
    assert "Fix:" in str(error.value)


def test_violations_name_the_rule_and_the_numbers():
    rules = [parse({"kind": "bullets", "count": 3}), parse({"kind": "language", "language": "zh"})]
    assert violations(rules, "- one\n- two") == ["bullets: 2 found, 3 asked", "language: en found, zh asked"]
    assert violations(rules, "- 一\n- 二\n- 三") == []
    assert violations([], "anything") == []


def test_language_needs_letters():
    assert [language_of(text) for text in ("", "12 + 3", "Tea", "茶")] == [None, None, "en", "zh"]


def test_sentences_counts_an_unfinished_one():
    assert [sentences(text) for text in ("", "Tea", "Tea.", "Tea. And", "茶。水", "Wait... what?")] == [
        0,
        1,
        1,
        2,
        2,
        2,
    ]


@dataclass
class Row:
    id: str
    constraints: tuple[Constraint, ...]


def test_rate_counts_rows_whose_rules_all_hold():
    both = (parse({"kind": "max_words", "count": 2}), parse({"kind": "contains", "words": ["tea"]}))
    rows = [Row(str(place), both) for place in range(4)]
    assert rate(rows, ["green tea", "tea", "green milk", "a lot of tea"]) == 0.5


@pytest.mark.parametrize(
    ("rows", "texts"), [([], []), ([Row("a", ())], ["x"]), ([Row("a", (parse({"kind": "yes_no"}),))], [])]
)
def test_rate_refuses_what_it_cannot_measure(rows, texts):
    with pytest.raises(LabError):
        rate(rows, texts)
