"""Why a request gets no result: one row for each reason, and the JSON that says so.

What is said to a client never holds a path, a stack trace or somebody else's text.
"""

from __future__ import annotations

from typing import Any, Final

from prm_edge_runtime.errors import (
    ConfigError,
    EngineError,
    InputError,
    PrmEdgeError,
    RecipeError,
    SessionError,
)

# code -> HTTP status; the code is what programs look at
STATUSES: Final = {
    "bad_request": 400,
    "bad_json": 400,
    "bad_host": 421,
    "no_key": 401,
    "not_found": 404,
    "no_session": 404,
    "bad_method": 405,
    "slow_body": 408,
    "conflict": 409,
    "too_large": 413,
    "bad_content_type": 415,
    "invalid": 422,
    "busy": 429,
    "too_many_sessions": 429,
    "failed": 500,
    "not_ready": 503,
}
RETRIED: Final = ("busy", "too_many_sessions", "not_ready")


class RefusedError(PrmEdgeError):
    """A request that is answered with an error.

    ``retry_after_s``: whole seconds after which it may work, where waiting helps.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code: Final = code
        self.status: Final = STATUSES[code]
        self.headers: Final = dict(headers or {})
        if code in RETRIED:
            self.headers["Retry-After"] = str(max(1, retry_after_s or 1))

    def to_dict(self, request_id: str) -> dict[str, Any]:
        """The body of the answer."""
        error = {"code": self.code, "message": str(self), "request_id": request_id}
        return {"error": error}


FAILED: Final = (
    "the server failed on this request; it is not known to be wrong. "
    "Its log has more under this request_id"
)


def refusal(error: Exception) -> RefusedError:
    """What a client is told about an error."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, InputError | RecipeError | ConfigError):
        return RefusedError("invalid", str(error))
    if isinstance(error, SessionError):
        return RefusedError("conflict", str(error))
    if isinstance(error, EngineError):
        # onnxruntime's own words may name files
        return RefusedError("failed", "the model failed on this text, so there is no score for it")
    return RefusedError("failed", FAILED)
