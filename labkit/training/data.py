"""Instruction data in one form: the book's own set, a local JSONL file, or a public set from the Hub.

One row is one JSON object a line: ``{"id", "language", "topic", "instruction", "response", "constraints"}``.
``language`` is the language of the instruction; a row may ask for its answer in the other one.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.models import network
from labkit.paths import data_folder
from labkit.training.constraints import Constraint, language_of, parse

SPLITS = ("train", "heldout")
LANGUAGES = ("en", "zh")
FIELDS = ("id", "language", "topic", "instruction", "response", "constraints")
DATA_FORMATS = ("json", "parquet")  # of public sets: plain data, without scripts or pickles
SHUFFLE_WINDOW = 10_000  # records; a stream is shuffled inside a window of this size
HELDOUT_ONE_IN = 20  # public sets: one instruction in twenty is held out, chosen by its hash


@dataclass(frozen=True)
class Example:
    """One instruction with its reference answer and the rules that any answer must keep."""

    id: str
    language: str
    topic: str
    instruction: str
    response: str
    constraints: tuple[Constraint, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of the data files."""
        return {**vars(self), "constraints": [constraint.as_dict() for constraint in self.constraints]}


def to_messages(example: Example) -> dict[str, list[dict[str, str]]]:
    """The conversational prompt/completion form of TRL, so that only the answer carries loss."""
    return {
        "prompt": [{"role": "user", "content": example.instruction}],
        "completion": [{"role": "assistant", "content": example.response}],
    }


def _row(raw: object, where: str) -> Example:
    if not isinstance(raw, dict):
        raise LabError(where, "a row is one JSON object", "write one {...} on each line")
    missing, extra = [name for name in FIELDS if name not in raw], [name for name in raw if name not in FIELDS]
    if missing or extra:
        faults = (("missing", missing), ("unknown", extra))
        rule = "; ".join(f"{fault} field {', '.join(names)}" for fault, names in faults if names)
        raise LabError(where, rule, f"a row has exactly the fields {', '.join(FIELDS)}")
    for name in FIELDS[:-1]:
        if not isinstance(raw[name], str) or not raw[name].strip():
            raise LabError(where, f"{name}={raw[name]!r} is not a text, or it is empty", f"give {name} some text")
    if raw["language"] not in LANGUAGES:
        raise LabError(where, f"language={raw['language']!r} is neither en nor zh", 'write "en" or "zh"')
    if not isinstance(raw["constraints"], list):
        raise LabError(where, "constraints is not a list", "write [] where there are none")
    try:
        rules = tuple(parse(item) for item in raw["constraints"])
    except LabError as error:
        raise LabError(where, f"{error.given}: {error.rule}", error.fix) from None
    return Example(**{**raw, "constraints": rules})


def _json_line(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise LabError(where, "the line is not UTF-8", "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise LabError(where, f"the line is not JSON ({error})", "write one JSON object on each line") from None


def read_rows(path: Path | str) -> list[Example]:
    """All rows of a JSONL file, or nothing: a single bad row refuses the file.

    Raises:
        LabError: with ``given`` "FILE:LINE" for a malformed row (not UTF-8, not JSON, a missing, unknown or empty
            field, a wrong type, an unknown constraint, a repeated id), "FILE" for a file that is missing or empty.
    """
    path = Path(path)
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark that some Windows editors put first
    except OSError as error:
        raise LabError(str(path), f"cannot read this file ({error.strerror})", "name an existing JSONL file") from None
    if not content.strip():
        raise LabError(str(path), "the file holds no rows", "write one JSON object on each line")
    rows: list[Example] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        where = f"{path}:{number}"
        row = _row(_json_line(line, where), where)
        if row.id in seen:
            raise LabError(where, f"id {row.id!r} occurs already on line {seen[row.id]}", "give each row its own id")
        seen[row.id] = number
        rows.append(row)
    return rows


def _choice(given: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise LabError(f"{given}={value!r}", f"{given} is one of {', '.join(choices)}", f"try {choices[0]!r}")


def _subset(rows: list[Example], *, language: str, limit: int | None, seed: int) -> list[Example]:
    """The rows of ``language``, or a seeded sample of ``limit`` of them with both languages in equal parts."""
    _choice("language", language, ("both", *LANGUAGES))
    rows = [row for row in rows if language in ("both", row.language)]
    if limit is None:
        return rows
    if not 1 <= limit <= len(rows):
        raise LabError(f"limit={limit}", f"there are {len(rows)} such rows", f"choose a limit from 1 to {len(rows)}")
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    queues = [[place for place in order if rows[place].language == name] for name in LANGUAGES]
    # One of each language by turns: any prefix is balanced, and a short language is filled up from the other.
    mixed = [place for pair in zip_longest(*queues) for place in pair if place is not None]
    return [rows[place] for place in sorted(mixed[:limit])]


def load_book(split: str, *, language: str = "both", limit: int | None = None, seed: int = 0) -> list[Example]:
    """The book's own bilingual set (CC0; see ``data/instructions/README.md``).

    Args:
        split: "train" or "heldout"; the two share no topic.
        language: "both", "en" or "zh", the language of the instruction.
        limit: how many rows, a seeded sample balanced over the languages; None for all.

    Raises:
        LabError: an unknown split or language, or a limit outside 1..rows.
    """
    _choice("split", split, SPLITS)
    rows = read_rows(data_folder() / "instructions" / f"{split}.jsonl")
    return _subset(rows, language=language, limit=limit, seed=seed)


Pair = tuple[str, str]


def from_alpaca(record: Mapping[str, Any]) -> Pair | None:
    """(instruction, response) of a record with the columns instruction, input and output."""
    instruction, extra, output = (str(record.get(name) or "").strip() for name in ("instruction", "input", "output"))
    if extra and extra.lower() not in ("<noinput>", "无", "无输入", "nan"):
        instruction = f"{instruction}\n{extra}"
    return (instruction, output) if instruction and output else None


def from_messages(record: Mapping[str, Any]) -> Pair | None:
    """(first user turn, assistant turn that follows it) of a record with a messages column; None without them."""
    turns = [turn for turn in record.get("messages") or [] if turn.get("role") != "system"]
    if [turn.get("role") for turn in turns[:2]] != ["user", "assistant"]:
        return None
    instruction, response = (str(turn.get("content") or "").strip() for turn in turns[:2])
    return (instruction, response) if instruction and response else None


@dataclass(frozen=True)
class PublicSet:
    """A public data set on the Hub and how one of its records becomes an instruction and a response."""

    hub_id: str
    convert: Callable[[Mapping[str, Any]], Pair | None]
    licence: str


PUBLIC_SETS: dict[str, PublicSet] = {
    "tulu3": PublicSet("allenai/tulu-3-sft-mixture", from_messages, "ODC-BY-1.0, parts with terms of their own"),
    "no-robots": PublicSet("HuggingFaceH4/no_robots", from_messages, "CC-BY-NC-4.0"),
    "alpaca-gpt4": PublicSet("vicgalle/alpaca-gpt4", from_alpaca, "CC-BY-NC-4.0"),
    "alpaca-gpt4-zh": PublicSet("shibing624/alpaca-zh", from_alpaca, "CC-BY-4.0"),
}


def is_heldout(instruction: str) -> bool:
    """Whether a public set's instruction belongs to the held-out part: equal instructions never cross the splits."""
    return int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:8]) % HELDOUT_ONE_IN == 0


def _public_rows(name: str, split: str, language: str, seed: int) -> Iterator[Example]:
    import datasets

    builder = datasets.load_dataset_builder(PUBLIC_SETS[name].hub_id)
    if builder.name not in DATA_FORMATS:
        raise ValueError(f"its files are {builder.name}; only {' and '.join(DATA_FORMATS)} are read")
    stream = builder.as_streaming_dataset(split="train")
    seen: set[str] = set()
    for record in stream.shuffle(seed=seed, buffer_size=SHUFFLE_WINDOW):
        pair = PUBLIC_SETS[name].convert(record)
        if pair is None or pair[0] in seen or is_heldout(pair[0]) != (split == "heldout"):
            continue
        found = language_of(pair[0])
        if found is not None and language in ("both", found):
            seen.add(pair[0])
            yield Example(f"{name}-{split}-{len(seen):05d}", found, name, *pair, ())


def load_public(name: str, *, split: str = "train", language: str = "both", limit: int, seed: int = 0) -> list[Example]:
    """``limit`` rows of a public set, streamed: the first user turn and the first answer of each record.

    Every set is read from its "train" split on the Hub; one instruction in twenty is held out by its hash. Records
    without the two turns, repeats, and instructions in neither Chinese nor Latin letters are passed over ("en" here
    means Latin letters; Tulu 3 has some French, too). The stream is shuffled in a window of 10,000 records, so a
    small limit is no uniform sample of a large set. The rows have no constraints.

    Raises:
        LabError: an unknown name or split, a limit below 1, fewer rows than ``limit``, or a Hub that does not answer.
    """
    _choice("name", name, tuple(PUBLIC_SETS))
    _choice("split", split, SPLITS)
    _choice("language", language, ("both", *LANGUAGES))
    if limit < 1:
        raise LabError(f"limit={limit}", "limit must be at least 1", "try limit=1000")
    hub_id = PUBLIC_SETS[name].hub_id
    try:
        with network.route(network.hub_endpoint()):
            rows = list(islice(_public_rows(name, split, language, seed), limit))
    except Exception as error:  # the Hub's client raises a dozen types for one fact: the data did not arrive
        first_line = (str(error) or "no message").splitlines()[0]
        fix = (
            "set HF_ENDPOINT=https://hf-mirror.com (a mirror) and start again, or pass the path of a JSONL file with "
            "rows in the book's form, or use the book's own set: data=\"book\""
        )
        rule = f"the Hub did not deliver {hub_id} ({type(error).__name__}: {first_line})"
        raise LabError(f"data={name!r}", rule, fix) from error
    if len(rows) < limit:
        rule = f"the {split} part of {hub_id} gave only {len(rows)} usable rows"
        raise LabError(f"limit={limit}", rule, "ask for fewer rows")
    return rows


def load(
    name_or_path: str, split: str, *, language: str = "both", limit: int | None = None, seed: int = 0
) -> list[Example]:
    """Rows of "book", of a public set by name, or of your own JSONL.

    Your own data: a folder with ``train.jsonl`` and ``heldout.jsonl``, or one file, which is all training rows
    (a file cannot be both: a model must not be judged on rows that it was trained on).

    Raises:
        LabError: unknown name or split, a malformed row, no held-out rows, or an unreachable Hub.
    """
    _choice("split", split, SPLITS)
    if name_or_path == "book":
        return load_book(split, language=language, limit=limit, seed=seed)
    if name_or_path in PUBLIC_SETS:
        if limit is None:
            raise LabError(f"data={name_or_path!r}, limit=None", "a public set needs a limit", "pass limit=1000")
        return load_public(name_or_path, split=split, language=language, limit=limit, seed=seed)
    path = Path(name_or_path)
    if path.is_dir():
        path = path / f"{split}.jsonl"
    elif path.is_file() and split == "heldout":
        fix = "put train.jsonl and heldout.jsonl in a folder and name the folder"
        raise LabError(str(path), "one file has no held-out rows", fix)
    elif not path.exists():
        fix = f"use {', '.join(('book', *PUBLIC_SETS))} or the path of a JSONL file"
        raise LabError(f"data={name_or_path!r}", "neither a known set nor a file", fix)
    return _subset(read_rows(path), language=language, limit=limit, seed=seed)
