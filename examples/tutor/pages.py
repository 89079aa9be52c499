"""The pages: files of ``static/``, each a route of its own, read once.

They hold no text of anybody, load nothing from elsewhere, and are told so to the browser.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes(folder: Path = STATIC) -> list[Route]:
    """A route for every file; ``index.html`` is ``/``."""
    return [_route(file) for file in sorted(folder.iterdir()) if file.suffix in MEDIA_TYPES]


def _route(file: Path) -> Route:
    body, media_type = file.read_bytes(), MEDIA_TYPES[file.suffix]
    path = "/" if file.name == "index.html" else f"/{file.name}"

    async def show(request: Request) -> Response:
        return Response(body, media_type=media_type, headers={"Content-Security-Policy": POLICY})

    return Route(path, show)
