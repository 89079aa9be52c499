"""The pipeline of a job, on Ray Data's own reader and writer interfaces.

::

    Source: part by part, one row each -> map_batches: PartScorer actors -> Sink: one file each

A part is one row from end to end: whatever Ray Data does with rows, it cannot tear a part apart,
nor put two together. This module imports ray; whoever imports it has loaded it before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import ray
from ray.data import ActorPoolStrategy, Datasink, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from prm_edge.inputs import Survey

from .cluster import RESTARTS, TASK_RETRIES, Worker
from .folder import Folder, Summary
from .parts import Key, read_parts, survey_file, to_table
from .places import Place
from .worker import PartScorer, Setup

# tasks at the same time, each in a process of its own: on this machine, and on the whole cluster
READERS: Final = {True: 2, False: 16}
WRITERS: Final = {True: 2, False: 16}
IN_FLIGHT: Final = 2  # parts given to a worker: one it scores, one that waits at its node
BLOCK_BYTES: Final = 1  # so that each row is a block, and a worker gets one at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """The files of a job.

    ``done``: parts that an earlier run has finished, for each file. ``parts``: how many are
    missing at the least.
    """

    place: Place
    paths: tuple[str, ...]
    records_per_part: int
    done: tuple[frozenset[int], ...]
    parts: int


def fetch(reference: Any) -> Iterable[bytes]:
    """A chunk of a package out of Ray's object store."""
    return (ray.get(reference),)


def put_chunks(chunks: Iterable[tuple[str, bytes]]) -> dict[str, tuple[Any, ...]]:
    """Put a package into Ray's object store, a chunk at a time."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, chunk in chunks:
        found[name] = (*found.get(name, ()), ray.put(chunk))
    return found


def survey_files(place: Place, paths: tuple[str, ...]) -> tuple[Survey, ...]:
    """Hash and count files on the cluster."""
    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(survey_file)
    return tuple(ray.get([task.remote(place.filesystem, path) for path in paths]))


class Source(Datasource):  # type: ignore[misc]  # ray is not checked
    """Reads the parts that are missing."""

    def __init__(self, given: Input) -> None:
        super().__init__()
        self._given = given

    def get_name(self) -> str:
        """What Ray Data calls it."""
        return "Records"

    @property
    def supports_distributed_reads(self) -> bool:
        """A path of this machine is read on this machine."""
        return not self._given.place.local

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One for each file, however many are asked for."""
        about = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [
            ReadTask(partial(self._tables, file), about) for file in range(len(self._given.paths))
        ]

    def _tables(self, file: int) -> Iterator[Any]:
        given = self._given
        path, done = given.paths[file], given.done[file]
        for part in read_parts(given.place.filesystem, path, file, given.records_per_part):
            if part.number not in done:
                yield to_table(part)


class Sink(Datasink):  # type: ignore[misc]
    """Writes each part as soon as it is there."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.written: list[Summary] = []

    def get_name(self) -> str:
        """What Ray Data calls it."""
        return "Parts"

    @property
    def supports_distributed_writes(self) -> bool:
        """A path of this machine is written on this machine."""
        return not self._folder.place.local

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[Summary]:
        """Write the parts in some blocks."""
        del ctx
        found = []
        for block in blocks:
            for row in block.to_pylist():
                summary = Summary.from_json(row["summary"])
                self._folder.write_part(summary, row["data"])
                found.append(summary)
        return found

    def on_write_complete(self, write_result: Any) -> None:
        """Keep what was written, on the driver."""
        self.written = [summary for some in write_result.write_returns for summary in some]


def pool(first: int, most: int | None) -> Any:
    """``first`` workers at once; up to ``most``, None for as many as nodes come to have room for.

    Never of a fixed size: a worker whose node is lost begins again where another has ended, and
    in a pool that must not shrink nobody ends before all is done.
    """
    return ActorPoolStrategy(
        min_size=1,
        initial_size=max(1, first),
        max_size=most,
        max_tasks_in_flight_per_actor=IN_FLIGHT,
    )


def restarts() -> dict[str, int]:
    """What happens when a worker dies."""
    return {"max_restarts": RESTARTS, "max_task_retries": -1}


def actor_options(worker: Worker) -> dict[str, Any]:
    """What a worker takes, and what happens when it dies."""
    return {"ray_remote_args_fn": restarts, **worker.resources()}


def run(
    given: Input, setup: Setup, folder: Folder, worker: Worker, workers: Any, *, progress: bool
) -> list[Summary]:
    """Read, score and write the parts that are missing; return what there is to say of them."""
    records = ray.data.read_datasource(
        Source(given),
        num_cpus=0,
        concurrency=min(READERS[given.place.local], len(given.paths)),
        override_num_blocks=len(given.paths),
    )
    records.context.target_max_block_size = BLOCK_BYTES
    records.context.enable_progress_bars = progress
    scored = records.map_batches(
        PartScorer,
        fn_constructor_args=(setup, fetch),
        batch_size=1,
        batch_format="pyarrow",
        compute=workers,
        **actor_options(worker),
    )
    sink = Sink(folder)
    writers = max(1, min(WRITERS[folder.place.local], given.parts))
    scored.write_datasink(sink, ray_remote_args={"num_cpus": 0}, concurrency=writers)
    return sink.written


def keys(summaries: Iterable[Summary]) -> dict[Key, Summary]:
    """By the part that they are of."""
    return {summary.key: summary for summary in summaries}
