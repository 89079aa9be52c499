"""A real browser for tests: Chromium through Playwright, and processes that serve it pages.

Playwright's own download of a browser is not used: ``PRM_EDGE_CHROMIUM``, or one on the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
AXE = ROOT / "examples" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
WAIT_MS = 20_000


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    named = os.environ.get("PRM_EDGE_CHROMIUM")
    path = named or next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium: install one, or set PRM_EDGE_CHROMIUM")
    # its sandbox refuses to run as root, as in a container
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with a page as it is now."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: npm ci in examples/browser (make test-browser)")
    # page.evaluate runs in the page whatever its Content-Security-Policy says of scripts
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "async (values) => (await axe.run({ runOnly: { type: 'tag', values } })).violations",
        list(RULES),
    )
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found]


class Process:
    """A server of its own process, whose first lines name its address."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout
        first = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", first)
        assert found, first + self.process.stdout.read()
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.said = [first]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.said.extend(self.process.stdout)

    def wait_until_ready(self) -> None:
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise AssertionError("".join(self.said))

    def kill(self) -> None:
        """As kill -9 does: no goodbye."""
        self.process.kill()
        self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout
        self.process.stdout.close()


def tutor(*arguments: str, port: int = 0) -> Process:
    """The tutor: ``python examples/tutor``."""
    return Process(str(ROOT / "examples" / "tutor"), "--port", str(port), *arguments)


def serve(*arguments: str, port: int = 0) -> Process:
    """``prm-edge serve``."""
    return Process("-m", "prm_edge", "serve", "--threads", "1", "--port", str(port), *arguments)
