"""CSV that a spreadsheet shows and never executes, and that can be read back from what a spreadsheet saved."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from labkit.course.grading.read import clean
from labkit.errors import LabError
from labkit.files import write_text

FORMULA = "=+-@＝＋－＠|%\t\r\n"  # what makes Excel, LibreOffice or WPS take a field for a formula or a command
CELL_LIMIT = 30_000  # Excel cuts at 32,767


def safe(field: object) -> str:
    """``field`` as a spreadsheet shows it: text that begins like a formula gets an apostrophe; numbers stay numbers."""
    if isinstance(field, int | float):
        return f"{field:g}"
    text = clean(str(field), CELL_LIMIT)
    return f"'{text}" if text.lstrip(" \u00a0\u3000\ufeff")[:1] in FORMULA and text else text


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, mark: bool = False) -> Path:
    """Write a CSV file (UTF-8, comma, one line end everywhere), with a byte order mark if ``mark``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([safe(field) for field in row] for row in rows)
    return write_text(path, ("\ufeff" if mark else "") + text.getvalue())


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that a spreadsheet may have saved: any of its encodings and separators.

    Raises:
        LabError: it is not such a file, or a column is missing.
    """
    raw = path.read_bytes()
    for encoding in ("utf-8-sig", "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "gb18030"):
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise LabError(str(path), "this is not text that a spreadsheet saved", "save it as CSV (UTF-8)")
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    csv.field_size_limit(10**7)
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing and rows:
        raise LabError(str(path), f"the column {missing[0]!r} is missing", "keep the first line as it was written")
    return [{name: unguarded(row.get(name) or "") for name in columns} for row in rows]


def unguarded(field: str) -> str:
    """``field`` without the apostrophe that `safe` put before it."""
    return field[1:] if field.startswith("'") and field[1:].lstrip(" \u00a0\u3000\ufeff")[:1] in FORMULA else field
