"""Who may ask, and what the server tells of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_scorers import PROBLEM, STEPS, HeldScorer, post, started, wait_until_ready
from starlette.testclient import TestClient

from prm_edge.server.backend import Backend
from prm_edge.server.guard import without_port
from prm_edge.server.keys import Keys
from prm_edge.server.limits import Limits
from prm_edge_runtime import Scorer


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer.load(Path(__file__).parent / "packages" / "v1", device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(scorer: Scorer) -> Iterator[TestClient]:
    with started(scorer) as client:
        wait_until_ready(client)
        yield client


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
    units += ("lookups", "hits")
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
    told_by = document["components"]["schemas"]["RankRequest"]["properties"]["by"]["enum"]
    assert told_by == [*client.get("/info").json()["aggregates"], None]
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
