"""Does every quote in the ledger stand in the lecture? For a maintainer who has the lecture's page, which is not here.

python scripts/check_lecture_quotes.py lecture.zh.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from labkit.page.lecture import ledger


def misquoted(page: str) -> list[str]:
    """A line for each claim whose quote, or whose section, is not in the Markdown text ``page``."""
    heads = set(re.findall(r"^#+ (.+?)\s*$", page, flags=re.M))
    wrong = []
    for row in ledger():
        if row.quote not in page:
            wrong.append(f"{row.id}: no such text: {row.quote}")
        if unknown := set(row.place["zh"].split(" › ")) - heads:
            wrong.append(f"{row.id}: no such section: {', '.join(sorted(unknown))}")
    return wrong


def main() -> None:
    """Print what is misquoted; exit code 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the lecture as Markdown")
    wrong = misquoted(parser.parse_args().page.read_text(encoding="utf-8"))
    print("\n".join(wrong) or "every quote and section is the lecture's")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
