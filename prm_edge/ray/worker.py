"""What an actor does: load the package once, score what it is given. Plain Python: no ray in it.

In: a :class:`Setup` and parts of files. Out: their lines as ``prm-edge score`` writes them, by the
same code. An error that is not one record's travels out of the first call, not out of the
constructor, where Ray would turn it into text.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prm_edge.duplicates import id_digest
from prm_edge.jobs import make_job, score_records
from prm_edge.versions import onnxruntime_version
from prm_edge.writers import NATIVE, form_named, load_pyarrow
from prm_edge_runtime import ort
from prm_edge_runtime.choice import device_asked
from prm_edge_runtime.errors import ConfigError
from prm_edge_runtime.lengths import NULL
from prm_edge_runtime.package import choose_variant
from prm_edge_runtime.version import __version__

from .folder import Summary, sha256
from .packages import Fetch, Source, on_this_node, this_node
from .parts import Part, from_rows

if TYPE_CHECKING:
    from prm_edge.jobs import OutputLine
    from prm_edge.records import Line
    from prm_edge_runtime.package import Package
    from prm_edge_runtime.scorer import Scorer

BATCH_TOKENS: Final = 16_384  # scored together; what runs at once is less and decided by the engine
NOTICE: Final = "notice"
MEMORY_BASE: Final = 300_000_000  # of a worker without a model: Python, Arrow, onnxruntime
MEMORY_WEIGHTS: Final = 2.0  # times its weights: mapped once, and packed for the kernels
MEMORY_UNKNOWN: Final = 2_000_000_000  # where only the nodes have the package


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How records are scored and written; see :func:`.jobs.make_job`."""

    by: str | None = None
    threshold: float | None = None
    form: str = NATIVE
    text: bool = False
    unsure: bool = False
    on_too_long: str = NULL


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What decides what a score is, as one node has it. Every worker must have the same."""

    package: str
    variant: str
    device: str
    version: str
    onnxruntime: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What every worker of a job is told.

    ``threads``: of one worker. ``expected``: None where no node has been asked yet. ``ids``: note
    the ids of the records, so that those that occur twice are found.
    """

    source: Source
    device: str
    variant: str | None = None
    threads: int = 1
    force: bool = False
    options: Options = Options()
    batch_tokens: int = BATCH_TOKENS
    ids: bool = False
    expected: Facts | None = None


def load(setup: Setup, fetch: Fetch) -> Scorer:
    """Load the package on this node, and check that it is the one that the job is about.

    Raises:
        PrmEdgeError: as :meth:`.Scorer.load`.
        ConfigError: when this node would score differently, or an option does not fit.
    """
    from prm_edge_runtime.scorer import Scorer

    scorer = Scorer.load(
        on_this_node(setup.source, fetch),
        device=setup.device,
        variant=setup.variant,
        threads=setup.threads,
        force=setup.force,
    )
    make_job(scorer, **asdict(setup.options))
    found = facts_of(scorer)
    wanted = setup.source.digest
    if wanted is not None and found.package != wanted:
        raise ConfigError(
            f"{setup.source.place} has the digest {wanted[:12]} where the job was started and "
            f"{found.package[:12]} on node {this_node()}: install the same prm-edge on every node"
        )
    if setup.expected is not None and found != setup.expected:
        before, now = asdict(setup.expected), asdict(found)
        changed = [f"{k} {before[k]} elsewhere, {now[k]} here" for k in now if before[k] != now[k]]
        raise ConfigError(
            f"node {this_node()} would give other scores: {', '.join(changed)}; make every node "
            "the same"
        )
    return scorer


def facts_of(scorer: Scorer) -> Facts:
    """What this node has."""
    return Facts(
        package=scorer.package.digest,
        variant=scorer.variant,
        device=scorer.device,
        version=__version__,
        onnxruntime=onnxruntime_version(),
    )


def introduce(setup: Setup, fetch: Fetch) -> dict[str, Any]:
    """Load the package once and say what it is: the first thing that a job does on a node."""
    with load(setup, fetch) as scorer:
        manifest = scorer.package.manifest
        return {
            "facts": facts_of(scorer),
            "name": manifest.name,
            "short": scorer.package.short,
            "notice": manifest.provenance.get(NOTICE),
        }


class PartScorer:
    """Scores parts of files."""

    def __init__(self, setup: Setup, fetch: Fetch) -> None:
        self._setup = setup
        self._error: Exception | None = None
        try:
            self._scorer = load(setup, fetch)
        except Exception as error:
            self._error = error

    def __call__(self, table: Any) -> Any:
        """Score the parts in some rows of :func:`.parts.to_table`; each becomes a row again."""
        if self._error is not None:
            raise self._error
        arrow, _ = load_pyarrow()
        rows = [self._row(part) for part in from_rows(table.to_pylist())]
        schema = arrow.schema([("summary", arrow.string()), ("data", arrow.large_binary())])
        return arrow.Table.from_pylist(rows, schema=schema)

    def _row(self, part: Part) -> dict[str, Any]:
        summary, data = self.score(part)
        return {"summary": summary.to_json(), "data": data}

    def score(self, part: Part) -> tuple[Summary, bytes]:
        """Score one part: what is to be said of it, and its file."""
        count = Counting(ids=self._setup.ids)
        text = b"".join(count.each(score_lines(self._scorer, part.lines, self._setup)))
        convert = form_named(self._setup.options.form).convert
        data = text if convert is None else _converted(text, convert)
        summary = Summary(
            file=part.file,
            part=part.number,
            records=count.records,
            failed=count.failed,
            out_of_domain=count.out_of_domain,
            n_tokens=count.n_tokens,
            first_failure=count.first_failure,
            ids=tuple(count.ids or ()),
            size=len(data),
            sha256=sha256(data),
        )
        return summary, data


def score_lines(scorer: Scorer, lines: Iterable[Line], setup: Setup) -> Iterator[OutputLine]:
    """Score lines as the local engine does, a batch of about so many tokens at a time."""
    return score_records(
        scorer, lines, ahead=True, batch_tokens=setup.batch_tokens, **asdict(setup.options)
    )


class Counting:
    """Counts what there is to say about lines while they pass."""

    def __init__(self, *, ids: bool) -> None:
        self.records = 0
        self.failed = 0
        self.out_of_domain = 0
        self.n_tokens = 0
        self.first_failure: str | None = None
        self.ids: list[str] | None = [] if ids else None

    def each(self, lines: Iterable[OutputLine]) -> Iterator[bytes]:
        """Pass lines on as they are written."""
        for line in lines:
            self.records += 1
            self.out_of_domain += line.out_of_domain
            self.n_tokens += line.n_tokens
            if line.error is not None:
                self.failed += 1
                self.first_failure = self.first_failure or f"line {line.number}: {line.error}"
            if self.ids is not None and line.id is not None:
                self.ids.append(id_digest(line.id).hex())
            yield line.to_json()


def _converted(text: bytes, convert: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        lines, target = Path(folder) / "lines", Path(folder) / "target"
        lines.write_bytes(text)
        convert(lines, target)
        return target.read_bytes()


def run_on(device: str | None, threads: int | None, gpus: float) -> tuple[str, int]:
    """The device and the threads of one worker.

    Raises:
        ConfigError: when they do not go together.
    """
    asked = device_asked(device)
    if asked == "cuda" and not gpus:
        raise ConfigError(
            "a worker sees no GPU that it was not given: --device cuda needs --gpus-per-worker"
        )
    if asked == "cpu" and gpus:
        raise ConfigError("--device cpu leaves the GPUs of --gpus-per-worker unused; give one")
    count = ort.thread_count(threads)
    if count == 0 and (threads is not None or os.environ.get("PRM_EDGE_THREADS", "").strip()):
        raise ConfigError(
            "threads 0 means every core, which workers of one node would all take; say how many "
            "one worker has"
        )
    return ("cuda" if gpus else "cpu"), max(1, count)


def memory_of(
    package: Package | None, *, device: str, variant: str | None, gigabytes: float | None
) -> int:
    """What one worker needs of its node, in bytes; Ray keeps more of them off a node than fit.

    Raises:
        VariantError: when the package has no such variant, or none for the device.
    """
    if gigabytes is not None:
        return round(gigabytes * 1e9)
    if package is None:
        return MEMORY_UNKNOWN
    manifest = package.manifest
    chosen = choose_variant(manifest, device=device, name=variant)
    return round(MEMORY_BASE + MEMORY_WEIGHTS * sum(manifest.files[p].size for p in chosen.files))
