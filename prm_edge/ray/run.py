"""``prm-edge score --engine ray``: from files to a folder of parts, and nothing lost between them.

In: what the user asked for. Out: the folder, and what there is to say about it. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prm_edge.duplicates import MAX_IDS, DuplicateIds
from prm_edge.writers import form_named
from prm_edge_runtime.errors import ClusterError, ConfigError

from .cluster import Worker, connected, first_answer, load_ray, room, translated
from .folder import Folder, Summary, missing_parts
from .packages import SHIPPED, chunks_of, find_source
from .parts import MAX_FILES, Surveyed, records_per_part, survey_file
from .places import Place, find_files, find_place
from .worker import Facts, Options, Setup, introduce, memory_of, run_on

if TYPE_CHECKING:
    from prm_edge_runtime.package import Package

# a name for programs, words for people, and figures
Say = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for. ``quiet``: no progress, nothing of Ray's own.

    ``num_workers``: None for as many as the nodes have room for. ``memory_gb``: of one worker,
    None for what its package needs. ``part_records``: None for what gives a good number of parts.
    """

    input: str
    out: str
    package: str | None = None
    device: str | None = None
    variant: str | None = None
    threads: int | None = None
    force: bool = False
    options: Options = field(default_factory=Options)
    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float = 0.0
    memory_gb: float | None = None
    package_on_nodes: bool = False
    part_records: int | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What there is to say when a job is over. ``first_failure``: in the order of the input."""

    records: int
    failed: int
    out_of_domain: int
    n_tokens: int
    parts: int
    first_failure: str | None
    repeated_ids: int


def score_files(request: Request, say: Say) -> Outcome:
    """Score files on a Ray cluster.

    Raises:
        ConfigError, InputError, PackageError: what was asked cannot be.
        ClusterError: the cluster did not do it; what is finished is kept.
    """
    load_ray()
    device, threads = run_on(request.device, request.threads, request.gpus_per_worker)
    form = form_named(request.options.form)
    place, paths = find_files(request.input)
    if len(paths) > MAX_FILES:
        raise ConfigError(f"there are {len(paths)} input files; at most {MAX_FILES} are read")
    folder = Folder(find_place(request.out), ".jsonl" if form.convert is None else ".parquet")
    _check_apart(place, paths, folder.place)
    source, package = find_source(request.package, on_nodes=request.package_on_nodes)
    setup = Setup(
        source=source,
        device=device,
        variant=request.variant,
        threads=threads,
        force=request.force,
        options=request.options,
    )
    memory = memory_of(package, device=device, variant=request.variant, gigabytes=request.memory_gb)
    worker = Worker(cpus=threads, gpus=request.gpus_per_worker, memory_bytes=memory)
    with folder.owned():
        surveyed = _survey_here(place, paths) if place.local else None
        with connected(request.address, quiet=request.quiet) as ray:
            return _Run(request, ray, place, paths, folder, worker, say).run(
                setup, package, surveyed
            )


class _Run:
    """One run, connected to the cluster."""

    def __init__(
        self,
        request: Request,
        ray: Any,
        place: Place,
        paths: tuple[str, ...],
        folder: Folder,
        worker: Worker,
        say: Say,
    ) -> None:
        self._request = request
        self._ray = ray
        self._place = place
        self._paths = paths
        self._folder = folder
        self._worker = worker
        self._say = say

    def run(self, setup: Setup, package: Package | None, surveyed: Surveyed | None) -> Outcome:
        from . import pipeline

        if setup.source.kind == SHIPPED and package is not None:
            files = pipeline.put_chunks(chunks_of(package))
            setup = replace(setup, source=replace(setup.source, files=files))
        about = self._introduce(setup)
        if surveyed is None:
            try:
                found = pipeline.survey_files(self._place, self._paths)
            except Exception as error:
                raise translated(self._ray, error) from error
            surveyed = Surveyed(names=self._paths, files=found)
        setup = replace(setup, expected=about["facts"], ids=surveyed.records <= MAX_IDS)
        return self._score(setup, surveyed)

    def _introduce(self, setup: Setup) -> dict[str, Any]:
        from . import pipeline

        about: dict[str, Any] = first_answer(
            self._ray,
            self._worker,
            lambda: introduce(setup, pipeline.fetch),
            grows=self._request.address is not None,
            say=lambda text: self._say("waiting", text),
        )
        facts: Facts = about["facts"]
        named = f"{about['name']} ({facts.variant}, {about['short']}) on {facts.device}"
        self._say(
            "start",
            f"scoring with {named}, {setup.source.place}, workers of {self._worker}",
            package=facts.package,
            variant=facts.variant,
            device=facts.device,
        )
        if about["notice"] is not None:
            self._say("notice", f"NOTICE: {about['notice']}")
        return about

    def _score(self, setup: Setup, surveyed: Surveyed) -> Outcome:
        from . import pipeline

        request, folder = self._request, self._folder
        per_part = records_per_part(surveyed.records, request.part_records)
        assert setup.expected is not None  # it was asked
        description = _description(setup, setup.expected, surveyed, per_part)
        done = folder.begin(description, resume=request.resume, overwrite=request.overwrite)
        counts = tuple(file.records for file in surveyed.files)
        if missing_parts(done, counts) is None:
            folder.finish(description, *_counted(done.values()))
            self._say("end", f"{request.out} is complete: nothing to do")
            return _outcome(done.values(), self._paths)
        if done:
            n_done = sum(summary.records for summary in done.values())
            self._say("resume", f"going on after {n_done} records", records=n_done)
        given = pipeline.Input(
            place=self._place,
            paths=self._paths,
            records_per_part=per_part,
            done=tuple(
                frozenset(number for file, number in done if file == index)
                for index in range(len(self._paths))
            ),
            parts=sum(-(-count // per_part) for count in counts) - len(done),
        )
        first = request.num_workers or room(self._ray, self._worker)
        workers = pipeline.pool(first, request.num_workers)
        try:
            written = pipeline.run(
                given, setup, folder, self._worker, workers, progress=not request.quiet
            )
        except Exception as error:
            raise translated(self._ray, error) from error
        everything = {**done, **pipeline.keys(written)}
        if (missing := missing_parts(everything, counts)) is not None:
            raise ClusterError(
                f"{missing} ({self._paths[0]} is file 0): the input changed while it was read, or "
                "the output was written to; begin again with --overwrite"
            )
        folder.finish(description, *_counted(everything.values()))
        return _outcome(everything.values(), self._paths)


def _survey_here(place: Place, paths: tuple[str, ...]) -> Surveyed:
    return Surveyed(names=paths, files=tuple(survey_file(place.filesystem, path) for path in paths))


def _check_apart(place: Place, paths: tuple[str, ...], out: Place) -> None:
    """The parts of one run must not be the input of the next."""
    if place.local != out.local:
        return
    inside = out.path.rstrip("/") + "/"
    if out.path == place.path and len(paths) == 1 and paths[0] == place.path:
        raise ConfigError(f"the output {out.shown!r} is the input too; name another folder")
    if any(path.startswith(inside) for path in paths) or inside.startswith(place.path + "/"):
        raise ConfigError(
            f"the output {out.shown!r} and the input {place.shown!r} lie in each other, so the "
            "parts of this run would be records of the next; name another folder"
        )


def _description(
    setup: Setup, facts: Facts, surveyed: Surveyed, per_part: int
) -> dict[str, str | int | float | bool | None]:
    options = asdict(setup.options)
    return {
        "engine": "ray",
        "input (files)": len(surveyed.files),
        "input (SHA-256)": surveyed.sha256,
        "input (records)": surveyed.records,
        "package": facts.package,
        "variant": facts.variant,
        "device": facts.device,
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
        "--force": setup.force,
        "--part-records": per_part,
        "prm-edge": facts.version,
        "onnxruntime": facts.onnxruntime,
    }


def _counted(summaries: Iterable[Summary]) -> tuple[int, int]:
    found = list(summaries)
    return sum(one.records for one in found), sum(one.failed for one in found)


def _outcome(summaries: Iterable[Summary], paths: tuple[str, ...]) -> Outcome:
    found = sorted(summaries, key=lambda summary: summary.key)
    ids = DuplicateIds()
    for summary in found:
        for digest in summary.ids:
            ids.add_digest(bytes.fromhex(digest))
    failure = next((one for one in found if one.first_failure is not None), None)
    where = "" if failure is None or len(paths) == 1 else f"{paths[failure.file]}, "
    records, failed = _counted(found)
    return Outcome(
        records=records,
        failed=failed,
        out_of_domain=sum(one.out_of_domain for one in found),
        n_tokens=sum(one.n_tokens for one in found),
        parts=len(found),
        first_failure=None if failure is None else f"{where}{failure.first_failure}",
        repeated_ids=ids.count,
    )
