"""Pretrain the book's tiny Qwen3-architecture base model, tokenizer included, from the book's own topics.

    python scripts/pretrain_tiny.py            # writes data/tiny-qwen3/ (minutes on one CPU core)
    python scripts/pretrain_tiny.py --steps 20 --out FOLDER    # a short run, as the tests do it

The corpus is plain text made from ``data/instructions/material/*.toml``: articles, lists, records and question-answer
pairs in two languages, and pages that write the same words in another form. Topics of the held-out split are left out
of it, so held-out rows stay unseen. It never shows the chat template or an instruction: what comes out is a *base*
model, which lesson 04 then teaches to follow instructions. Training stops early: the loss on pages about held-out
topics is lowest after about 300 steps, then the model only learns its corpus by heart. The same machine, thread
count and torch version give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from labkit.files import new_folder, write_json
from labkit.paths import checkout

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # Qwen3's names; the base model's stop is the first
VOCAB_SIZE = 2048
SEQ_LEN = 256
BATCH = 8
PEAK_LR = 3e-3
SEED = 0
DOCUMENTS = 24_000


def held_out_topics() -> set[str]:
    """Topic ids that occur in the held-out split."""
    path = checkout() / "data" / "instructions" / "heldout.jsonl"
    return {json.loads(line)["topic"] for line in path.read_text(encoding="utf-8").splitlines()}


def topics() -> list[dict]:
    """Every topic of the material, in a fixed order."""
    folder = checkout() / "data" / "instructions" / "material"
    return [
        topic for path in sorted(folder.glob("*.toml")) for topic in tomllib.loads(path.read_text("utf-8"))["topic"]
    ]


FORMS = {  # what a text may be turned into, and how a page announces it
    "bullets": (["A list", "Bullet points", "As a list"], ["列表", "要点", "列成要点"]),
    "numbered": (["A numbered list", "Step by step", "Numbered"], ["编号列表", "按顺序编号", "依次列出"]),
    "json": (["As JSON", "A JSON object", "JSON"], ["JSON 格式", "用 JSON 表示", "JSON"]),
    "quoted": (["In quotation marks", "Quoted", "A quotation"], ["加上引号", "引文", "引用"]),
    "paragraphs": (["In paragraphs", "Separate paragraphs"], ["分成几段", "分段"]),
    "upper": (["In capital letters", "In capitals"], ["一段话", "短文"]),
    "comma": (["Separated by commas", "On one line, with commas"], ["用顿号隔开", "写成一行"]),
    "title": (["With a title", "Title first"], ["带标题", "先写标题"]),
    "plain": (["In sentences", "A short text"], ["几句话", "一段介绍"]),
}
COUNTS = {"en": ["", "One", "Two", "Three", "Four", "Five"], "zh": ["", "一", "两", "三", "四", "五"]}


def formed(form: str, items: list[str], name: str, lang: str) -> str:
    """``items`` (sentences or words) in one of `FORMS`."""
    plain = ("" if lang == "zh" else " ").join(items)
    return {
        "bullets": "\n".join(f"- {item}" for item in items),
        "numbered": "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1)),
        "json": json.dumps(dict(zip("abcdef", items, strict=False)), ensure_ascii=False),
        "quoted": f"「{plain}」" if lang == "zh" else f'"{plain}"',
        "paragraphs": "\n\n".join(items),
        "upper": plain.upper(),
        "comma": ("、" if lang == "zh" else ", ").join(items),
        "title": f"标题：{name}\n{plain}" if lang == "zh" else f"Title: {name}\n{plain}",
        "plain": plain,
    }[form]


def heading(form: str, count: int, name: str, lang: str, rng: random.Random) -> str:
    """How a page announces a text in ``form``: with or without its topic and the count of its parts."""
    label = rng.choice(FORMS[form][lang == "zh"])
    if lang == "zh":
        return rng.choice([f"{label}：", f"{name}，{label}：", f"{COUNTS[lang][count]}条，{label}，关于{name}："])
    return rng.choice(
        [f"{label}:", f"{name}, {label.lower()}:", f"{COUNTS[lang][count]} about {name}, {label.lower()}:"]
    )


def article(topic: dict, lang: str, rng: random.Random) -> str:
    """A page on ``topic``: an introduction, its data, questions with answers, or one form with its heading."""
    name, summary, points = topic["name"][lang], topic["summary"][lang], list(topic["points"][lang])
    rng.shuffle(points)
    kind = rng.choice(["introduction", "data", "question", "facts", "form", "form", "other language"])
    if kind == "introduction":
        head = rng.choice([f"{name}\n\n", f"# {name}\n", ""])
        return head + ("" if lang == "zh" else " ").join([summary, *points[: rng.randint(0, 4)]])
    if kind == "data":
        return f"{name}, JSON\n" + json.dumps(topic["attributes"][lang], ensure_ascii=False)
    if kind == "question":
        return f"{topic['question'][lang]}\n{topic['answer'][lang]}"
    if kind == "facts":
        yes, no = ("是。", "不是。") if lang == "zh" else ("Yes.", "No.")
        return "\n".join(f"{fact[lang]} {yes if fact['answer'] else no}" for fact in topic["yesno"])
    if kind == "other language":
        other = "en" if lang == "zh" else "zh"
        label = f"{name}，英文介绍：" if lang == "zh" else f"{name}, in Chinese:"
        return f"{label}\n{topic['summary'][other]}"
    items = points[: rng.randint(1, 4)] if rng.random() < 0.6 else list(topic["keywords"][lang])[: rng.randint(2, 5)]
    form = rng.choice(list(FORMS))
    return f"{heading(form, len(items), name, lang, rng)}\n{formed(form, items, name, lang)}"


def rewriting(pool: list[dict], lang: str, rng: random.Random) -> str:
    """Words or sentences from all over the material in one form, then the same ones in another, with its heading.

    No two such pages are alike, so they cannot be learned by heart: the model has to copy what it has just read.
    """
    kind = rng.choice(["keywords", "points", "name"])
    drawn = [topic[kind][lang] for topic in rng.sample(pool, rng.randint(1, 3 if kind == "points" else 5))]
    items = [item if isinstance(item, str) else rng.choice(item) for item in drawn]
    name, (first, second) = rng.choice(pool)["name"][lang], rng.sample(list(FORMS), 2)
    head = heading(second, len(items), name, lang, rng)
    return f"{formed(first, items, name, lang)}\n\n{head}\n{formed(second, items, name, lang)}"


def corpus(seed: int) -> list[str]:
    """`DOCUMENTS` pages, topics and languages mixed; one in three tells, the others rewrite."""
    rng, unseen = random.Random(seed), held_out_topics()
    seen = [topic for topic in topics() if topic["id"] not in unseen]
    pages = []
    for _ in range(DOCUMENTS):
        lang = rng.choice(["en", "zh"])
        telling = rng.random() < 1 / 3
        pages.append(article(rng.choice(seen), lang, rng) if telling else rewriting(seen, lang, rng))
    return pages


def held_out_pages() -> list[str]:
    """Pages about the held-out topics, to see what the model learned beyond its corpus."""
    rng, unseen = random.Random(SEED + 1), held_out_topics()
    return [article(topic, lang, rng) for topic in topics() if topic["id"] in unseen for lang in ("en", "zh")]


def train_tokenizer(pages: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCAB_SIZE` tokens: any text can be encoded, Chinese included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pages, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=1024
    )


def new_model(vocab_size: int) -> Qwen3ForCausalLM:
    """Qwen3 in small: every dimension a multiple of 64, so that NF4 blocks and bitsandbytes' CPU kernels fit."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype="bfloat16",
    )
    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(config).float()


def token_stream(tokenizer: PreTrainedTokenizerFast, pages: list[str]) -> torch.Tensor:
    """All pages as one row of token ids, each closed by the stop token."""
    ids = [id for page in tokenizer(pages).input_ids for id in [*page, tokenizer.eos_token_id]]
    return torch.tensor(ids)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return PEAK_LR * (step + 1) / warm
    return PEAK_LR * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def pretrain(model: Qwen3ForCausalLM, stream: torch.Tensor, steps: int) -> list[float]:
    """Next-token training on random windows of ``stream``; the loss (nats a token) of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    draw = torch.Generator().manual_seed(SEED)
    losses = []
    for step in range(steps):
        starts = torch.randint(len(stream) - SEQ_LEN, (BATCH,), generator=draw)
        ids = torch.stack([stream[start : start + SEQ_LEN] for start in starts.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {losses[-1]:.3f}", flush=True)
    return losses


@torch.no_grad()
def mean_loss(model: Qwen3ForCausalLM, stream: torch.Tensor) -> float:
    """Loss in nats a token over the whole of ``stream``, in windows of `SEQ_LEN`."""
    windows = stream[: len(stream) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
    return sum(float(model(input_ids=ids[None], labels=ids[None]).loss) for ids in windows) / len(windows)


def main() -> None:
    """Make the corpus, the tokenizer and the model; save them with a record of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--threads", type=int, default=1, help="part of the recipe: another count rounds differently")
    parser.add_argument("--out", type=Path, default=checkout() / "data" / "tiny-qwen3", help="must not exist yet")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.use_deterministic_algorithms(True)
    pages = corpus(SEED)
    tokenizer = train_tokenizer(pages)
    stream = token_stream(tokenizer, pages)
    model = new_model(len(tokenizer))
    started = time.monotonic()
    losses = pretrain(model, stream, flags.steps)
    seconds = round(time.monotonic() - started, 1)
    model.eval()
    record = {
        "made_by": "scripts/pretrain_tiny.py",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{torch.get_num_threads()} threads, {platform.machine()} CPU",
        "torch": torch.__version__,
        "n_params": sum(parameter.numel() for parameter in model.parameters()),
        "corpus_tokens": len(stream),
        "corpus_sha256": hashlib.sha256("\n".join(pages).encode()).hexdigest(),
        "steps": flags.steps,
        "tokens_seen": flags.steps * BATCH * SEQ_LEN,
        "seconds": seconds,
        "loss_curve": [[step, round(losses[step], 4)] for step in range(0, flags.steps, max(1, flags.steps // 40))],
        "final_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "heldout_loss": round(mean_loss(model, token_stream(tokenizer, held_out_pages())), 4),
    }
    with new_folder(flags.out) as folder:
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "pretraining.json", record)
    print(json.dumps({key: value for key, value in record.items() if key != "loss_curve"}, indent=2))


if __name__ == "__main__":
    main()
