"""A tutor that looks at every line: ``python examples/tutor``.

The package is scored in this process, or with ``--server URL`` by a ``prm-edge serve`` that runs
already. Needs ``pip install 'prm-edge[cpu,serve]'``; nothing is loaded from the internet.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from forward import Upstream, forwarding_app
from pages import page_routes

from prm_edge import PrmEdgeError, Scorer
from prm_edge.server import run
from prm_edge.server.app import create_app
from prm_edge.server.backend import Backend
from prm_edge.server.limits import Limits

PORT = 8080


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="tutor", description=(__doc__ or "").splitlines()[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("-m", "--package", help="package to score with; default: the built-in one")
    model.add_argument("--server", metavar="URL", help="a running prm-edge serve to ask instead")
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="the server's API key; pages never see it"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--anyone", action="store_true", help="listen beyond this machine, for a classroom"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name to answer to",
    )
    parser.add_argument("--threads", type=int, help="threads of the model; default: every core")
    return parser.parse_args()


def main() -> None:
    """Serve the pages until Ctrl-C."""
    given = options()
    limits, pages = Limits(), page_routes()
    run.check_exposure(given.host, has_keys=False, anyone=given.anyone)
    hosts = run.allowed_hosts(given.host, given.allow_host)
    upstream = Upstream.read(given.server, given.key_file) if given.server else None
    with run.open_socket(given.host, given.port) as listening:
        print(f"tutor: open {run.url(listening)} in a browser; Ctrl-C ends it", flush=True)
        if upstream is not None:
            print(f"tutor: lines are scored by the server at {upstream.url}", flush=True)
            app = forwarding_app(upstream, pages, hosts=hosts, limits=limits)
            run.run_app(lambda failed: app, listening, limits=limits)
            return
        with Scorer.load(given.package, threads=given.threads) as scorer:
            name = scorer.package.manifest.name
            print(f"tutor: lines are scored here, by {name} ({scorer.variant})", flush=True)
            make = partial(create_app, Backend(scorer), limits=limits, hosts=hosts, pages=pages)
            run.run_app(lambda failed: make(on_failure=failed), listening, limits=limits)


if __name__ == "__main__":
    try:
        main()
    except (PrmEdgeError, OSError) as error:
        sys.exit(f"tutor: {error}")
