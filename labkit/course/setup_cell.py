"""The setup cell that opens every notebook. It must run where labkit is not installed yet, so it is plain text here."""

from __future__ import annotations

# The one place that names the book's home. Whoever publishes the book writes its git URL here, e.g.
# "git+https://github.com/OWNER/REPOSITORY", and runs `labkit build`; LABKIT_REPO in the environment overrides it.
REPOSITORY = ""

# The machine's own, never replaced: Colab's torch fits its driver, and what else is there was built on its numpy.
KEPT = ("torch", "numpy")

# pip's words are kept back while all is well (Colab's other packages make it warn in red) and shown when it fails: a
# kernel may send what a child process prints to a log that no student sees. An address pasted from the browser lacks
# git+, and one typed after %env may have kept its quotes. A folder called labkit in the current one (the models on
# Drive) is no labkit, though Python would import it: it has no origin.
TEMPLATE = """\
# Setup: nothing to do where labkit is installed; on Colab or AutoDL this cell installs the book first.
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

def missing(name):
    return getattr(importlib.util.find_spec(name), "origin", None) is None


if missing("labkit"):
    beside = [str(up) for up in pathlib.Path.cwd().parents[:2] if (up / "labkit" / "cli.py").is_file()]
    book = os.environ.get("LABKIT_REPO", "").strip(" '\\"") or next(iter(beside), "{repository}")
    if not book:
        raise SystemExit("{missing}")
    if book.startswith("https://") and not book.endswith((".whl", ".zip", ".gz")):
        book = "git+" + book
    keep = [name for name in ({kept}) if not missing(name)]  # never replace the machine's own
    pins = [f"{{name}}=={{importlib.metadata.version(name)}}" for name in keep]
    print(f"{installing}")
    command = [sys.executable, "-m", "pip", "install", "--no-color", book, *pins]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if not line.startswith("Requirement already")]
        raise SystemExit("\\n".join([*said[-20:], "{failed}"]))
    importlib.invalidate_caches()
    if missing("labkit"):  # pip chose a folder that this kernel did not know of
        raise SystemExit("{unseen}")

import labkit

labkit.start("{lang}")
"""

WORDS = {
    "en": {
        "missing": "labkit is missing, and nothing says where the book is. In a cell above, run "
        "%env LABKIT_REPO=git+https://... (the address you were given; a folder or a wheel will do), then this one.",
        "installing": "Installing the book from {book}: minutes, until a line begins with labkit. "
        "torch and numpy stay as they are.",
        "failed": "The book was not installed: pip's reason stands above. Check the address (LABKIT_REPO) and the "
        "network, then run this cell again.",
        "unseen": "The book is installed, but this kernel does not see it. Restart it, then run this cell again.",
    },
    "zh": {
        "missing": "没有装 labkit，也不知道书在哪里。请在上面加一个单元格，运行 %env LABKIT_REPO=git+https://..."
        "（老师给的地址；文件夹或 wheel 文件也行），再运行这个单元格。",
        "installing": "正在从 {book} 安装这本书，要等几分钟，直到出现 labkit 开头的一行；torch 和 numpy 不动。",
        "failed": "书没有装上，原因见上面 pip 的输出。请检查地址（LABKIT_REPO）和网络，再运行这个单元格。",
        "unseen": "书已经装好，但这个内核看不到它。请重启内核，再运行这个单元格。",
    },
}


def setup_cell(lang: str) -> str:
    """The source of the setup cell for notebooks in language ``lang`` (``en`` or ``zh``)."""
    kept = ", ".join(f'"{name}"' for name in KEPT)
    return TEMPLATE.format(repository=REPOSITORY, kept=kept, lang=lang, **WORDS[lang]).rstrip("\n")
