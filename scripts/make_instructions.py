"""Compose the book's instruction set from the topics and wordings in ``data/instructions``.

    python scripts/make_instructions.py           write train.jsonl, heldout.jsonl and the counts in README.md
    python scripts/make_instructions.py --check   fail if one of them is not what this script would write

The same material always gives the same bytes: every random choice is seeded by the row's own place.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from instruction_tasks import TASKS
from instruction_topics import LANGUAGES, Topic, need, read_topics, toml

from labkit.errors import LabError
from labkit.files import write_text
from labkit.training.constraints import parse, violations

ROOT = Path(__file__).resolve().parents[1] / "data" / "instructions"
ROWS = {"train": 1400, "heldout": 240}
SEED = 20261124

Phrasings = dict[str, dict[str, dict[str, list[str]]]]
Row = dict[str, object]


def read_phrasings(path: Path) -> Phrasings:
    """The wordings of every task; a task without wordings, or wordings without a task, are a LabError."""
    phrasings = toml(path)
    need(set(phrasings) == set(TASKS), path.name, f"tasks without a match: {sorted(set(phrasings) ^ set(TASKS))}")
    for name, task in TASKS.items():
        need(set(phrasings[name]) == set(task.languages), path.name, f"{name} needs wordings in {task.languages}")
    return phrasings


def _attempt(name: str, topic: dict[str, Topic], language: str, wordings: list[str], rng: random.Random) -> Row | None:
    other = topic["zh" if language == "en" else "en"]
    built = TASKS[name].build(topic[language], other, rng)
    if built is None:
        return None
    slots, response, rules = built
    instruction = rng.choice(wordings).format(name=topic[language].name, **slots)
    instruction = instruction[0].upper() + instruction[1:]
    if broken := violations([parse(rule) for rule in rules], response):
        given = f"{topic[language].id}, task {name}"
        raise LabError(given, f"the reference breaks its rules: {broken}", "mend the task")
    fields = {"language": language, "topic": topic[language].id, "instruction": instruction}
    return {**fields, "response": response, "constraints": rules}


def _wordings(phrasings: Phrasings, name: str, language: str, split: str, rng: random.Random) -> list[str]:
    group = phrasings[name][language]
    return group["heldout"] if split == "heldout" and rng.random() < 0.5 else group["train"]


def _order(language: str) -> list[str]:
    """The names of the tasks in this language, each as often as its weight, in a fixed mixed order."""
    names = [name for name, task in sorted(TASKS.items()) if language in task.languages for _ in range(task.weight)]
    random.Random(f"{SEED}/{language}").shuffle(names)
    return names


def _rows(topics: list[dict[str, Topic]], phrasings: Phrasings, split: str) -> Iterator[Row]:
    """Rows without end, until the tasks run out: round after round over the topics, languages by turns."""
    orders = {language: _order(language) for language in LANGUAGES}
    seen: set[str] = set()
    rounds = max(map(len, orders.values()))
    for turn, (place, topic), language in itertools.product(range(rounds), enumerate(topics), LANGUAGES):
        order = orders[language]
        if turn >= len(order):
            continue
        # Each topic starts at another task, so every round spreads over all tasks.
        name = order[(turn + place * 7) % len(order)]
        rng = random.Random(f"{SEED}/{split}/{topic[language].id}/{name}/{language}/{turn}")
        for _ in range(20):
            row = _attempt(name, topic, language, _wordings(phrasings, name, language, split, rng), rng)
            if row and row["instruction"] not in seen:
                seen.add(row["instruction"])
                yield row
                break


def compose(folder: Path = ROOT) -> dict[str, list[Row]]:
    """The rows of both splits, shuffled and numbered, ready to be written.

    Raises:
        LabError: the material breaks its schema, or there is too little of it for the number of rows.
    """
    topics, phrasings = read_topics(folder / "material"), read_phrasings(folder / "phrasings.toml")
    splits = {}
    for split, count in ROWS.items():
        rows = list(itertools.islice(_rows(topics[split], phrasings, split), count))
        need(len(rows) == count, str(folder), f"{len(rows)} {split} rows, {count} wanted: write more topics")
        random.Random(f"{SEED}/{split}").shuffle(rows)
        splits[split] = [{"id": f"{split}-{place:04d}", **row} for place, row in enumerate(rows, start=1)]
    return splits


def counts_table(splits: dict[str, list[Row]]) -> str:
    """The counts of the data card in Markdown."""
    columns = [(split, language) for split in splits for language in LANGUAGES]
    kinds = Counter(
        (split, row["language"], rule["kind"])
        for split, rows in splits.items()
        for row in rows
        for rule in row["constraints"]
    )
    table = {"rows": [sum(row["language"] == lang for row in splits[split]) for split, lang in columns]}
    for kind in sorted({kind for *_, kind in kinds}):
        table[f"`{kind}`"] = [kinds[(*column, kind)] for column in columns]
    heads = [f"{split} {language}" for split, language in columns]
    lines = [["", *heads], ["---", *["---:"] * len(heads)], *([name, *map(str, row)] for name, row in table.items())]
    topics = ", ".join(f"{len({row['topic'] for row in rows})} topics in {split}" for split, rows in splits.items())
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{topics}."


def outputs(folder: Path = ROOT) -> dict[Path, str]:
    """What belongs into each generated file."""
    splits = compose(folder)
    files = {
        folder / f"{split}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for split, rows in splits.items()
    }
    card = folder / "README.md"
    before, start, rest = card.read_text(encoding="utf-8").partition("<!-- counts -->\n")
    _, end, after = rest.partition("\n<!-- /counts -->")
    need(bool(start and end), card.name, "the marks <!-- counts --> and <!-- /counts --> are missing")
    return {**files, card: before + start + counts_table(splits) + end + after}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the files are stale")
    check = parser.parse_args().check
    try:
        files = outputs()
        stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in [] if check else stale:
            write_text(path, files[path])
    except LabError as error:
        print(error, file=sys.stderr)
        return 2
    for path in stale:
        print(f"{path.name}: {'stale, run python scripts/make_instructions.py' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
