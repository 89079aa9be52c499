"""Score the rows of a Ray Dataset, between any of Ray Data's readers and writers.

In: rows that are records, as Parquet files hold them. Out: the same rows with what ``prm-edge
score`` says of them. ray is imported inside the function that needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from prm_edge.inputs import row_line
from prm_edge.writers import encodable, load_pyarrow
from prm_edge_runtime.errors import ConfigError
from prm_edge_runtime.lengths import NULL

from .cluster import Worker, load_ray
from .packages import SHIPPED, Fetch, chunks_of, find_source
from .worker import BATCH_TOKENS, Options, Setup, load, memory_of, run_on, score_lines

if TYPE_CHECKING:
    from prm_edge.jobs import OutputLine

BATCH_ROWS: Final = 256
STEPS: Final = "scored_steps"
CANDIDATES: Final = "scored_candidates"
# what is written under the name of a column that the input may have
RENAMED: Final = {"steps": STEPS, "candidates": CANDIDATES}


class ScoreRows:
    """Scores rows; for ``Dataset.map_batches`` with ``batch_format="pyarrow"``, or as an actor.

    The columns of a row that a schema of ``prm-edge formats`` knows are its record; all columns
    come back, with ``scores`` and so on behind them. A row that cannot be scored has ``error``.
    """

    def __init__(self, setup: Setup, fetch: Fetch) -> None:
        self._setup = setup
        self._error: Exception | None = None
        try:
            self._scorer = load(setup, fetch)
        except Exception as error:  # raised where Ray does not turn it into text
            self._error = error

    def __call__(self, table: Any) -> Any:
        """Score the rows of one table.

        Raises:
            ConfigError: when a column has the name of one that is added.
        """
        if self._error is not None:
            raise self._error
        arrow, _ = load_pyarrow()
        schema = added_schema(arrow, self._scorer.recipe.aggregates)
        both = [name for name in table.column_names if name in schema.names]
        if both:
            raise ConfigError(
                f"the data set has the column {both[0]!r} already, which scoring adds; rename or "
                "drop it first (rename_columns, drop_columns)"
            )
        lines = [row_line(number, row) for number, row in enumerate(table.to_pylist(), start=1)]
        found = [_added(line) for line in score_lines(self._scorer, lines, self._setup)]
        new = arrow.Table.from_pylist(found, schema=schema)
        for name in schema.names:
            table = table.append_column(schema.field(name), new.column(name))
        return table


def score_dataset(
    dataset: Any,
    package: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    variant: str | None = None,
    threads: int | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    memory_gb: float | None = None,
    package_on_nodes: bool = False,
    batch_rows: int = BATCH_ROWS,
    batch_tokens: int = BATCH_TOKENS,
    by: str | None = None,
    threshold: float | None = None,
    unsure: bool = False,
    on_too_long: str = NULL,
    force: bool = False,
) -> Any:
    """Score every row of a Ray Dataset; return the lazy Dataset of the same rows, scored.

    A row is a record as ``prm-edge formats`` lists them, one key a column. Behind its columns come
    ``scores``, ``verdict``, ``first_error``, ``aggregate``, ``threshold``, ``status``,
    ``probabilities``, ``redundancy``, ``error_kinds``, ``n_tokens``; for candidates
    ``scored_candidates``, ``order``, ``best``, ``best_sound``, ``by``; ``scored_steps``, what a
    response was cut into; ``package``, ``variant``; and ``error``, null but where the row could not
    be scored.

    Args:
        package: a folder of this machine, sent to every node once through Ray's object store; a
            URI that every node reads once; or, with ``package_on_nodes``, a path that every node
            has. Without one ``PRM_EDGE_PACKAGE``, else the built-in one.
        threads: of one worker, and the CPUs that it takes; 1 without ``PRM_EDGE_THREADS``.
        num_workers: at most; the pool grows from one, so that what reads the rows has CPUs too.
        memory_gb: of one worker; without it what the package needs.
        batch_rows: rows of one call. batch_tokens: of them scored together, about.
        by, threshold, unsure, on_too_long, force: as in ``prm-edge score``.

    Raises:
        ConfigError, PackageError: at once, for what can be seen from here; what only a node can
            see fails the Dataset when it is consumed.
    """
    ray = load_ray()
    from .pipeline import actor_options, fetch, pool, put_chunks

    chosen, count = run_on(device, threads, gpus_per_worker)
    source, opened = find_source(package, on_nodes=package_on_nodes)
    memory = memory_of(opened, device=chosen, variant=variant, gigabytes=memory_gb)
    worker = Worker(cpus=count, gpus=gpus_per_worker, memory_bytes=memory)
    if not ray.is_initialized():
        ray.init()
    if source.kind == SHIPPED and opened is not None:
        source = replace(source, files=put_chunks(chunks_of(opened)))
    setup = Setup(
        source=source,
        device=chosen,
        variant=variant,
        threads=count,
        force=force,
        options=Options(by=by, threshold=threshold, unsure=unsure, on_too_long=on_too_long),
        batch_tokens=batch_tokens,
    )
    return dataset.map_batches(
        ScoreRows,
        fn_constructor_args=(setup, fetch),
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=pool(1, num_workers),  # more once what reads the rows has its CPUs
        **actor_options(worker),
    )


def added_schema(arrow: Any, aggregates: Sequence[str]) -> Any:
    """The columns that are added: the same for every row, or blocks would not go together."""
    text, number, whole = arrow.string(), arrow.float64(), arrow.int64()
    solution = [
        ("scores", arrow.list_(number)),
        ("verdict", text),
        ("first_error", whole),
        ("aggregate", arrow.struct([(name, number) for name in aggregates])),
        ("threshold", number),
        ("status", arrow.list_(text)),
        ("probabilities", arrow.list_(number)),
        ("redundancy", arrow.list_(number)),
        ("error_kinds", arrow.list_(text)),
        ("n_tokens", whole),
    ]
    return arrow.schema(
        [
            *solution,
            (STEPS, arrow.list_(text)),
            (CANDIDATES, arrow.list_(arrow.struct(solution))),
            ("order", arrow.list_(whole)),
            ("best", whole),
            ("best_sound", whole),
            ("by", text),
            ("package", text),
            ("variant", text),
            ("error", arrow.struct([("type", text), ("message", text)])),
        ]
    )


def _added(line: OutputLine) -> dict[str, Any]:
    data = dict(line.data)
    if "error" in data:
        # rows of a data set have no line
        error = {"type": data["error"]["type"], "message": encodable(data["error"]["message"])}
        return {"error": error}
    for name, column in RENAMED.items():
        if name in data:
            data[column] = data.pop(name)
    return data
