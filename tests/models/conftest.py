"""What the tests of weights and of downloads share: a small model as a repository holds it, a plain machine, a Hub."""

import json
import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest

from labkit.models import network, places
from labkit.models.profiles import PROFILES


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A small sharded Qwen3 as a repository holds it, saved by transformers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("published")
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    vocabulary = {"<|endoftext|>": 0, "<|im_end|>": 1, "a": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A plain local machine with an empty cache, no proxy and no AutoDL."""
    for name in list(os.environ):
        if name.startswith(("AutoDL", "COLAB_", "LABKIT_", "HF_ENDPOINT")) or name.lower() in network.CARRIED:
            monkeypatch.delenv(name)
    monkeypatch.setattr(places, "AUTODL_DISK", tmp_path / "no-such-disk")
    monkeypatch.setattr(network, "TURBO_FILE", tmp_path / "no-such-file")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(published):
    """The gpu profile with a model of a few kB, so that the tests need no room for the real one."""
    return replace(PROFILES["gpu"], model=str(published))


COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as a download asks for, served to who comes directly and to who comes as to a proxy.

    The server has ``folder`` (what the repository holds), ``seen`` (method and target of each request as they came)
    and ``cut`` (a file of this name breaks off in the middle, and is gone when asked for the rest).
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.command, self.path))
        path = urlsplit(self.path).path
        names = [file.name for file in self.server.folder.iterdir()]
        if "/tree/" in path:
            sizes = {name: (self.server.folder / name).stat().st_size for name in names}
            self.answer(json.dumps([{"type": "file", "path": n, "size": sizes[n], "oid": n} for n in names]))
        elif path.startswith("/api/models/"):
            self.answer(json.dumps({"id": "x/y", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}))
        elif "/resolve/" in path and path.rsplit("/", 1)[-1] in names:
            self.send_file(self.server.folder / path.rsplit("/", 1)[-1])
        else:
            self.answer("", status=404)

    def do_HEAD(self):
        self.do_GET()

    def do_CONNECT(self):
        self.server.seen.append((self.command, self.path))
        self.answer("", status=502)

    def send_file(self, file):
        content = file.read_bytes()
        if file.name == self.server.cut and "Range" in self.headers:
            return self.answer("", status=404)
        marks = {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}
        cut = len(content) // 2 if file.name == self.server.cut and self.command == "GET" else None
        self.answer(content, marks=marks, upto=cut)

    def answer(self, content, *, status=200, marks=None, upto=None):
        content = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(marks or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:upto])
        self.close_connection = upto is not None or status == 502

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch, machine, published):
    """A Hub on loopback that is a proxy as well; its address is ``url``. The client's own offline switch is off."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.folder, server.seen, server.cut = published, [], None
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()
