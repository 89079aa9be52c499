"""``prm-edge serve``: a package over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from prm_edge.server.limits import MB, Limits
from prm_edge_runtime.prefixes import MAX_MB

from .describe import name_package, say_notice
from .group import Failure
from .options import engine_options, force_option, load_scorer, package_option

F = TypeVar("F", bound=Callable[..., Any])

PORT: Final = 8765
EXTRA: Final = ("starlette", "uvicorn", "prometheus_client", "httptools")
# option -> the limit that it sets, its unit, its type and what it says; a new one is a row here
LIMITS: Final[tuple[tuple[str, str, int, Any, str], ...]] = (
    ("queue", "queue_requests", 1, click.IntRange(min=1), "Requests that may wait."),
    ("deadline", "deadline_s", 1, click.FloatRange(0, min_open=True), "Seconds one may wait."),
    ("tokens", "request_tokens", 1, click.IntRange(min=1), "Tokens of one request, about."),
    ("batch-tokens", "batch_tokens", 1, click.IntRange(min=1), "Tokens of one run, about."),
    ("sessions", "sessions", 1, click.IntRange(min=1), "Live sessions."),
    ("session-mb", "session_bytes", MB, click.IntRange(min=1), "MB that they may hold."),
    (
        "session-idle",
        "session_idle_s",
        1,
        click.FloatRange(0, min_open=True),
        "Seconds until an unused session ends.",
    ),
    (
        "drain",
        "drain_s",
        1,
        click.FloatRange(0, min_open=True),
        "Seconds to finish what is accepted after SIGTERM.",
    ),
)


def limit_options(command: F) -> F:
    """Add one option for each row of the table."""
    defaults = Limits()
    for name, field, unit, kind, text in reversed(LIMITS):
        option = click.option(
            f"--{name}",
            type=kind,
            default=kind.convert(getattr(defaults, field) / unit, None, None),
            show_default=True,
            metavar="N",
            help=text,
        )
        command = option(command)
    return command


@click.command("serve", short_help="Serve a package over HTTP.")
@package_option
@engine_options
@force_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; beyond this machine only with --keys or --anyone.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--keys",
    "keys_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="API keys, one NAME KEY a line; whoever has none is refused.",
)
@click.option("--anyone", is_flag=True, help="Listen beyond this machine without keys.")
@click.option(
    "--allow-host",
    "more_hosts",
    metavar="NAME",
    multiple=True,
    help="Another name in the Host header to answer to; may be given again.",
)
@limit_options
@click.option(
    "--prefix-cache-mb",
    type=click.FloatRange(0, MAX_MB),
    default=0,
    show_default=True,
    metavar="N",
    help="MB in which problems and steps of before stay, for whoever sends them again.",
)
@click.option("--log-text", is_flag=True, help="Log what pupils wrote, too.")
def serve_command(
    package: str | None,
    device: str | None,
    variant: str | None,
    threads: int | None,
    force: bool,
    host: str,
    port: int,
    keys_file: Path | None,
    anyone: bool,
    more_hosts: tuple[str, ...],
    prefix_cache_mb: float,
    log_text: bool,
    **numbers: float,
) -> None:
    """Serve a package over HTTP until Ctrl-C or SIGTERM, which answer what was accepted.

    The address and the package are named on stderr, and every request is a line of JSON there.
    GET / shows what can be asked, GET /health whether the self-test has passed.
    """
    try:
        from prm_edge.server import run
        from prm_edge.server.keys import read_keys
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise Failure(
            f"prm-edge serve needs {error.name}, which is not installed; install the extra: "
            "pip install 'prm-edge[serve]'"
        ) from None
    given: dict[str, Any] = {
        field: numbers[name.replace("-", "_")] * unit for name, field, unit, _, _ in LIMITS
    }
    limits = Limits(**given)
    run.check_exposure(host, has_keys=keys_file is not None, anyone=anyone)
    hosts = run.allowed_hosts(host, more_hosts)
    keys = None if keys_file is None else read_keys(keys_file)
    with (
        run.open_socket(host, port) as listening,
        load_scorer(
            package,
            device=device,
            variant=variant,
            threads=threads,
            force=force,
            prefix_cache_mb=prefix_cache_mb,
        ) as scorer,
    ):
        click.echo(f"prm-edge: serving {name_package(scorer)}, at {run.url(listening)}", err=True)
        say_notice(scorer.package.manifest)
        run.serve(scorer, listening, limits=limits, hosts=hosts, keys=keys, with_text=log_text)
