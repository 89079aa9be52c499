"""What each route answers, with the real model of the frozen package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_scorer import fake_scorer
from server_scorers import PROBLEM, STEPS, HeldScorer, post, started, wait_until_ready
from starlette.testclient import TestClient

from prm_edge.jobs import Job, score_line
from prm_edge.records import Line
from prm_edge.server import backend as backend_module
from prm_edge.server.backend import Backend
from prm_edge.server.keys import Keys
from prm_edge.server.refusals import STATUSES
from prm_edge_runtime import Scorer
from prm_edge_runtime.calibration import Calibration

OTHER = [["2x = 14", "x = 7"], STEPS]


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer.load(Path(__file__).parent / "packages" / "v1", device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(scorer: Scorer) -> Iterator[TestClient]:
    with started(scorer) as client:
        wait_until_ready(client)
        yield client


def as_scored(scorer: Scorer, data: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What ``prm-edge score`` writes for the same record."""
    raw = json.dumps(data).encode()
    line = Line(number=1, data=raw, n_bytes=len(raw))
    return dict(score_line(Job(scorer=scorer, **options), line).data)


def refused(client: TestClient, path: str, data: Any, status: int = 422) -> str:
    error = post(client, path, data, status)["error"]
    assert STATUSES[error["code"]] == status
    return str(error["message"])


@pytest.mark.parametrize(
    "data",
    [
        {"problem": PROBLEM, "steps": STEPS},
        {"problem": PROBLEM, "steps": []},
        {"problem": PROBLEM, "response": "2x = 6\n\nx = 3"},
        {"problem": PROBLEM, "candidates": OTHER},
    ],
)
def test_score_answers_what_the_command_writes(
    client: TestClient, scorer: Scorer, data: dict[str, Any]
) -> None:
    assert post(client, "/v1/score", data) == as_scored(scorer, data)


def test_score_answers_the_same_where_the_models_thread_encodes(
    client: TestClient, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"problem": PROBLEM, "steps": STEPS}
    monkeypatch.setattr(backend_module, "DIRECT_CHARACTERS", 10)
    assert post(client, "/v1/score", data) == as_scored(scorer, data)
    assert "can score" in refused(client, "/v1/score", {"problem": "1" * 1500, "steps": STEPS})


@pytest.mark.parametrize("by", [None, "mean"])
def test_rank_answers_what_the_command_writes(
    client: TestClient, scorer: Scorer, by: str | None
) -> None:
    data = {"problem": PROBLEM, "candidates": OTHER}
    expected = as_scored(scorer, data, by=by)
    assert post(client, "/v1/rank", {**data, "by": by}) == expected
    assert expected["by"] == by or by is None


def test_answers_have_probabilities_where_the_package_is_calibrated() -> None:
    scorer: Any = fake_scorer()
    fitted = {"cpu-fp32": Calibration(temperature=2.0, unsure=None, fitted={})}
    package = scorer.package
    scorer.package = replace(package, manifest=replace(package.manifest, calibration=fitted))
    data = {"problem": PROBLEM, "steps": ["0.9", "0.2"]}
    backend = Backend(scorer)
    (scored,) = backend.score_many([backend.solution(PROBLEM, ("0.9", "0.2"))])
    assert not isinstance(scored, Exception)
    answer = backend.told(scored[0])
    ranked, _ = backend.rank(PROBLEM, [("0.9", "0.2")], None)
    assert answer == as_scored(scorer, data)
    assert answer["probabilities"] == [0.75, 0.333333]
    assert ranked["candidates"][0]["probabilities"] == answer["probabilities"]


def test_session_gives_the_scores_of_a_whole_solution(client: TestClient, scorer: Scorer) -> None:
    expected = as_scored(scorer, {"problem": PROBLEM, "steps": STEPS})
    opened = post(client, "/v1/sessions", {"problem": PROBLEM}, 201)
    path = f"/v1/sessions/{opened['id']}"
    assert opened["scores"] == []
    assert opened["verdict"] == "unknown"
    peeked = post(client, f"{path}/peek", {"steps": STEPS})
    first = post(client, f"{path}/steps", {"steps": STEPS[:1], "after": 0})
    assert first["added"] == peeked["scores"][:1] == expected["scores"][:1]
    both = post(client, f"{path}/steps", {"steps": STEPS[1:]})
    assert both["scores"] == expected["scores"]
    assert both["added"] == expected["scores"][1:]
    for key in ("verdict", "first_error", "threshold", "n_tokens", "package", "variant"):
        assert both[key] == expected[key], key
    assert client.get(path).json() == {
        key: value if key != "expires_in_s" else 900.0
        for key, value in both.items()
        if key != "added"
    }


def test_session_starts_with_steps_undoes_and_forks(client: TestClient, scorer: Scorer) -> None:
    opened = post(client, "/v1/sessions", {"problem": PROBLEM, "steps": STEPS}, 201)
    path = f"/v1/sessions/{opened['id']}"
    fork = post(client, f"{path}/fork", {}, 201)
    assert fork["id"] != opened["id"]
    assert fork["scores"] == opened["scores"]
    assert post(client, f"{path}/undo", {})["scores"] == opened["scores"][:1]
    assert post(client, f"{path}/undo", {"n": 1.0, "after": 1})["scores"] == []
    assert client.get(f"/v1/sessions/{fork['id']}").json()["scores"] == opened["scores"]
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.delete(path).status_code == 404
    assert post(client, f"/v1/sessions/{fork['id']}/steps", {"steps": ["x = 3"]})


def test_session_takes_all_steps_or_none(client: TestClient) -> None:
    opened = post(client, "/v1/sessions", {"problem": PROBLEM, "steps": STEPS[:1]}, 201)
    path = f"/v1/sessions/{opened['id']}"
    long = ["x = 3", "1 + " * 600]
    assert "beyond the 512" in refused(client, f"{path}/steps", {"steps": long})
    assert client.get(path).json()["scores"] == opened["scores"]
    n_live = len(client.app.state.api.sessions)  # type: ignore[attr-defined]
    assert "beyond the 512" in refused(client, "/v1/sessions", {"problem": "p", "steps": long})
    assert "the problem alone takes" in refused(client, "/v1/sessions", {"problem": "7 " * 900})
    assert len(client.app.state.api.sessions) == n_live  # type: ignore[attr-defined]


def test_session_refuses_what_does_not_fit_its_state(client: TestClient) -> None:
    opened = post(client, "/v1/sessions", {"problem": PROBLEM, "steps": STEPS}, 201)
    path = f"/v1/sessions/{opened['id']}"
    message = refused(client, f"{path}/steps", {"steps": ["x"], "after": 1}, 409)
    assert "the session has 2 steps, not 1; it is as it was" in message
    assert "it is as it was" in refused(client, f"{path}/undo", {"n": 3}, 409)
    assert client.get(path).json()["scores"] == opened["scores"]


@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("/v1/score", {}, "give one of steps, response, candidates beside problem; got none"),
        ("/v1/score", {"problem": "p", "steps": [], "response": "r"}, "got steps and response"),
        ("/v1/score", {"steps": []}, "problem must be a string, got null"),
        ("/v1/score", {"problem": 3, "steps": []}, "problem must be a string, got a number"),
        ("/v1/score", {"problem": "p", "steps": "s"}, "steps must be a list of strings, got a str"),
        ("/v1/score", {"problem": "p", "steps": [1]}, "steps[0] must be a string, got a number"),
        ("/v1/score", {"problem": "p", "steps": ["\ud800"]}, "steps[0]"),
        ("/v1/score", {"problem": "p", "response": ["r"]}, "response must be a string, got a list"),
        ("/v1/score", {"problem": "p", "steps": [], "thresold": 1}, "the key 'thresold' is not"),
        ("/v1/score", {"problem": "p", "steps": [], "by": "min"}, "by orders candidates"),
        ("/v1/rank", {"problem": "p", "candidates": []}, "candidates must be a list of one or"),
        ("/v1/rank", {"problem": "p", "candidates": ["s"]}, "candidates[0] must be a list"),
        ("/v1/rank", {"problem": "p", "candidates": [["s"]], "by": 3}, "by must be the name of"),
        ("/v1/rank", {"problem": "p", "candidates": [["s"]], "by": "best"}, "best"),
        ("/v1/sessions", {"problem": None}, "problem must be a string, got null"),
        ("/v1/sessions/x/steps", {"steps": []}, "steps is empty"),
        ("/v1/sessions/x/steps", {}, "steps must be a list of strings, got null"),
        ("/v1/sessions/x/steps", {"steps": ["s"], "after": -1}, "after must be a whole number"),
        ("/v1/sessions/x/undo", {"n": True}, "n must be a whole number of 0 or more, got true"),
        ("/v1/sessions/x/undo", {"n": 1.5}, "n must be a whole number of 0 or more, got a numb"),
        ("/v1/sessions/x/fork", {"n": 1}, "the key 'n' is not known here; allowed: none"),
    ],
)
def test_bodies_are_refused_with_a_sentence(
    client: TestClient, path: str, data: Any, words: str
) -> None:
    raw = json.dumps(data).encode()
    answer = client.post(path, content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("limits", "data", "words"),
    [
        ({"steps": 2}, {"problem": "p", "steps": ["s"] * 3}, "there are 3 steps; at most 2"),
        ({"steps": 2}, {"problem": "p", "response": "a\n\nb\n\nc"}, "there are 3 steps; at most 2"),
        ({"steps": 2}, {"problem": "p", "candidates": [["s"]] * 3}, "there are 3 steps"),
        ({"candidates": 2}, {"problem": "p", "candidates": [["s"]] * 3}, "there are 3 candidates"),
        ({"request_tokens": 50}, {"problem": "p" * 300, "steps": []}, "about 105 tokens; at most"),
        ({"body_bytes": 100}, {"problem": "p" * 300, "steps": []}, "larger than the 0.0001 MB"),
    ],
)
def test_limits_are_told(limits: dict[str, int], data: Any, words: str) -> None:
    with started(HeldScorer(), limits=limits) as client:
        wait_until_ready(client)
        assert words in refused(client, "/v1/score", data, 413)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[]", "must be a JSON object, got a list"),
        (b"{", "not JSON"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
    ],
)
def test_bodies_that_are_no_json_are_refused(client: TestClient, raw: bytes, words: str) -> None:
    answer = client.post("/v1/score", content=raw, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_json")
    assert words in answer.json()["error"]["message"]


def test_sessions_are_capped_in_number_and_bytes(scorer: Scorer) -> None:
    keys = Keys([("anna", "a" * 20), ("ben", "b" * 20)])
    anna, ben = ({"Authorization": f"Bearer {k * 20}"} for k in "ab")
    problem = {"problem": PROBLEM}
    with started(scorer, limits={"sessions": 4}, keys=keys) as client:
        wait_until_ready(client)
        ids = [post(client, "/v1/sessions", problem, 201, headers=anna)["id"] for _ in range(3)]
        answer = client.post("/v1/sessions", json=problem, headers=anna)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "5"
        assert "you have 3 live sessions" in answer.json()["error"]["message"]
        post(client, "/v1/sessions", problem, 201, headers=ben)
        full = post(client, "/v1/sessions", problem, 429, headers=ben)
        assert "there are 4 live sessions" in full["error"]["message"]
        fork = post(client, f"/v1/sessions/{ids[0]}/fork", {}, 429, headers=anna)
        assert fork["error"]["code"] == "too_many_sessions"
        # a session is its owner's alone, and nobody learns that it is there
        stranger = client.get(f"/v1/sessions/{ids[0]}", headers=ben)
        assert stranger.status_code == 404
        assert client.delete(f"/v1/sessions/{ids[0]}", headers=anna).status_code == 204
        post(client, "/v1/sessions", problem, 201, headers=anna)
    with started(scorer, limits={"session_bytes": 300_000}) as client:
        wait_until_ready(client)
        opened = post(client, "/v1/sessions", problem, 201)
        message = refused(client, "/v1/sessions", {"problem": "7 " * 250}, 429)
        assert "live sessions would hold" in message
        path = f"/v1/sessions/{opened['id']}"
        assert "would hold" in refused(client, f"{path}/steps", {"steps": ["1 + " * 150]}, 429)
        held = client.app.state.api.sessions.n_bytes  # type: ignore[attr-defined]
        assert post(client, f"{path}/steps", {"steps": ["2x = 6"]})["scores"]
        assert held < client.app.state.api.sessions.n_bytes < 300_000  # type: ignore[attr-defined]


def test_sessions_end_when_nobody_uses_them(scorer: Scorer) -> None:
    with started(scorer, limits={"session_idle_s": 0.05}) as client:
        wait_until_ready(client)
        opened = post(client, "/v1/sessions", {"problem": PROBLEM}, 201)
        sessions = client.app.state.api.sessions  # type: ignore[attr-defined]
        while len(sessions):  # the sweep, without any request
            pass
        assert sessions.n_bytes == 0
        message = refused(client, f"/v1/sessions/{opened['id']}/steps", {"steps": ["x"]}, 404)
        assert "one that is not used for 0.05 s ends" in message


def test_session_can_be_used_by_one_request_at_a_time(client: TestClient) -> None:
    opened = post(client, "/v1/sessions", {"problem": PROBLEM}, 201)
    live = client.app.state.api.sessions._live[opened["id"]]  # type: ignore[attr-defined]
    live.busy = True
    message = refused(client, f"/v1/sessions/{opened['id']}/steps", {"steps": ["x"]}, 409)
    assert "another request has this session" in message
    live.busy = False


# --- the prefix cache


def number_of(client: TestClient, metric: str) -> float:
    found = [line for line in client.get("/metrics").text.splitlines() if line.startswith(metric)]
    assert len(found) == 1, (metric, found)
    return float(found[0].removeprefix(metric))


def test_metrics_tell_what_the_prefix_cache_saves() -> None:
    package = Path(__file__).parent / "packages" / "v1"
    data = {"problem": PROBLEM, "steps": STEPS}
    with Scorer.load(package, prefix_cache_mb=1) as cached, started(cached) as client:
        wait_until_ready(client)
        names = ("lookups_total", "hits_total", "saved_tokens_total")
        before = [number_of(client, f"prm_edge_prefix_cache_{name} ") for name in names]
        first = post(client, "/v1/score", data)
        run = number_of(client, "prm_edge_run_tokens_total ")
        assert post(client, "/v1/score", data) == first
        assert number_of(client, "prm_edge_run_tokens_total ") == run  # nothing was run again
        after = [number_of(client, f"prm_edge_prefix_cache_{name} ") for name in names]
        counters = cached.prefix_cache
        assert after == [counters.lookups, counters.hits, counters.tokens_saved]
        assert after[0] == before[0] + 2
        assert after[2] - before[2] >= first["n_tokens"]
        assert number_of(client, "prm_edge_prefix_cache_bytes ") == counters.bytes > 0
        assert number_of(client, "prm_edge_prefix_cache_limit_bytes ") == 1_000_000


def test_metrics_tell_that_there_is_no_prefix_cache(client: TestClient) -> None:
    assert number_of(client, "prm_edge_prefix_cache_limit_bytes ") == 0
    assert number_of(client, "prm_edge_prefix_cache_lookups_total ") == 0
