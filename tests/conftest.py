"""A real browser for the tests that need one (Debian's Chromium, driven by Playwright, kept away from the network),
bubblewrap for those that re-run student code, and the book's wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    """Chromium; the test is skipped where it or playwright is missing, except in CI."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    missing = "playwright" if sync_playwright is None else "chromium" if CHROMIUM is None else None
    if missing:
        assert not os.environ.get("CI"), f"CI must have {missing}"
        pytest.skip(f"{missing} is not installed (pip install playwright; Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def bubblewrap():
    """For tests that need bubblewrap; they are skipped where it is missing, except in CI."""
    if shutil.which("bwrap") is None:
        assert not os.environ.get("CI"), "CI must have bubblewrap"
        pytest.skip("bubblewrap is not installed (Debian: apt-get install bubblewrap)")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The book as `pip install` takes it, built without a network."""
    folder, root = tmp_path_factory.mktemp("wheel"), Path(__file__).resolve().parents[1]
    build = [sys.executable, "-m", "pip", "wheel", root, "--no-deps", "--no-build-isolation", "-q", "-w", folder]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("labkit-*.whl")
    return path


@pytest.fixture
def visit(browser):
    """visit(url, allowed="") opens a page: errors on its console and requests outside ``allowed`` are kept, and the
    latter are refused."""
    contexts = []

    def open_page(url, *, allowed="", **options):
        context = browser.new_context(viewport={"width": 1000, "height": 900}, **options)
        contexts.append(context)
        seen = SimpleNamespace(page=context.new_page(), errors=[], refused=[])

        def judge(route):
            address = route.request.url
            if address.startswith(("file:", "data:", "blob:")) or (allowed and address.startswith(allowed)):
                route.continue_()
            else:
                seen.refused.append(address)
                route.abort()

        context.route("**/*", judge)
        seen.page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.goto(url)
        return seen

    yield open_page
    for context in contexts:
        context.close()
