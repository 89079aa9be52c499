"""Malformed and hostile requests, as bytes on a socket, the same ones for the same seed.

Run it against a server of your own for as many as you like::

    python tests/hostile_requests.py http://127.0.0.1:8765 10000
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

TIMEOUT_S: Final = 60.0
HANG_UP_S: Final = 1.0  # without an answer: the server waits for what never comes
PATHS: Final = (
    *("/v1/score", "/v1/rank", "/v1/sessions", "/v1/sessions/x", "/v1/sessions/x/steps"),
    *("/v1/sessions/x/peek", "/v1/sessions/x/undo", "/v1/sessions/x/fork"),
    *("/health", "/info", "/metrics", "/openapi.json", "/"),
)
TRICKS: Final = (
    *("/../../etc/passwd", "/v1/../../etc/shadow", "/%2e%2e/%2e%2e/etc/passwd", "//evil.example/"),
    *("/v1/score/../score", "/v1//score", "/v1/score/", "/v1/score%00", "/v1/score%0d%0aX: y"),
    *("/v1/sessions/%2F", "/v1/sessions/..%2f..%2fetc", "/v1/sessions/%ff%fe", "/%c0%af"),
    *("*", "http://evil.example/v1/score", "/?a=" + "b" * 4000, "/" + "a" * 8000, "/\\..\\..\\"),
    *("/v1/sessions/" + "x" * 5000, "/v1/score?steps[]=1&__proto__=2", "/.git/config", "/%"),
)
METHODS: Final = (
    *("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"),
    *("get", "POSTPOST", "A" * 300),
)
TEXTS: Final = (
    *("", " ", "\x00", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "<extra_0>", "<|im_end|>"),
    *("<script>alert(1)</script>", "' OR 1=1 --", "${jndi:ldap://x}", "\n\n", "\r\n", "ки"),
    *("9" * 3000, "x" * 3000, "é" * 1000, "🧮" * 500, "a\u0300" * 500, "1e400", "NaN"),
)
NUMBERS: Final = (
    *("1e400", "-1e400", "9" * 700, "-0", "1e-400", "0.1e1", "NaN", "Infinity", "-Infinity"),
    *("18446744073709551616", "-1", "true", "null", '"3"', "[]", "{}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is sent, in pieces with pauses between; ``kind`` names it.

    ``hangs_up``: the client says that it will send no more, which ends a request that is not whole;
    a server takes it for gone.
    """

    kind: str
    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    hangs_up: bool = False


def http(
    method: str,
    path: str,
    body: bytes = b"",
    headers: tuple[str, ...] = (),
    host: str = "localhost",
) -> bytes:
    """A whole request that asks for the connection to be closed."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body and not any(line.lower().startswith(("content-l", "transfer-")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def posted(path: str, body: bytes, *headers: str) -> bytes:
    return http("POST", path, body, ("Content-Type: application/json", *headers))


def _value(rng: random.Random, depth: int = 0) -> Any:
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(TEXTS),
        lambda: rng.randint(-(10**20), 10**20),
        lambda: rng.random() * 10.0 ** rng.randint(-300, 300),
        lambda: rng.choice([None, True, False]),
        lambda: [_value(rng, depth + 1) for _ in range(rng.randint(0, 4))],
        lambda: {rng.choice(TEXTS): _value(rng, depth + 1) for _ in range(rng.randint(0, 3))},
    )
    return rng.choice(kinds if depth < 4 else kinds[:4])()


def _wrong_types(rng: random.Random) -> Case:
    keys = ["problem", "steps", "response", "candidates", "by", "after", "n", "__proto__", "id"]
    data = {key: _value(rng) for key in rng.sample(keys, rng.randint(0, 4))}
    return Case(kind="types", pieces=(posted(rng.choice(PATHS[:8]), json.dumps(data).encode()),))


def _hostile_text(rng: random.Random) -> Case:
    text = [rng.choice(TEXTS) for _ in range(rng.randint(1, 6))]
    data = {"problem": rng.choice(TEXTS), "steps": text}
    if rng.random() < 0.4:
        data = {"problem": rng.choice(TEXTS), "candidates": [text, text[::-1]]}
    return Case(kind="text", pieces=(posted("/v1/score", json.dumps(data).encode()),))


def _bad_json(rng: random.Random) -> Case:
    depth = rng.choice([10, 1_000, 100_000])
    bodies = (
        b"[" * depth,
        b'{"a":' * depth,
        b'{"problem": "p", "steps": ' + b"[" * depth + b"]" * depth + b"}",
        b'{"problem": "p", "steps": [], "problem": "q"}',
        b'{"problem": "p", "steps": [' + rng.choice(NUMBERS).encode() + b"]}",
        b'{"problem": "p", "steps": ["s"], "n": ' + rng.choice(NUMBERS).encode() + b"}",
        b'{"n": ' + rng.choice(NUMBERS).encode() + b"}",
        b"\xff\xfe{\x00}\x00",
        b'{"problem": "\xff\xc0\xaf", "steps": []}',
        b'\xef\xbb\xbf{"problem": "p", "steps": []}',
        bytes(rng.randrange(256) for _ in range(rng.randint(1, 200))),
        b'{"problem": "p", "steps": ["s"]}'[: rng.randint(1, 31)],
        b'{"problem": "p", "steps": [' + b'"s",' * 5000 + b'"s"]}',
        b'{"problem": "' + b"x" * 2_000_000 + b'", "steps": []}',
    )
    return Case(kind="json", pieces=(posted(rng.choice(PATHS[:8]), rng.choice(bodies)),))


def _method_or_path(rng: random.Random) -> Case:
    method = rng.choice((*METHODS, "POST"))
    path = rng.choice((*PATHS, *TRICKS))
    return Case(kind="path", pieces=(http(method, path, rng.choice([b"", b"{}"])),))


def _headers(rng: random.Random) -> Case:
    body = b'{"problem": "p", "steps": ["s"]}'
    json_type = "Content-Type: application/json"
    sent = rng.choice(
        (
            posted("/v1/score", body, "X-Request-ID: a\x00b"),
            posted("/v1/score", body, "X-Request-ID: " + "a" * 3000),
            posted("/v1/score", body, "Content-Type: text/plain"),
            posted("/v1/score", body, "Authorization: Bearer \xff\xfe"),
            posted("/v1/score", body, "Cookie: " + "a" * 9000),
            posted("/v1/score", body, *(f"X-{n}: {n}" for n in range(150))),
            posted("/v1/score", body, "Content-Length: -1"),
            posted("/v1/score", body, "Content-Length: 99999999999999999999"),
            posted("/v1/score", body, "Content-Length: 5", "Transfer-Encoding: chunked"),
            posted("/v1/score", b"zz\r\nnope\r\n", "Transfer-Encoding: chunked"),
            posted("/v1/score", b"fffffffff\r\n", "Transfer-Encoding: chunked"),
            posted("/v1/score", body, "Expect: 100-continue"),
            posted("/v1/score", body, "Upgrade: websocket", "Connection: upgrade"),
            posted("/v1/score", body, "Content-Encoding: gzip"),
            posted("/v1/score", body, "X-Forwarded-For: 1.2.3.4", "X-HTTP-Method-Override: PUT"),
            http("POST", "/v1/score", body, (json_type + "; charset=utf-16",)),
            http("POST", "/v1/score", body, (json_type,), host="evil.example"),
            http("POST", "/v1/score", body, (json_type,), host="localhost@evil.example"),
            http("POST", "/v1/score", body, (json_type, "Host: evil.example")),
            http("POST", "/v1/score", body, ("Content-Type: multipart/form-data; boundary=x",)),
        )
    )
    return Case(kind="headers", pieces=(sent,))


def _no_http(rng: random.Random) -> Case:
    sent = rng.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"\r\n" * 50,
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : localhost\r\n x: folded\r\n\r\n",
            bytes(rng.randrange(256) for _ in range(rng.randint(1, 400))),
        )
    )
    return Case(kind="bytes", pieces=(sent,), pause_s=0.01, hangs_up=True)


def _slow_or_short(rng: random.Random) -> Case:
    whole = posted("/v1/score", b'{"problem": "p", "steps": ["s"]}')
    cut = rng.randint(1, len(whole) - 1)
    pieces = (whole[:cut], whole[cut:]) if rng.random() < 0.5 else (whole[:cut],)
    return Case(kind="slow", pieces=pieces, pause_s=0.01, hangs_up=len(pieces) == 1)


def _pipelined(rng: random.Random) -> Case:
    body = b'{"problem": "p", "steps": ["s"]}'
    one = (
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body
    return Case(kind="pipelined", pieces=(one * rng.randint(2, 5) + http("GET", "/info"),))


MAKERS: Final = (
    *(_wrong_types, _hostile_text, _bad_json, _bad_json, _method_or_path, _method_or_path),
    *(_headers, _no_http, _slow_or_short, _pipelined),
)


def cases(count: int, seed: int = 0) -> list[Case]:
    """So many cases, each from its own number."""
    return [
        MAKERS[number % len(MAKERS)](random.Random(f"{seed}/{number}")) for number in range(count)
    ]


def send(case: Case, port: int) -> list[bytes]:
    """Send a case; return every answer on the connection, which must end by itself."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        # a server that has seen enough may close before everything is sent
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in case.pieces:
                connection.sendall(piece)
                time.sleep(case.pause_s)
        with suppress(OSError):
            connection.settimeout(HANG_UP_S)
            if not case.hangs_up:
                received = connection.recv(65536)
        connection.settimeout(TIMEOUT_S)
        if not received:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
    return [b"HTTP/1.1 " + answer for answer in received.split(b"HTTP/1.1 ")[1:]]


def wrong_with(answer: bytes) -> str | None:
    """What no answer may be: a failure of the server, or one that tells of its inside."""
    status = answer[9:12]
    if not status.isdigit() or status.startswith(b"5"):
        return f"status {status!r}"
    for inside in (b"Traceback", b'File "', b"site-packages", b"/prm_edge/", b"onnx"):
        if inside in answer:
            return f"it holds {inside!r}"
    return None


def main() -> None:
    """Send as many as asked for, and say what came back."""
    port, count = int(sys.argv[1].rpartition(":")[2].strip("/")), int(sys.argv[2])
    statuses: Counter[str] = Counter()
    slowest_s, wrong = 0.0, 0
    for number, case in enumerate(cases(count)):
        start_s = time.monotonic()
        answers = send(case, port)
        slowest_s = max(slowest_s, time.monotonic() - start_s)
        statuses.update(answer[9:12].decode() for answer in answers)
        statuses["closed without an answer"] += not answers
        for answer in answers:
            if (what := wrong_with(answer)) is not None:
                wrong += 1
                print(f"case {number} ({case.kind}): {what}: {answer[:300]!r}")
    print(f"{count} cases, {wrong} wrong, slowest {slowest_s:.2f} s")
    print(", ".join(f"{status}: {n}" for status, n in sorted(statuses.items())))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
