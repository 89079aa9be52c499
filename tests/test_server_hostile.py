"""Hostile requests to a real server: no 5xx, no hang, nothing told of its inside.

``PRM_EDGE_HOSTILE_REQUESTS`` sends more of them.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from hostile_requests import cases, send, wrong_with
from server_process import PROBLEM, STEPS, Server

COUNT = int(os.environ.get("PRM_EDGE_HOSTILE_REQUESTS", "300"))


def test_server_stands_hostile_requests(tiny_package: Path) -> None:
    server = Server(tiny_package)
    try:
        before = server.post("/v1/score", {"problem": PROBLEM, "steps": STEPS})
        statuses: Counter[bytes] = Counter()
        for number, case in enumerate(cases(COUNT)):
            start_s = time.monotonic()
            for answer in send(case, server.port):
                assert wrong_with(answer) is None, (number, case.kind, answer)
                statuses[answer[9:12]] += 1
            assert time.monotonic() - start_s < 30, (number, case.kind)
        assert server.post("/v1/score", {"problem": PROBLEM, "steps": STEPS}) == before
        assert server.process.poll() is None
    finally:
        server.kill()
    log = "".join(server.log)
    assert "Traceback" not in log
    assert '"failed"' not in log
    # they were not all turned away at the door, and most were answered
    assert statuses.total() > COUNT // 2
    assert {b"200", b"400", b"404", b"405", b"413", b"415", b"421", b"422"} <= set(statuses)
