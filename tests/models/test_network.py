"""The road of a download: AutoDL's file as others have printed it, real requests to a proxy on loopback, and after."""

import contextlib
import os
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest

from labkit.models import network
from labkit.models.network import acceleration, left_set, own_proxies, proxies_for, route
from labkit.models.weights import locate

pytestmark = pytest.mark.usefixtures("machine")

PUBLISHED = """
export no_proxy=localhost,127.0.0.1,modelscope.com,aliyuncs.com,tencentyun.com,wisemodel.cn
export http_proxy=http://172.31.1.128:12798 && export https_proxy=http://172.31.1.128:12798
export REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
echo 设置成功
"""  # as printed by `cat /etc/network_turbo` on a rented machine, in several public notes
PROXY = "http://172.31.1.128:12798"
HUB = "https://huggingface.co/Qwen"


@pytest.fixture
def turbo(monkeypatch, tmp_path):
    """turbo(text) writes AutoDL's file."""
    path = tmp_path / "network_turbo"
    monkeypatch.setattr(network, "TURBO_FILE", path)

    def write(text=PUBLISHED):
        path.write_text(text, encoding="utf-8")

    write()
    return write


def test_the_published_file_is_understood(turbo):
    found = acceleration()
    assert (found["http_proxy"], found["https_proxy"]) == (PROXY, PROXY)
    assert found["no_proxy"].split(",")[:3] == ["localhost", "127.0.0.1", "modelscope.com"]
    assert found["SSL_CERT_FILE"] == found["REQUESTS_CA_BUNDLE"] == "/etc/ssl/certs/ca-certificates.crt"
    assert len(found) == 5


def test_bash_reads_the_same(turbo):
    import subprocess

    command = ["bash", "-c", f"source '{network.TURBO_FILE}' >/dev/null; env"]
    lines = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout.splitlines()
    assert acceleration().items() <= dict(line.split("=", 1) for line in lines).items()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("echo nothing here", {}),
        ("export PATH=/bin\nexport no_proxy=localhost", {}),  # no proxy, nothing to do
        (
            "export https_proxy=\"http://a:1\"; export HTTP_PROXY='http://b:2'",
            {"https_proxy": "http://a:1", "HTTP_PROXY": "http://b:2"},
        ),
        ("# export http_proxy=http://old:1\nexport http_proxy=http://new:1\n", {"http_proxy": "http://new:1"}),
        ("export http_proxy=http://a:1 LD_PRELOAD=/evil.so\nexport LD_PRELOAD=/evil.so", {"http_proxy": "http://a:1"}),
        ("export http_proxy=$(curl -s http://a/proxy)", {}),
        ("export http_proxy=http://$HOST:1", {}),
        ("export http_proxy=`cat /etc/proxy`", {}),
        ("if x; then export http_proxy=http://a:1; else export http_proxy=http://b:1; fi", {}),
    ],
)
def test_a_file_is_read_and_never_run(turbo, text, found):
    turbo(text)
    assert acceleration() == found


def test_bytes_that_are_no_text_do_no_harm(turbo):
    network.TURBO_FILE.write_bytes(b"\xff\xfe\x00export http_proxy=http://a:1\n")
    assert acceleration() == {"http_proxy": "http://a:1"}
    network.TURBO_FILE.unlink()
    network.TURBO_FILE.mkdir()
    assert acceleration() == {}


class Stop(BaseException):
    """Neither an error nor Ctrl-C."""


@pytest.mark.parametrize("ending", [None, OSError, KeyboardInterrupt, SystemExit, Stop])
def test_the_environment_is_as_before_whatever_happens(turbo, monkeypatch, ending):
    monkeypatch.setenv("http_proxy", "")  # set and empty is not the same as unset
    monkeypatch.setenv("SSL_CERT_FILE", "/mine.crt")
    before = dict(os.environ)
    with pytest.raises(ending) if ending else contextlib.nullcontext(), route(HUB):
        inside = dict(os.environ)
        if ending:
            raise ending
    assert dict(os.environ) == before
    assert {name: inside[name] for name in ("http_proxy", "https_proxy")} == dict.fromkeys(
        ("http_proxy", "https_proxy"), PROXY
    )
    assert inside["SSL_CERT_FILE"] == "/mine.crt"


@pytest.mark.parametrize(
    ("url", "far"),
    [
        ("https://huggingface.co", True),
        ("https://cdn.huggingface.co/x", True),
        ("https://raw.githubusercontent.com/x", True),
        ("https://github.com/x", True),
        ("https://hf-mirror.com", False),
        ("https://www.modelscope.cn", False),
        ("https://mirrors.aliyun.com/pypi/simple", False),
        ("https://nothuggingface.co", False),
        ("https://huggingface.co.example.org", False),
        ("no address", False),
    ],
)
def test_only_far_sites_are_accelerated(turbo, url, far):
    assert proxies_for(url) == ({"http": PROXY, "https": PROXY} if far else {})
    with route(url):
        assert os.environ.get("https_proxy") == (PROXY if far else None)


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize("url", [HUB, network.MODELSCOPE])
def test_a_proxy_set_by_hand_is_respected(turbo, monkeypatch, name, url):
    monkeypatch.setenv(name, "http://mine:3128")
    before = dict(os.environ)
    with route(url):
        assert dict(os.environ) == before
    assert (left_set(), own_proxies()) == ([], {name: "http://mine:3128"})


def test_an_acceleration_that_was_left_set_is_seen_used_and_passed_by(turbo, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, PROXY)
    before = dict(os.environ)
    assert (left_set(), own_proxies()) == (["http_proxy", "https_proxy"], {})
    assert (proxies_for(HUB), proxies_for(network.MODELSCOPE)) == ({"http": PROXY, "https": PROXY}, {})
    with route(network.MODELSCOPE):
        assert left_set() == []
    with route(HUB):
        assert dict(os.environ) == before
    assert dict(os.environ) == before


def test_away_from_autodl_nothing_is_touched(monkeypatch):
    monkeypatch.setattr(network, "_set", lambda variables: variables and pytest.fail("changed"))
    with route(HUB), route(network.MODELSCOPE):
        pass
    assert (acceleration(), left_set(), own_proxies()) == ({}, [], {})


# --- real requests ---------------------------------------------------------------------------------------------------


@pytest.fixture
def far_hub(monkeypatch, turbo, hub):
    """The Hub at an address that only AutoDL's proxy can reach."""
    monkeypatch.setattr(network, "FAR", ("hub.invalid",))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid/")  # huggingface_hub was imported long ago
    turbo(f"export http_proxy={hub.url} && export https_proxy={hub.url}\nexport no_proxy=localhost,127.0.0.1")
    return hub


def targets(hub):
    return [path for _, path in hub.seen]


def test_a_whole_download_goes_through_the_proxy_and_nothing_after_it(far_hub, small):
    huggingface_hub.utils.get_session().get(far_hub.url)  # the library has its client already, made without a proxy
    before, far_hub.seen[:] = dict(os.environ), []
    assert locate(small, source="hub").source == "hub"
    assert len(far_hub.seen) > 5
    assert all(path.startswith("http://hub.invalid/") for path in targets(far_hub))
    assert dict(os.environ) == before
    del far_hub.seen[:]
    huggingface_hub.utils.get_session().get(far_hub.url + "/after")
    assert targets(far_hub) == ["/after"]


def test_the_real_hub_is_asked_for_through_the_tunnel(turbo, hub, small):
    turbo(f"export http_proxy={hub.url} && export https_proxy={hub.url}")
    before = dict(os.environ)
    with pytest.raises(Exception, match="could not be fetched"):
        locate(small, source="hub")
    assert set(hub.seen) == {("CONNECT", "huggingface.co:443")}
    assert dict(os.environ) == before


def test_large_files_take_the_same_road(far_hub, tmp_path):
    """The Hub's storage client is written in Rust and looks at the environment by itself."""
    hf_xet = pytest.importorskip("hf_xet")
    session = huggingface_hub.utils._xet.get_xet_session()

    def ask(endpoint):
        del far_hub.seen[:]
        refresh = {"token_refresh_url": endpoint, "token_refresh_headers": {}, "custom_headers": {}}
        token = {"token": "t", "token_expiry_unix_secs": 2**33}
        with (
            pytest.raises(RuntimeError),
            session.new_file_download_group(endpoint=endpoint, **token, **refresh) as group,
        ):
            group.start_download_file(hf_xet.XetFileInfo("a" * 64, 10), str(tmp_path / "file"))
        return targets(far_hub)[0]

    assert ask(far_hub.url).startswith("/v")
    with route("http://hub.invalid"):
        assert ask("http://cas.invalid").startswith("http://cas.invalid/v")
    assert ask(far_hub.url).startswith("/v")


def test_modelscope_is_tried_first_past_the_proxy_and_then_the_hub_through_it(far_hub, small, monkeypatch):
    monkeypatch.setenv("AutoDLContainerUUID", "x")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, far_hub.url)  # left set
    seen, said = [], []

    def snapshot_download(model_id, **options):
        seen.append((model_id, left_set(), len(far_hub.seen)))
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    assert locate(small, say=said.append).source == "hub"
    assert seen == [("Qwen/Qwen3-1.7B-Base", [], 0)]
    assert all(path.startswith("http://hub.invalid/") for path in targets(far_hub))
    assert said == ["modelscope …", "modelscope: the download failed (no route to host)", "hub …"]
    assert left_set() == ["http_proxy", "https_proxy"]
