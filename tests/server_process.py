"""``prm-edge serve`` as a process of its own, for tests that send signals or raw bytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

PROBLEM = "Solve for x: 2x + 4 = 10."
STEPS = ["2x = 6", "x = 3"]


class Server:
    """A server of its own process, on a free port."""

    def __init__(self, package: Path, *arguments: str, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "prm_edge", "serve", "-m", str(package)),
                *("--port", str(port), *arguments),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        first = self.process.stderr.readline()
        found = re.search(r" at http://127.0.0.1:(\d+)$", first.strip())
        assert found, first + self.process.stderr.read()
        self.port = int(found[1])
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        while self.get("/health")[0] != 200:
            time.sleep(0.01)

    def _read(self) -> None:
        assert self.process.stderr
        self.log.extend(self.process.stderr)

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def get(self, path: str) -> tuple[int, Any]:
        with closing(self.connect()) as connection:
            connection.request("GET", path)
            return answer_of(connection)

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        with closing(self.connect()) as connection:
            send(connection, path, data)
            return answer_of(connection)

    def end(self) -> str:
        self._reader.join(30)
        assert self.process.stderr
        self.process.stderr.close()
        return "".join(self.log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self.end()


def send(connection: HTTPConnection, path: str, data: Any) -> None:
    connection.request("POST", path, json.dumps(data), {"Content-Type": "application/json"})


def answer_of(connection: HTTPConnection) -> tuple[int, Any]:
    with closing(connection), connection.getresponse() as told:
        body = told.read()
    return told.status, json.loads(body) if body else None
