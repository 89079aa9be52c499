"""The OpenAPI 3.1 document. Hand-written: it is what clients are promised, not what code does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from prm_edge_runtime.version import __version__

from .limits import Limits
from .refusals import STATUSES

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
SCORE: Final[Schema] = {"type": ["number", "null"], "description": "null: no score; see status"}
KIND: Final[Schema] = {
    "type": ["string", "null"],
    "description": "what the error looks like, null where the step does not count as one; /info "
    "has the names in words",
}
INDEX: Final[Schema] = {"type": ["integer", "null"], "minimum": 0}
VERDICT: Final[Schema] = {"enum": ["sound", "flawed", "unknown"]}
DESCRIPTION: Final = (
    "Scores every step of worked solutions with a process reward model. A request waits in a fair, "
    "bounded queue; 429 with Retry-After says that it was not run. POST needs "
    "Content-Type: application/json. Every answer has an X-Request-ID."
)
EXAMPLE: Final = {"problem": "Solve for x: 2x + 4 = 10.", "steps": ["2x = 6", "x = 3"]}


def _object(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _result(**properties: Schema) -> Schema:
    # a later version may say more
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _some(of: Schema, **properties: Schema) -> Schema:
    # with properties that need not be there
    return {**of, "properties": {**of["properties"], **properties}}


def _list(of: Schema, most: int | None = None, least: int = 0) -> Schema:
    limits = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": of, **limits, **({"minItems": least} if least else {})}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def schemas(limits: Limits, aggregates: Sequence[str]) -> dict[str, Schema]:
    """What bodies hold; ``aggregates`` are those of the package."""
    steps = _list(TEXT, limits.steps)
    some_steps = _list(TEXT, limits.steps, 1)
    candidates = _list(steps, limits.candidates, 1)
    after = {**COUNT, "description": "refuse (409) unless so many steps were taken before"}
    about = {"package": TEXT, "variant": TEXT}
    scored = {
        "scores": _list(SCORE),
        "verdict": VERDICT,
        "first_error": INDEX,
        "aggregate": {"type": "object", "additionalProperties": SCORE},
        "status": _list(TEXT),
        "n_tokens": COUNT,
    }
    # of recipes, of calibrated packages, and of packages that name errors
    named = {"error_kinds": _list(KIND)}
    extra = {"redundancy": _list(SCORE), "probabilities": _list(SCORE), **named}
    session = {
        "id": TEXT,
        "scores": _list(NUMBER),
        "verdict": VERDICT,
        "first_error": INDEX,
        "threshold": NUMBER,
        "n_tokens": COUNT,
        "incremental": {"type": "boolean"},
        "expires_in_s": NUMBER,
        **about,
    }
    error = _result(code={"enum": sorted(STATUSES)}, message=TEXT, request_id=TEXT)
    by = {
        "enum": [*aggregates, None],
        "description": "aggregate that orders them; null or left out: the package's own",
    }
    return {
        "ScoreRequest": {
            "oneOf": [
                _object(("problem", "steps"), problem=TEXT, steps=steps),
                _object(("problem", "response"), problem=TEXT, response=TEXT),
                _object(("problem", "candidates"), problem=TEXT, candidates=candidates, by=by),
            ],
            "example": EXAMPLE,
        },
        "RankRequest": _object(
            ("problem", "candidates"), problem=TEXT, candidates=candidates, by=by
        ),
        "SessionRequest": _object(("problem",), problem=TEXT, steps=steps),
        "StepsRequest": _object(("steps",), steps=some_steps, after=after),
        "UndoRequest": _object((), n={**COUNT, "default": 1}, after=after),
        "Nothing": _object(()),
        "Scores": _some(_result(**scored, threshold=NUMBER, **about), **extra),
        "Ranking": _result(
            candidates=_list(_some(_result(**scored), **extra)),
            order=_list(COUNT),
            best=INDEX,
            best_sound=INDEX,
            by=TEXT,
            threshold=NUMBER,
            **about,
        ),
        "Session": _some(_result(**session), **named),
        "Added": _some(_result(**session, added=_list(NUMBER)), **named),
        "Peeked": _some(_result(scores=_list(NUMBER), **about), **named),
        "Health": _result(status={"enum": ["starting", "ready", "failed", "stopping"]}),
        "Info": {"type": "object"},
        "Error": _result(error=error),
    }


def document(limits: Limits, aggregates: Sequence[str]) -> dict[str, Any]:
    """The whole document."""
    session_id = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {**TEXT, "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    }

    def under(path: str, operations: dict[str, Any]) -> dict[str, Any]:
        return {"parameters": [session_id], **operations} if "{id}" in path else operations

    scored: Schema = {"oneOf": [_ref("Scores"), _ref("Ranking")]}
    paths = {
        "/v1/score": {
            "post": _post(
                "score",
                "Score a solution, a response or candidates",
                "ScoreRequest",
                scored,
            )
        },
        "/v1/rank": {"post": _post("rank", "Compare candidates", "RankRequest", _ref("Ranking"))},
        "/v1/sessions": {
            "post": _post(
                "openSession",
                "Start a solution that grows",
                "SessionRequest",
                _ref("Session"),
                status="201",
            )
        },
        "/v1/sessions/{id}": {
            "get": _get("session", "Where a session stands", _ref("Session"), missing=True),
            "delete": {
                "operationId": "endSession",
                "summary": "End a session",
                "responses": {"204": {"description": "ended"}, **_errors(404, 409)},
            },
        },
        "/v1/sessions/{id}/steps": {
            "post": _post(
                "addSteps", "Take steps, all of them or none", "StepsRequest", _ref("Added")
            )
        },
        "/v1/sessions/{id}/peek": {
            "post": _post(
                "peek", "Score alternatives for the next step", "StepsRequest", _ref("Peeked")
            )
        },
        "/v1/sessions/{id}/undo": {
            "post": _post(
                "undo", "Take steps back", "UndoRequest", _ref("Session"), needs_body=False
            )
        },
        "/v1/sessions/{id}/fork": {
            "post": _post(
                "fork",
                "Go on from here twice",
                "Nothing",
                _ref("Session"),
                status="201",
                needs_body=False,
            )
        },
        "/health": {
            "get": _get("health", "200 once the self-test has passed", _ref("Health"), ready=True)
        },
        "/info": {"get": _get("info", "The package, and what is taken on", _ref("Info"))},
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Counts, for Prometheus",
                "responses": {
                    "200": {"description": "counts", "content": {"text/plain": {"schema": TEXT}}},
                    **_errors(),
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "prm-edge", "version": __version__, "description": DESCRIPTION},
        "paths": {path: under(path, operations) for path, operations in paths.items()},
        "components": {
            "schemas": schemas(limits, aggregates),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Error")}}
    return {
        str(status): {
            "description": ", ".join(code for code, has in STATUSES.items() if has == status),
            "content": content,
        }
        for status in sorted({400, 401, 421, *statuses})
    }


def _post(
    name: str,
    summary: str,
    request: str,
    result: Schema,
    *,
    status: str = "200",
    needs_body: bool = True,
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {
            "required": needs_body,
            "content": {"application/json": {"schema": _ref(request)}},
        },
        "responses": {
            status: {"description": "done", "content": {"application/json": {"schema": result}}},
            **_errors(404, 408, 409, 413, 415, 422, 429, 500, 503),
        },
    }


def _get(
    name: str, summary: str, result: Schema, *, missing: bool = False, ready: bool = False
) -> dict[str, Any]:
    content = {"application/json": {"schema": result}}
    responses = {"200": {"description": "done", "content": content}}
    if ready:
        responses["503"] = {"description": "not yet, or no longer", "content": content}
    more = _errors(404, 409) if missing else _errors()
    return {"operationId": name, "summary": summary, "responses": {**responses, **more}}
