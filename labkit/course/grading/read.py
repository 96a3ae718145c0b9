"""A submitted notebook as plain data. Everything in it may be wrong, huge or hostile; reading it never fails.

Cells are found by their source (`check("q2_1"`), never by cell ids or metadata: Colab rewrites both.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from labkit.page.records import PREFIX, cell_hash

MAX_CELLS, MAX_OUTPUTS, MAX_RECORDS = 2000, 400, 20
MAX_RECORD_CHARACTERS = 64_000
CHECKED = re.compile(r"""^\s*(?:labkit\.)?check\(\s*["'](q\d{1,3}_\d{1,3})["']""", flags=re.M)
# What a lesson itself takes from its questions (constants, sample patients) is no meddling.
MEDDLING = re.compile(
    r"labkit-record|labkit\.page\.(?:exercises|records|questions\.q\d+\s+import\s+(?!patients\b|[A-Z][A-Z0-9_]*\b))"
    r"|make_record|find_question|\bjudge\(|^\s*def\s+(?:check|predict)\b|^\s*(?:labkit\.)?check\s*=",
    flags=re.M,
)

Short = Annotated[str, Field(max_length=200)]


class Answer(BaseModel):
    """A record as a notebook holds it (see `labkit.page.records.Record`), its types and sizes checked."""

    question: Annotated[str, Field(pattern=r"^[pqr]\d{1,3}_\d{1,3}$")]
    state: Annotated[str, Field(max_length=20)]
    value: Any = None
    cell_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    profile: Short
    model: Short
    versions: dict[Short, Short] = {}
    gpu: Short | None = None
    peak_bytes: Annotated[int, Field(ge=0, le=2**50)] | None = None
    seconds: Annotated[float, Field(ge=-1e9, le=1e9)]
    said: Annotated[str, Field(max_length=8000)] | None = None


@dataclass(frozen=True)
class CodeCell:
    """One code cell: what it says, whether it was run, what it left."""

    source: str
    executed: int | None
    records: tuple[Answer, ...] = ()
    errors: tuple[str, ...] = ()

    @functools.cached_property
    def sha256(self) -> str:
        """The hash that `check` recorded if this source was run (see `labkit.page.records.cell_hash`)."""
        return cell_hash(self.source)

    @functools.cached_property
    def asked(self) -> list[str]:
        """The questions that this cell answers."""
        return list(dict.fromkeys(CHECKED.findall(self.source)))


@dataclass
class Notebook:
    """What was found: code cells, language, and what was wrong with the file (pairs of English and Chinese)."""

    cells: list[CodeCell] = field(default_factory=list)
    lang: str = "en"
    wrong: list[tuple[str, str, str]] = field(default_factory=list)  # (kind, English, Chinese)
    readable: bool = True


def clean(text: str, limit: int = 4000) -> str:
    """``text`` without control characters and lone surrogates, cut to ``limit`` characters."""
    kept = "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "�" for c in text[:limit])
    kept = kept.encode("utf-8", "replace").decode("utf-8")
    return kept + ("…" if len(text) > limit else "")


def read_notebook(raw: bytes) -> Notebook:
    """The notebook in ``raw``, the bytes of an ``.ipynb`` file; what is none comes back with ``readable`` False."""
    try:
        data = json.loads(raw, parse_constant=str)
    except RecursionError:
        return _unreadable("nested too deeply to be a notebook", "嵌套过深，不是正常的 notebook")
    except (ValueError, UnicodeError) as error:
        return _unreadable(f"not valid JSON ({clean(str(error), 120)})", f"不是合法的 JSON（{clean(str(error), 120)}）")
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        old = isinstance(data, dict) and "worksheets" in data
        why = ("in the format of 2014 (worksheets)", "是 2014 年以前的格式") if old else ("without cells", "没有单元格")
        return _unreadable(*why)
    found = Notebook()
    _note_kernel(found, data.get("metadata"))
    if len(data["cells"]) > MAX_CELLS:
        many = len(data["cells"])
        found.wrong.append(
            ("cells", f"{many} cells, {MAX_CELLS} are read", f"有 {many} 个单元格，只读前 {MAX_CELLS} 个")
        )
    for cell in data["cells"][:MAX_CELLS]:
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            found.cells.append(_code_cell(cell, found))
    setup = re.search(r"""labkit\.start\(["'](en|zh)["']\)""", "\n".join(cell.source for cell in found.cells[:5]))
    found.lang = setup[1] if setup else "en"
    _note_widget_errors(found, data.get("metadata"))
    return found


def _unreadable(en: str, zh: str) -> Notebook:
    return Notebook(wrong=[("unreadable", f"the file is {en}", f"文件{zh}")], readable=False)


def _text(value: object) -> str:
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _code_cell(cell: dict[str, Any], notebook: Notebook) -> CodeCell:
    count = cell.get("execution_count")
    executed = count if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 10**9 else None
    records, errors = [], []
    outputs = cell.get("outputs")
    for output in (outputs if isinstance(outputs, list) else [])[:MAX_OUTPUTS]:
        if not isinstance(output, dict):
            continue
        if output.get("output_type") == "error":
            errors.append(clean(f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}", 300))
        records += _records(_output_text(output), notebook)
    return CodeCell(_text(cell.get("source")), executed, tuple(records[-MAX_RECORDS:]), tuple(errors[:5]))


def _output_text(output: dict[str, Any]) -> str:
    if output.get("output_type") == "stream":
        return _text(output.get("text")) if output.get("name") == "stdout" else ""
    data = output.get("data")
    return _text(data.get("text/plain")) if isinstance(data, dict) else ""


def _records(text: str, notebook: Notebook) -> list[Answer]:
    found, start = [], text.find(PREFIX)
    while start >= 0 and len(found) < MAX_RECORDS:
        end = text.find("\n", start)
        line = text[start + len(PREFIX) : end if end >= 0 else len(text)]
        if start == 0 or text[start - 1] == "\n":
            answer = _answer(line)
            if answer is None:
                notebook.wrong.append(("record", "a record that cannot be read", "有一条记录读不出来"))
            else:
                found.append(answer)
        start = text.find(PREFIX, start + len(PREFIX))
    return found


def _answer(line: str) -> Answer | None:
    if len(line) > MAX_RECORD_CHARACTERS:
        return None
    try:
        return Answer.model_validate(json.loads(line, parse_constant=str), strict=True)
    except (ValueError, RecursionError, ValidationError):
        return None


def _note_kernel(notebook: Notebook, metadata: object) -> None:
    spec = metadata.get("kernelspec") if isinstance(metadata, dict) else None
    language = spec.get("language") if isinstance(spec, dict) else None
    if isinstance(language, str) and language.lower() not in ("", "python", "python3"):
        named = clean(language, 40)
        notebook.wrong.append(("kernel", f"saved with another kernel ({named})", f"保存时用的是别的内核（{named}）"))


def _note_widget_errors(notebook: Notebook, metadata: object) -> None:
    # An exception inside an Output widget leaves its cell looking fine; Colab leaves out the level "state".
    widgets = metadata.get("widgets") if isinstance(metadata, dict) else None
    saved = widgets.get("application/vnd.jupyter.widget-state+json") if isinstance(widgets, dict) else None
    states = saved.get("state", saved) if isinstance(saved, dict) else None
    for state in list(states.values())[:5000] if isinstance(states, dict) else ():
        inner = state.get("state") if isinstance(state, dict) else None
        outputs = inner.get("outputs") if isinstance(inner, dict) else None
        for output in outputs[:MAX_OUTPUTS] if isinstance(outputs, list) else ():
            if isinstance(output, dict) and output.get("output_type") == "error":
                said = clean(f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}", 200)
                notebook.wrong.append(
                    ("widget error", f"an error inside a widget: {said}", f"控件里有一个错误：{said}")
                )
                return
