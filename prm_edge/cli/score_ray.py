"""``prm-edge score --engine ray``: the options of a cluster, and what is said on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from .group import Failure, Interrupted
from .interrupt import resuming_command
from .streams import STANDARD
from .words import some

if TYPE_CHECKING:
    from prm_edge.ray.run import Outcome

    from .progress import Voice

F = TypeVar("F", bound=Callable[..., Any])

LOCAL: Final = "local"
RAY: Final = "ray"
# option -> its declaration; a new one is a row here
OPTIONS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (
        "--address",
        {
            "metavar": "A",
            "help": "With ray: the cluster's address. Default: RAY_ADDRESS, else this machine.",
        },
    ),
    (
        "--num-workers",
        {
            "metavar": "N",
            "type": click.IntRange(min=1),
            "help": "With ray: workers. Default: as many as there is room for.",
        },
    ),
    (
        "--gpus-per-worker",
        {
            "metavar": "G",
            "type": click.FloatRange(min=0),
            "help": "With ray: GPUs of a worker, 0.5 to share one. Default: 0.",
        },
    ),
    (
        "--memory-per-worker",
        {
            "metavar": "GB",
            "type": click.FloatRange(min=0, min_open=True),
            "help": "With ray: memory kept for a worker. Default: what the package needs.",
        },
    ),
    (
        "--package-on-nodes",
        {
            "is_flag": True,
            "default": None,
            "help": "With ray: every node has the package at this path; send it to none.",
        },
    ),
    (
        "--part-records",
        {
            "metavar": "N",
            "type": click.IntRange(min=1),
            "help": "With ray: records of one file of output. Default: by the size of the input.",
        },
    ),
)


def cluster_options(command: F) -> F:
    """Add ``--engine`` and the options of a cluster."""
    for name, declaration in reversed(OPTIONS):
        command = click.option(name, **declaration)(command)
    return click.option(
        "--engine",
        type=click.Choice([LOCAL, RAY]),
        default=LOCAL,
        show_default=True,
        help="Score here, or on a Ray cluster (extra ray): OUT is then a folder of parts.",
    )(command)


def cluster_values(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a cluster out of all; those that were given."""
    names = [name.removeprefix("--").replace("-", "_") for name, _ in OPTIONS]
    taken = {name: options.pop(name) for name in names}
    return {name: value for name, value in taken.items() if value is not None}


def check_local(given: Mapping[str, Any]) -> None:
    """Refuse options of a cluster where there is none.

    Raises:
        ConfigError: one was given.
    """
    from prm_edge_runtime.errors import ConfigError

    if given:
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{name} is about a cluster; give --engine ray too, or leave it out")


def score_on_ray(
    context: click.Context,
    voice: Voice,
    asked: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Outcome:
    """Make one call with what was asked, and say what it says."""
    from prm_edge.ray.run import score_files
    from prm_edge_runtime.errors import ClusterError

    request = _request(asked, given, quiet=voice.quiet or voice.as_json)

    def say(name: str, text: str, **data: Any) -> None:
        voice.event(name, text, **data)

    try:
        outcome = score_files(request, say)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_kept(request.out, context)}") from None
    except ClusterError as error:
        raise Failure(f"{error}; {_kept(request.out, context)}") from error
    voice.event("end", **asdict(outcome))
    return outcome


def _request(asked: Mapping[str, Any], given: Mapping[str, Any], *, quiet: bool) -> Any:
    from prm_edge.ray.run import Request
    from prm_edge.ray.worker import Options
    from prm_edge_runtime.errors import ConfigError

    if asked["file"] in (None, STANDARD):
        raise ConfigError(
            "the ray engine reads files, a folder or a pattern, which may be a URI; name one "
            "instead of a pipe"
        )
    if asked["out"] == STANDARD:
        raise ConfigError("the ray engine writes a folder of parts; name it with -o FOLDER")
    if asked["shard"] is not None:
        raise ConfigError("--shard shares a file out among machines, which Ray does itself")
    if asked["resume"] and asked["overwrite"]:
        raise ConfigError(
            "--resume goes on with what is there and --overwrite begins again; give one of them"
        )
    names = ("package", "device", "variant", "threads", "force", "resume", "overwrite")
    cluster = dict(given)
    if "memory_per_worker" in cluster:
        cluster["memory_gb"] = cluster.pop("memory_per_worker")
    return Request(
        input=asked["file"],
        out=asked["out"],
        options=Options(**{name: asked[name] for name in Options.__dataclass_fields__}),
        quiet=quiet,
        **{name: asked[name] for name in names},
        **cluster,
    )


def _kept(out: str, context: click.Context) -> str:
    from prm_edge.ray.folder import Folder
    from prm_edge.ray.places import find_place

    count = Folder(find_place(out), "").count_parts()
    if not count:
        return "nothing was written"
    kept = some(count, "part", "is", "are")
    return f"{kept} kept, go on with: {resuming_command(context)}"
