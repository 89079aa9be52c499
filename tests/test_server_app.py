"""What each route answers, with the real model of the frozen package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_scorer import fake_scorer
from prometheus_client.parser import text_string_to_metric_families
from server_scorers import PROBLEM, STEPS, HeldScorer
from starlette.testclient import TestClient

from prm_edge.jobs import Job, score_line
from prm_edge.records import Line
from prm_edge.server.app import create_app
from prm_edge.server.backend import Backend
from prm_edge.server.guard import without_port
from prm_edge.server.keys import Keys, read_keys
from prm_edge.server.limits import Limits
from prm_edge.server.refusals import STATUSES
from prm_edge_runtime import Scorer
from prm_edge_runtime.calibration import Calibration
from prm_edge_runtime.errors import ConfigError

HOST = "http://localhost"
OTHER = [["2x = 14", "x = 7"], STEPS]


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer.load(Path(__file__).parent / "packages" / "v1", device="cpu") as loaded:
        yield loaded


def started(scorer: Any, **options: Any) -> TestClient:
    limits = Limits(**options.pop("limits", {}))
    return TestClient(create_app(Backend(scorer), limits=limits, **options), base_url=HOST)


@pytest.fixture(scope="module")
def client(scorer: Scorer) -> Iterator[TestClient]:
    with started(scorer) as client:
        wait_until_ready(client)
        yield client


def wait_until_ready(client: TestClient) -> None:
    while client.get("/health").status_code != 200:
        pass


def as_scored(scorer: Scorer, data: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What ``prm-edge score`` writes for the same record."""
    raw = json.dumps(data).encode()
    line = Line(number=1, data=raw, n_bytes=len(raw))
    return dict(score_line(Job(scorer=scorer, **options), line).data)


def post(client: TestClient, path: str, data: Any, status: int = 200, **options: Any) -> Any:
    answer = client.post(path, json=data, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


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
    (told,) = backend.score_many([(PROBLEM, ("0.9", "0.2"))])
    assert not isinstance(told, Exception)
    answer = told[0]
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
    assert post(client, f"{path}/undo", {"n": 1, "after": 1})["scores"] == []
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


# --- who may ask


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "localhost:80:80", "[::1"],
)
def test_guard_refuses_foreign_hosts(client: TestClient, host: str) -> None:
    answer = client.get("/info", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "bad_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765"])
def test_guard_answers_to_its_own_hosts(client: TestClient, host: str) -> None:
    assert client.get("/info", headers={"Host": host}).status_code == 200


def test_guard_reads_a_host_without_its_port() -> None:
    assert without_port(b"Example.COM:80") == b"example.com"
    assert without_port(b"[::1]:80") == b"[::1]"
    assert without_port(b"a:b") == b""


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
@pytest.mark.parametrize("path", ["/v1/score", "/v1/sessions/x/undo", "/v1/sessions/x/fork"])
def test_guard_takes_nothing_but_json(client: TestClient, kind: str | None, path: str) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post(path, content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "bad_content_type")


def test_guard_asks_for_a_key_everywhere_but_health() -> None:
    keys = Keys([("anna", "a" * 20)])
    with started(HeldScorer(), keys=keys) as client:
        wait_until_ready(client)
        for path in ("/", "/info", "/metrics", "/openapi.json", "/v1/sessions/x", "/nowhere"):
            for sent in (None, "Bearer", f"Bearer {'b' * 20}", f"Basic {'a' * 20}", "a" * 20):
                headers = {} if sent is None else {"Authorization": sent}
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get(
                path, headers={"Authorization": f"bearer {'a' * 20}"}
            ).status_code in (
                200,
                404,
            )


def test_guard_names_every_answer_and_keeps_browsers_out(client: TestClient) -> None:
    answer = client.get("/health", headers={"X-Request-ID": "abc.1"})
    assert answer.headers["x-request-id"] == "abc.1"
    for path, sent in (("/", "a b"), ("/nowhere", "x" * 65), ("/metrics", "")):
        answer = client.get(path, headers={"X-Request-ID": sent})
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_guard_says_nothing_of_the_inside_when_something_breaks(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, *arguments: object) -> None:
        raise RuntimeError("/secret/path is broken")

    monkeypatch.setattr(Backend, "score_many", broken)
    with started(scorer) as client:
        wait_until_ready(client)
        answer = client.post("/v1/score", json={"problem": PROBLEM, "steps": STEPS})
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["code"] == "failed"
        assert error["request_id"] == answer.headers["x-request-id"]
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
        monkeypatch.undo()
        assert post(client, "/v1/score", {"problem": PROBLEM, "steps": STEPS})


def test_unknown_paths_and_methods_are_told_as_json(client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("GET", "/v1/score/", 404),
        ("GET", "/v1/score", 405),
        ("POST", "/health", 405),
        ("PATCH", "/v1/sessions/x", 405),
        ("GET", "/v1/sessions/../../etc/passwd", 404),
    ):
        headers = {"Content-Type": "application/json"}
        answer = client.request(method, path, headers=headers, follow_redirects=False)
        assert answer.status_code == status, path
        assert answer.json()["error"]["code"] in ("not_found", "bad_method")
        if status == 405:
            assert answer.headers["allow"]


# --- what the server tells of itself


def test_info_says_what_is_served_and_no_path(client: TestClient, scorer: Scorer) -> None:
    info = client.get("/info").json()
    assert info["package"] == scorer.package.short
    assert info["threshold"] == scorer.threshold
    assert info["limits"]["steps"] == Limits().steps
    assert str(scorer.package.root) not in str(info)
    assert "/" not in str({**info, "version": ""})


def test_metrics_follow_the_naming_rules_and_count(scorer: Scorer) -> None:
    with started(scorer) as client:
        wait_until_ready(client)
        client.post("/v1/score", json={"problem": PROBLEM, "steps": STEPS})
        client.post("/v1/score", json={})
        client.get("/nowhere/1")
        client.get("/nowhere/2")
        opened = post(client, "/v1/sessions", {"problem": PROBLEM}, 201)
        client.get(f"/v1/sessions/{opened['id']}")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.text))
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }

    def requests(route: str, status: str, method: str = "POST") -> float:
        labels = (("method", method), ("route", route), ("status", status))
        return found[("prm_edge_requests_total", *labels)]

    assert requests("/v1/score", "200") == 1
    assert requests("/v1/score", "422") == 1
    assert requests("other", "404", "GET") == 2
    assert requests("/v1/sessions/{id}", "200", "GET") == 1
    assert found["prm_edge_refused_requests_total", ("code", "not_found")] == 2
    with Scorer.load(scorer.package.root) as again:
        n_tokens = again.score(PROBLEM, STEPS).n_tokens
    assert found["prm_edge_scored_tokens_total",] == n_tokens
    assert found["prm_edge_run_tokens_total",] > n_tokens  # the session's problem, too
    assert found["prm_edge_sessions",] == 1
    assert found["prm_edge_session_bytes",] > 0
    assert found["prm_edge_queue_requests",] == found["prm_edge_queue_tokens",] == 0
    units = ("seconds", "bytes", "tokens", "requests", "sessions", "batches", "info")
    for family in families:
        if family.name.startswith("prm_edge"):
            assert re.fullmatch("[a-z_]+", family.name)
            assert family.documentation.endswith(".")
            assert family.name.removesuffix("_created").endswith(units), family.name
            assert (family.type == "counter") == family.samples[0].name.endswith("_total") or (
                family.type in ("histogram", "gauge")
            )


def test_document_says_every_route_and_no_other(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    told = {
        (path, method.upper())
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    }
    real = {
        (route.path, method)
        for route in client.app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
        if route.path not in ("/", "/openapi.json")
    }
    assert told == real
    assert document["components"]["schemas"]["ScoreRequest"]["oneOf"][0]["properties"]["steps"][
        "maxItems"
    ] == (Limits().steps)
    assert set(re.findall(r"#/components/schemas/(\w+)", str(document))) == set(
        document["components"]["schemas"]
    )


def test_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for foreign in ("<script", "http://", "https://", "<link", "<img", "javascript:"):
        assert foreign not in answer.text, foreign
    assert not re.search(r"<[^>]* on\w+=", answer.text)
    assert re.search(r"style-src 'sha256-[\w+/=]+';", answer.headers["content-security-policy"])
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in answer.text


# --- keys


def test_keys_are_found_by_name_and_changed_by_adding(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who\n\nanna {'a' * 16}\nanna {'c' * 16}\nben {'b' * 16}\n")
    keys = read_keys(file)
    assert [keys.owner(letter * 16) for letter in (b"a", b"c", b"b", b"d")] == [
        "anna",
        "anna",
        "ben",
        None,
    ]
    assert "aaaa" not in repr(vars(keys))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("anna", "line 1 of the keys must be NAME KEY"),
        (f"\nan/na {'a' * 16}", "line 2 of the keys must be NAME KEY"),
        ("anna secret", "line 1 of the keys: the key of 'anna' must have 16 to 256 visible ASCII"),
        (f"anna {'a' * 16}\nben {'a' * 16}", "line 2 of the keys: this key is there twice"),
        ("# nothing\n", "there are no keys in"),
    ],
)
def test_keys_are_refused_without_being_shown(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        read_keys(file)
    assert "secret" not in str(error.value).replace("import secrets", "").replace("secrets.", "")
    assert "aaaa" not in str(error.value)


def test_keys_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_keys(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read: it is not UTF-8 text"):
        read_keys(tmp_path / "binary")


def test_keys_are_not_endless(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"a {number:016d}\n" for number in range(1_001)))
    with pytest.raises(ConfigError, match="there are 1001 keys; at most 1000"):
        read_keys(file)
