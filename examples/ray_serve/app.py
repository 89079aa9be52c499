"""A package behind Ray Serve: what `prm-edge serve` answers, on replicas that come and go.

    pip install 'prm-edge[cpu,ray,serve]' 'ray[serve]>=2.60,<3'
    PRM_EDGE_PACKAGE=my-prm python examples/ray_serve/app.py
    curl localhost:8000/v1/score -H 'Content-Type: application/json' \
         -d '{"problem": "Solve for x: 2x + 4 = 10.", "steps": ["2x = 6", "x = 3"]}'

Bodies are read, checked, queued, run together and answered by prm-edge's own server, one in each
replica. Routes: POST /v1/score and /v1/rank, GET /health, /info and /metrics. Sessions are left
out: a session lives in one replica, and the next request may go to another.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default

from ray import serve

from prm_edge import Scorer
from prm_edge.server.app import create_app
from prm_edge.server.backend import Backend
from prm_edge.server.limits import Limits

ROUTES = ("/v1/score", "/v1/rank", "/health", "/info", "/metrics")


@serve.deployment(
    max_ongoing_requests=64,
    autoscaling_config={
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 8,  # more than a few only wait for the model
        "upscale_delay_s": 5,
        "downscale_delay_s": 60,
    },
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress()
class Scoring:
    """One replica: a scorer, and the server around it.

    ``package``: a folder that every node has; without one the node's PRM_EDGE_PACKAGE, else the
    built-in one. ``hosts``: values of the Host header that are answered.
    """

    def __init__(
        self, package: str | None = None, hosts: tuple[str, ...] = (), threads: int = 1
    ) -> None:
        self._scorer = Scorer.load(package, threads=threads)
        self._asgi = create_app(
            Backend(self._scorer), limits=Limits(), hosts=("localhost", "127.0.0.1", *hosts)
        )
        self._asgi.router.routes = [
            route for route in self._asgi.routes if getattr(route, "path", None) in ROUTES
        ]

    def __serve_build_asgi_app__(self) -> Any:
        return self._asgi

    async def check_health(self) -> None:
        """Called by Serve before any request and now and then; it replaces who raises."""
        while self._asgi.state.api.state == "starting":  # its self-test runs
            await asyncio.sleep(0.05)
        if self._asgi.state.api.state == "failed":
            raise RuntimeError("the model does not pass its self-test, or cannot be run any more")


app = Scoring.bind(os.environ.get("PRM_EDGE_PACKAGE"))


def main() -> None:
    port = int(os.environ.get("PORT", "8000"))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app, name="prm-edge", route_prefix="/")
    print(f"serving at http://localhost:{port}/v1/score, until Ctrl-C", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
