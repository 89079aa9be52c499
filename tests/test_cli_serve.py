"""``prm-edge serve`` as a process: signals, kills, sockets; and what it refuses to do."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from score_command import assert_one_sentence, posix
from server_process import PROBLEM, STEPS, Server, answer_of, send

from prm_edge.cli import cli
from prm_edge.server import run
from prm_edge_runtime import Scorer
from prm_edge_runtime.errors import ConfigError


@pytest.fixture
def server(tiny_package: Path) -> Iterator[Server]:
    started = Server(tiny_package)
    yield started
    if started.process.poll() is None:
        started.kill()


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_everything_it_accepted_before_it_ends(
    server: Server, tiny_package: Path, number: int
) -> None:
    # as much as there can be in flight: each on a connection of its own
    problems = [f"Solve for x: {n}x + 4 = 10." for n in range(120)]
    connections = [server.connect() for _ in problems]
    for connection, problem in zip(connections, problems, strict=True):
        send(connection, "/v1/score", {"problem": problem, "steps": STEPS * 6})
    for _ in range(3):
        server.get("/health")  # round trips: what was sent before them is accepted
    server.process.send_signal(number)
    answers = [answer_of(connection) for connection in connections]
    assert server.process.wait(60) == 0
    log = server.end()
    with Scorer.load(tiny_package) as scorer:
        for problem, (status, answer) in zip(problems, answers, strict=True):
            assert status == 200
            expected = scorer.score(problem, STEPS * 6).scores
            assert answer["scores"] == pytest.approx(expected, abs=1e-6)
    assert "Traceback" not in log
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


@posix
def test_serve_starts_again_after_a_kill(server: Server, tiny_package: Path) -> None:
    data = {"problem": PROBLEM, "steps": STEPS}
    before = server.post("/v1/score", data)
    _, session = server.post("/v1/sessions", {"problem": PROBLEM})
    with ThreadPoolExecutor(8) as pool:
        flood = [pool.submit(server.post, "/v1/score", data) for _ in range(40)]
        server.process.kill()
        for one in flood:
            # answered in full, or a connection that breaks: never half an answer
            if one.exception() is None:
                assert one.result() == before
    server.process.wait(30)
    server.end()
    again = Server(tiny_package, port=server.port)
    try:
        assert again.post("/v1/score", data) == before
        status, told = again.post(f"/v1/sessions/{session['id']}/steps", {"steps": STEPS})
        assert (status, told["error"]["code"]) == (404, "no_session")
    finally:
        again.kill()


def test_serve_gives_every_client_its_ownanswer(server: Server, tiny_package: Path) -> None:
    def ask(n: int) -> tuple[int, Any]:
        return server.post("/v1/score", {"problem": f"{n} + {n} = ?", "steps": [f"{n + n}"]})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    with Scorer.load(tiny_package) as scorer:
        expected = scorer.score_many((f"{n} + {n} = ?", [f"{n + n}"]) for n in range(200))
    assert [status for status, _ in answers] == [200] * 200
    for (_, answer), one in zip(answers, expected, strict=True):
        assert answer["scores"] == pytest.approx(one.scores, abs=1e-6)


def test_serve_reads_requests_strictly_and_never_hangs(server: Server) -> None:
    body = b'{"problem": "1 + 1", "steps": ["2"]}'
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    post = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    close = b"Connection: close\r\n\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n"
    cases: dict[bytes, list[int]] = {
        post + length + b"Content-Length: 3\r\n\r\n" + body: [400],
        post + length + chunked + b"\r\n0\r\n\r\n": [400],
        post + chunked + b"\r\nzz\r\n": [400],
        post + chunked + close + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n": [200],
        post + b"Content-Length: 99999999\r\n\r\n{": [413],
        get + b"X: a\r\n b\r\n" + close: [400],
        get + b"X: a\0b\r\n" + close: [400],
        get + b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n": [200],
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n": [400],
        b"CONNECT a:80 HTTP/1.1\r\n\r\n": [400],
        b"\x16\x03\x01\x02\x00\x01\x00": [400],  # TLS
        (post + length + b"\r\n" + body) * 3 + get + close: [200] * 4,
        # the body of a refused request is not taken for the next one
        post.replace(b"application/json", b"text/plain") + length + b"\r\n" + body + get + close: [
            415,
            200,
        ],
    }
    for sent, statuses in cases.items():
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(sent)
            got = b""
            while chunk := connection.recv(65_536):
                got += chunk
        assert [int(s) for s in re.findall(rb"HTTP/1\.1 (\d+)", got)] == statuses, sent


def test_serve_ends_when_the_self_test_fails(tiny_package: Path, tmp_path: Path) -> None:
    import hashlib
    import shutil

    package = tmp_path / "wrong"
    shutil.copytree(tiny_package, package)
    tests = json.loads((package / "selftest.json").read_text())
    tests["cases"][0]["scores"][0] = 0.999
    raw = json.dumps(tests).encode()
    (package / "selftest.json").write_bytes(raw)
    manifest = json.loads((package / "prm_edge.json").read_text())
    manifest["files"]["selftest.json"] = {
        "size": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    (package / "prm_edge.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-m", "prm_edge", "serve", "-m", str(package), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert_one_sentence(done.stderr.splitlines(True)[-1], "does not reproduce the model")
    assert "Traceback" not in done.stderr


# --- what it refuses to do


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], r"0\.0\.0\.0 can be reached from other machines"),
        (["--host", "::"], ":: can be reached from other machines"),
        (["--host", "example.org"], "example.org can be reached from other machines"),
        (["--allow-host", "https://a"], "an allowed host must be a name or an address"),
        (["--allow-host", "a:80"], "an allowed host must be a name or an address"),
        (["--allow-host", "*"], "an allowed host must be a name or an address"),
        (["--keys", "nowhere"], "the keys in 'nowhere' cannot be read"),
        (["-m", "nowhere", "--port", "0"], "nowhere"),
    ],
)
def test_serve_refuses_wrong_usage(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(cli, ["serve", *arguments])
    assert done.exit_code == 2
    assert_one_sentence(done.stderr, words)


def test_serve_says_when_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = CliRunner().invoke(cli, ["serve", "--port", str(taken.getsockname()[1])])
    assert done.exit_code == 1
    assert "in use" in done.stderr


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client", "httptools"])
def test_serve_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = builtins.__import__

    def missing(module: str, *arguments: Any, **more: Any) -> Any:
        if module == name or module.startswith(f"{name}."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(module, *arguments, **more)

    anew = ("prm_edge.server.", "uvicorn.protocols.http.httptools_impl")
    for module in [m for m in sys.modules if m.startswith(anew)]:
        monkeypatch.delitem(sys.modules, module)
    import prm_edge.server

    monkeypatch.delattr(prm_edge.server, "run", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    done = CliRunner().invoke(cli, ["serve"])
    assert done.exit_code == 1
    assert_one_sentence(done.stderr, rf"needs {name}, .* pip install 'prm-edge\[serve\]'")


def test_serve_may_listen_beyond_this_machine_when_told() -> None:
    run.check_exposure("0.0.0.0", has_keys=True, anyone=False)
    run.check_exposure("0.0.0.0", has_keys=False, anyone=True)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        run.check_exposure(host, has_keys=False, anyone=False)
    with pytest.raises(ConfigError, match="give --keys FILE, or --anyone"):
        run.check_exposure("192.168.0.3", has_keys=False, anyone=False)


def test_serve_answers_to_its_own_address_and_those_allowed() -> None:
    own = ("localhost", "127.0.0.1", "[::1]")
    assert run.allowed_hosts("127.0.0.1", []) == own
    assert run.allowed_hosts("10.0.0.7", ["tutor.example"]) == (*own, "10.0.0.7", "tutor.example")
    assert run.allowed_hosts("fe80::1", ["[::2]"]) == (*own, "[fe80::1]", "[::2]")


def test_serve_tells_where_it_listens() -> None:
    with run.open_socket("127.0.0.1", 0) as listening:
        assert run.url(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}"
    if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
        with run.open_socket("::1", 0) as listening:
            assert run.url(listening).startswith("http://[::1]:")
