"""The Ray Serve example: the answers of ``prm-edge serve``, from replicas: ``make test-ray``."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs ray[serve]")

import ray_cluster
from server_scorers import started, wait_until_ready

from prm_edge_runtime import Scorer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

APP = Path(__file__).parent.parent / "examples" / "ray_serve" / "app.py"
BODIES: tuple[Any, ...] = (
    {"problem": "Solve 2x = 4", "steps": ["x = 2", "done"]},
    {"problem": "Solve 2x = 4", "response": "x = 2\nso"},
    {"problem": "Solve 2x = 4", "candidates": [["x = 1"], ["x = 2"]], "by": "mean"},
    {"problem": "Solve 2x = 4", "steps": "x = 2"},
    {"problem": "Solve 2x = 4", "stepz": ["x = 2"]},
    {"problem": "Solve 2x = 4", "steps": []},
)


def ask(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, sent, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def served() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ray_cluster.started(1, cpus=3) as cluster:
        package = Path(__file__).parent / "packages" / "v1"
        process = subprocess.Popen(
            [sys.executable, str(APP)],
            env={
                **os.environ,
                "RAY_ADDRESS": cluster.address,
                "PRM_EDGE_PACKAGE": str(package),
                "PORT": str(port),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            said = next((line for line in process.stdout if "serving at" in line), None)
            assert said is not None, "the example ended before it served"
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=180)


def without_request_id(answer: Any) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        return {**answer, "error": {**answer["error"], "request_id": None}}
    return answer


def test_serve_answers_as_the_server_does(served: int, tiny_package: Path) -> None:
    assert ask(served, "/health") == (200, {"status": "ready"})
    with Scorer.load(tiny_package, device="cpu") as scorer, started(scorer) as client:
        wait_until_ready(client)
        for body in BODIES:
            expected = client.post("/v1/score", json=body)
            status, answer = ask(served, "/v1/score", body)
            assert status == expected.status_code
            assert without_request_id(answer) == without_request_id(expected.json())
    assert ask(served, "/v1/sessions", {"problem": "p"})[0] == 404


def test_serve_adds_replicas_under_load(served: int) -> None:
    from ray import serve

    over, wrong = threading.Event(), []

    def keep_asking() -> None:
        while not over.is_set():
            status, answer = ask(served, "/v1/score", BODIES[0])
            if status != 200:
                wrong.append((status, answer))

    threads = [threading.Thread(target=keep_asking) for _ in range(32)]
    for thread in threads:
        thread.start()
    try:
        running, limit_s = 0, time.monotonic() + 240
        while running < 2 and time.monotonic() < limit_s:
            time.sleep(1)
            (deployment,) = serve.status().applications["prm-edge"].deployments.values()
            running = deployment.replica_states.get("RUNNING", 0)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert running >= 2
    assert wrong == []
