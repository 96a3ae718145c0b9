"""The lecture's table of advice, each line with the claims of the ledger that stand behind it: the end of lesson 07."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.labels import text
from labkit.page.lecture import NAMES, Row, ledger


@dataclass(frozen=True)
class Advice:
    """One line of the lecture's closing table.

    Attributes:
        decision, advice: what is to be decided, and the lecture's choice; in both languages.
        claims: ids of the ledger's rows that it rests on.
    """

    decision: tuple[str, str]
    advice: tuple[str, str]
    claims: tuple[str, ...]


ADVICE = (
    Advice(
        ("full fine-tuning or PEFT", "全参数还是 PEFT"),
        ("PEFT, unless resources are ample", "PEFT，除非资源充裕"),
        ("full-total", "lora-total", "low-rank-update"),
    ),
    Advice(
        ("LoRA or QLoRA", "LoRA 还是 QLoRA"),
        ("QLoRA where memory is scarce", "显存有限时用 QLoRA"),
        ("qlora-load", "qlora-total", "halves-again", "backward-only-lora"),
    ),
    Advice(("rank", "秩 r"), ("32", "32"), ("rank-small", "rank-guide", "rank-large", "lora-params")),
    Advice(("alpha", "alpha"), ("2 r", "2 r"), ("alpha-qwen3", "alpha-rate")),
    Advice(("targets", "目标层"), ("all linears", "所有线性层"), ("all-linear-qwen3", "attention-first")),
    Advice(("dropout", "dropout"), ("0.05", "0.05"), ("dropout",)),
    Advice(("precision", "计算精度"), ("bfloat16", "BF16"), ("bf16", "qlora-t4", "adapter-fp16")),
    Advice(
        ("DoRA (in passing)", "DoRA（顺带提到）"),
        ("slightly better, cheap", "略优、开销小"),
        ("dora-better", "dora-cost"),
    ),
    Advice(
        ("Spectrum (in passing)", "Spectrum（顺带提到）"),
        ("LoRA on high-SNR layers", "只在高信噪比层上用 LoRA"),
        ("spectrum-lora", "spectrum-better"),
    ),
)


def advice_rows() -> list[tuple[str, str, str, str]]:
    """Decision, the lecture's advice, the verdict of each claim behind it, and the lessons that found them."""
    known = {row.id: row for row in ledger()}
    found = []
    for line in ADVICE:
        rows = [known[id] for id in line.claims]
        lessons = ", ".join(sorted({number for row in rows for number in row.lessons}))
        found.append((text(*line.decision), text(*line.advice), "\n".join(map(_verdict, rows)), lessons))
    return found


def _verdict(row: Row) -> str:
    quote = text(row.en, f"“{row.quote}”".replace("**", "").replace("$", ""))
    return f"{text(row.verdict, NAMES[row.verdict])}: {quote}"


def show_advice() -> None:
    """Display the table, and as plain text where no HTML is shown."""
    from IPython.display import display

    rows = advice_rows()
    display({"text/html": _html(rows), "text/plain": _plain(rows)}, raw=True)


def _heads() -> tuple[str, ...]:
    return (
        text("decision", "决策"),
        text("the lecture", "讲义"),
        text("what the book found on the claims behind it", "本书对相关说法的结论"),
        text("lessons", "章节"),
    )


def _plain(rows: Sequence[tuple[str, ...]]) -> str:
    lines = []
    for decision, advice, verdicts, lessons in rows:
        lines.append(f"{decision}: {advice} ({text('lessons', '第')} {lessons}{text('', ' 节')})")
        lines += [f"    {verdict}" for verdict in verdicts.split("\n")]
    return "\n".join(lines)


def _html(rows: Sequence[tuple[str, ...]]) -> str:
    from html import escape

    style = "text-align:left;vertical-align:top;padding:.4em .6em;white-space:normal;overflow-wrap:break-word"
    heads = "".join(f'<th scope="col" style="{style}">{escape(head)}</th>' for head in _heads())
    body = ""
    for row in rows:
        cells = (escape(cell).replace("\n", "<br>") for cell in row)
        body += "<tr>" + "".join(f'<td style="{style}">{cell}</td>' for cell in cells) + "</tr>"
    table = f'<table style="border-collapse:collapse"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="labkit-lecture" style="overflow-x:auto">{table}</div>'
