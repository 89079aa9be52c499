"""The tutor's own server: its pages, its two ways to a model, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from chromium import ROOT, tutor
from server_scorers import HOST, HeldScorer, post, started, wait_until_ready
from starlette.testclient import TestClient

from prm_edge.server.limits import Limits
from prm_edge.server.run import open_socket
from prm_edge_runtime.errors import ConfigError

sys.path.insert(0, str(ROOT / "examples" / "tutor"))
import forward
import pages

FILES = sorted((ROOT / "examples" / "tutor" / "static").iterdir())
HOSTS = ("localhost",)


class Upstream(HTTPServer):
    """Answers whatever it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: tuple[int, bytes, dict[str, str]] = (200, b"{}", {})


class Handler(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_GET  # noqa: N815 - their names are http.server's

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        status, data, headers = self.server.answers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        return None


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(30)


def client(server: str, key_file: Path | None = None) -> TestClient:
    asked = forward.Upstream.read(server, key_file)
    app = forward.forwarding_app(asked, pages.page_routes(), hosts=HOSTS, limits=Limits())
    return TestClient(app, base_url=HOST)


def at(server: Upstream) -> str:
    return f"http://127.0.0.1:{server.server_port}"


# --- the pages


def test_tutor_pages_are_all_there_and_name_nothing_from_elsewhere() -> None:
    paths = {route.path for route in pages.page_routes()}
    assert {"/", "/tutor.js", "/tutor.css", "/icon.svg"} <= paths
    assert len(paths) == len(FILES)
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(https?:)?//(?!www\.w3\.org/2000/svg)[a-z]", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval", text)
        for name in re.findall(r'(?:from|href=|src=)\s*"\.?/?([\w-]+\.\w+)"', text):
            assert f"/{name}" in paths, (file.name, name)


def test_tutor_pages_come_before_the_servers_own_and_behind_its_guard() -> None:
    with started(HeldScorer(), pages=pages.page_routes()) as own:
        wait_until_ready(own)
        page = own.get("/")
        assert "<title>Line by line</title>" in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert own.get("/tutor.js").headers["content-type"].startswith("text/javascript")
        assert own.get("/", headers={"Host": "evil.example"}).status_code == 421
        scored = post(own, "/v1/score", {"problem": "p", "steps": ["0.25"]})
        assert scored["scores"] == [0.25]


# --- handing on


def test_tutor_hands_requests_on_with_the_key_and_answers_back(
    upstream: Upstream, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("a-key-of-sixteen-or-more\n")
    with client(at(upstream), tmp_path / "key") as asking:
        headers = {"Content-Type": "application/json", "Retry-After": "7", "X-Other": "1"}
        upstream.answers = (429, b'{"error":1}', headers)
        path = "/v1/sessions/abc-_1/steps"
        told = asking.post(path, json={"steps": ["x"]}, headers={"X-Request-ID": "mine"})
        assert (told.status_code, told.json()) == (429, {"error": 1})
        assert told.headers["retry-after"] == "7"
        assert "x-other" not in told.headers
        method, asked, headers, body = upstream.asked[-1]
        assert (method, asked, body) == ("POST", path, b'{"steps":["x"]}')
        assert headers["Authorization"] == "Bearer a-key-of-sixteen-or-more"
        assert headers["Content-Type"] == "application/json"
        assert headers["X-Request-ID"] == "mine"
        upstream.answers = (204, b"", {})
        assert asking.delete("/v1/sessions/abc").status_code == 204
        assert asking.get("/").text.startswith("<!doctype html>")


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/a/b/c/d", "/v1/a%2F..%2F..%2Fmetrics", "/v1/a?b", "/v1/ü"]
)
def test_tutor_hands_on_nothing_but_what_its_pages_ask(upstream: Upstream, path: str) -> None:
    with client(at(upstream)) as asking:
        told = asking.get(path)
    paths = [one[1] for one in upstream.asked]
    assert paths in ([], ["/v1/a"])  # a query is dropped
    assert told.status_code == (200 if paths else 404)


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/v2"])
def test_tutor_hides_the_rest_of_the_server(upstream: Upstream, path: str) -> None:
    with client(at(upstream)) as asking:
        assert asking.get(path).status_code == 404
    assert upstream.asked == []


def test_tutor_guards_what_it_hands_on(upstream: Upstream) -> None:
    with client(at(upstream)) as asking:
        assert asking.get("/info", headers={"Host": "evil.example"}).status_code == 421
        assert asking.post("/v1/rank", content=b"{}").status_code == 415
        assert asking.post("/v1/rank", json={"a": "b" * 2_000_000}).status_code == 413
    assert upstream.asked == []


def test_tutor_says_when_the_server_does_not_answer() -> None:
    with open_socket("127.0.0.1", 0) as taken:  # nobody listens there afterwards
        port = taken.getsockname()[1]
    with client(f"http://127.0.0.1:{port}") as asking:
        told = asking.post("/v1/rank", json={})
    assert (told.status_code, told.json()["error"]["code"]) == (503, "not_ready")
    assert "the server that scores does not answer" in told.json()["error"]["message"]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8765", "ftp://a", "http://", "http://a/b", "http://a:b", "http://[::1"]
)
def test_tutor_refuses_what_is_no_server(url: str) -> None:
    with pytest.raises(ConfigError, match="--server must be the address of a prm-edge serve"):
        forward.Upstream.read(url, None)


def test_tutor_refuses_a_key_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the key in .* cannot be read"):
        forward.Upstream.read("http://a", tmp_path / "nowhere")
    for text in ("", "two words", "one\ntwo"):
        (tmp_path / "key").write_text(text)
        with pytest.raises(ConfigError, match="must hold one key and nothing else"):
            forward.Upstream.read("http://a", tmp_path / "key")


def test_tutor_tells_where_its_server_is() -> None:
    for url in ("http://127.0.0.1:8765", "https://tutor.example", "http://[::1]:80"):
        assert forward.Upstream.read(url + "/", None).url == url


# --- one command


def test_tutor_starts_with_one_command(tiny_package: Path) -> None:
    process = tutor("-m", str(tiny_package))
    try:
        process.wait_until_ready()
        assert process.said[0].startswith("tutor: open http://127.0.0.1:")
        assert "lines are scored here, by " in "".join(process.said)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "nowhere"], "tutor: --server must be the address"),
        (["--host", "0.0.0.0"], r"tutor: 0\.0\.0\.0 can be reached from other machines"),
        (["-m", "nowhere", "--port", "0"], "tutor: .*nowhere"),
    ],
)
def test_tutor_refuses_wrong_usage_in_one_sentence(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "tutor"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(words, done.stderr)
    assert "Traceback" not in done.stderr
