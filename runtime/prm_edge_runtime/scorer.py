"""Score the steps of worked solutions with a package: the public face of the runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from . import ort, scoring, selftest
from .awaiting import run_in_thread
from .candidates import run_candidates
from .domain import Domain, GuardedTrack, embedded_domain
from .encoding import Encoded, RecipeEncoder, check_steps, check_text
from .engine import DecoderEngine, Engine, open_engine
from .errors import (
    ConfigError,
    DeviceError,
    EngineError,
    InputTypeError,
    PackageNotFoundError,
    VariantError,
)
from .manifest import SELFTEST_NAME, TOKENIZER_NAME, Variant
from .package import Package, choose_variant, open_package
from .recipe import Recipe
from .results import OUT_OF_DOMAIN, SCORED, TOO_LONG, Ranking, StepScores
from .results import rank as rank_scores
from .session import CachedTrack, RescoredTrack, Session, Track

logger = logging.getLogger("prm_edge")

DEVICES: Final = ("auto", "cpu", "cuda")
PACKAGE_VARIABLE: Final = "PRM_EDGE_PACKAGE"
DEVICE_VARIABLE: Final = "PRM_EDGE_DEVICE"
EMBEDDED: Final = "embedded"


class Scorer:
    """A loaded package. Thread-safe; use :meth:`load` to make one.

    ``device`` and ``variant`` say what really runs; ``source`` says where the package came from
    (``argument``, ``PRM_EDGE_PACKAGE`` or ``embedded``).
    """

    def __init__(
        self,
        package: Package,
        variant: Variant,
        engine: Engine,
        source: str,
        domain: Domain | None = None,
    ) -> None:
        self.package: Final = package
        self.source: Final = source
        self.recipe: Final[Recipe] = package.manifest.recipe
        self.max_tokens: Final = package.manifest.max_tokens
        self.threshold: Final = package.manifest.threshold(variant.name)
        self._domain = domain
        self._variant = variant
        self._engine: Engine | None = engine
        self._encoder = RecipeEncoder(package.read_bytes(TOKENIZER_NAME), self.recipe)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        variant: str | None = None,
        threads: int | None = None,
        verify: str = "auto",
        self_test: bool = False,
        force: bool = False,
    ) -> Scorer:
        """Open a package and its best variant for the device.

        Args:
            path: package folder; without one ``PRM_EDGE_PACKAGE``, else the embedded default.
            device: ``cpu``; ``cuda``, which never falls back; or ``auto``, which takes CUDA when
                the package and the machine have it. Without one ``PRM_EDGE_DEVICE``, else auto.
            variant: a variant's name, instead of the best one for the device.
            threads: threads of one run; without it ``PRM_EDGE_THREADS``, else every core.
            verify: ``auto``, ``full`` or ``sizes``; see :func:`.package.open_package`.
            self_test: score the package's stored cases first and compare with torch's scores.
            force: with the embedded default, score what is plainly outside its domain too;
                without it such records get None and the status ``out_of_domain``.

        Raises:
            PackageError: no such package, damaged files, or no variant for this device.
            DeviceError: the device asked for cannot be had, or onnxruntime is not installed.
            ConfigError: an option or environment variable with an impossible value.
            SelfTestError: this machine does not reproduce the stored scores.
        """
        where, source = _package_path(path)
        package = open_package(where, verify=verify)
        asked = _device(device)
        chosen = _choose(package, asked, variant)
        try:
            scorer = cls.from_package(package, chosen, threads=threads, source=source, force=force)
        except (DeviceError, EngineError) as error:
            has = {other.device for other in package.manifest.variants}
            if asked != "auto" or variant is not None or chosen.device == "cpu" or "cpu" not in has:
                raise
            logger.warning("device auto: %s cannot be used (%s); taking cpu", chosen.device, error)
            chosen = choose_variant(package.manifest, device="cpu", name=None)
            scorer = cls.from_package(package, chosen, threads=threads, source=source, force=force)
        if chosen.proof.get("allowed_drift"):
            logger.warning(
                "variant %s of %s was exported with --allow-drift: its scores differ from "
                "torch's by more than the budget",
                chosen.name,
                package.manifest.name,
            )
        if self_test:
            scorer.self_test()
        return scorer

    @classmethod
    def from_package(
        cls,
        package: Package,
        variant: Variant,
        *,
        threads: int | None = None,
        source: str = "argument",
        force: bool = False,
    ) -> Scorer:
        """Run one variant of a package that is open already.

        Raises:
            DeviceError, ConfigError: as :meth:`load`.
            PackageError: when the graph does not follow the format.
        """
        engine = open_engine(
            package.path(variant.graph),
            variant,
            logits=package.manifest.recipe.logits,
            threads=ort.thread_count(threads),
        )
        # who names a package knows what it is for; who takes the default may not
        domain = embedded_domain(package) if source == EMBEDDED and not force else None
        return cls(package, variant, engine, source, domain)

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``: where the session really runs."""
        return self._variant.device

    @property
    def variant(self) -> str:
        """The name of the variant that runs."""
        return self._variant.name

    def score(self, problem: str, steps: Sequence[str]) -> StepScores:
        """Score every step of one solution.

        A step that ends beyond ``max_tokens`` gets None and the status ``too_long``; the steps
        before it keep their scores where the model is causal.

        Raises:
            InputTypeError: for one string instead of a list; cut it with :meth:`split`.
            InputError: for text that cannot be encoded.
            EngineError: when the model fails or returns a number that is none.
        """
        encoded = self._encoder.encode(problem, steps)
        engine = self._open_engine()
        if self.outside(problem, steps) is not None:
            return self._unscored(encoded)
        fitting = self._fitting(encoded)
        # without causality every score depends on the whole record
        cut = len(fitting.reads) < len(encoded.reads)
        if not len(fitting.reads) or (cut and not engine.causal):
            return self._result(encoded, np.zeros((0, self.recipe.logits), dtype=np.float32), 0)
        return self._result(encoded, engine.run(fitting.ids, fitting.reads), len(fitting.ids))

    def outside(self, problem: str, steps: Sequence[str]) -> str | None:
        """Why a record is plainly outside what the embedded default can judge; None if it is not.

        Always None for a package that was named, and with ``force``.
        """
        return None if self._domain is None else self._domain.outside(problem, steps)

    def _unscored(self, encoded: Encoded) -> StepScores:
        count = len(encoded.reads)
        empty = self._result(encoded, np.zeros((0, self.recipe.logits), dtype=np.float32), 0)
        return replace(empty, status=(OUT_OF_DOMAIN,) * count)

    def _fitting(self, encoded: Encoded) -> Encoded:
        """Cut a record after the last read position within the limit."""
        count = int(np.searchsorted(encoded.reads, self.max_tokens))
        end = int(encoded.reads[count - 1]) + 1 if count else 0
        return Encoded(ids=encoded.ids[:end], reads=encoded.reads[:count])

    def _result(self, encoded: Encoded, logits: NDArray[np.float32], n_run: int) -> StepScores:
        scores = scoring.scores_from_logits(logits, self.recipe.score)
        missing = len(encoded.reads) - len(scores)
        return StepScores(
            scores=(*(float(score) for score in scores), *(None,) * missing),
            status=(SCORED,) * len(scores) + (TOO_LONG,) * missing,
            threshold=self.threshold,
            n_tokens=len(encoded.ids),
            n_tokens_run=n_run,
            aggregates=self.recipe.aggregates,
            default_aggregate=self.recipe.aggregate,
            logits=(*(tuple(map(float, row)) for row in logits), *(None,) * missing),
        )

    def score_many(self, items: Iterable[tuple[str, Sequence[str]]]) -> list[StepScores]:
        """Score several solutions, in order, with the same numbers as one by one.

        Raises:
            InputTypeError, InputError, EngineError: as :meth:`score`, for the first bad item.
        """
        return [self.score(*pair) for pair in _pairs(items)]

    def rank(
        self, problem: str, candidates: Sequence[Sequence[str]], by: str | None = None
    ) -> Ranking:
        """Compare candidate solutions of one problem by an aggregate (the recipe's own if None).

        What candidates have in common at their beginning, the problem and the same first steps,
        is run once. Scores are those of :meth:`score`, to the bit.

        Raises:
            InputTypeError, InputError, EngineError: as :meth:`score`.
            ConfigError: when the recipe does not define the aggregate ``by``.
        """
        by = self.recipe.aggregate if by is None else by
        scoring.aggregate((), by, self.recipe.aggregates)  # refuse before any work is done
        check_text(problem, "problem")
        if isinstance(candidates, str | bytes) or not isinstance(candidates, Sequence):
            raise InputTypeError(
                f"candidates must be a list of lists of steps, got {type(candidates).__name__}"
            )
        checked = [check_steps(c, f"candidates[{index}]") for index, c in enumerate(candidates)]
        return rank_scores(self._score_candidates(problem, checked), by)

    def _score_candidates(
        self, problem: str, candidates: Sequence[Sequence[str]]
    ) -> tuple[StepScores, ...]:
        engine = self._open_engine()
        outside = any(self.outside(problem, steps) is not None for steps in candidates)
        if not isinstance(engine, DecoderEngine) or len(candidates) < 2 or outside:
            return tuple(self.score(problem, steps) for steps in candidates)
        encoded = [self._encoder.encode(problem, steps) for steps in candidates]
        runs = run_candidates(
            engine,
            [self._fitting(record) for record in encoded],
            prompt_tokens=len(self._encoder.encode_prompt(problem)),
            logits=self.recipe.logits,
        )
        return tuple(
            self._result(record, run.logits, run.n_tokens_run)
            for record, run in zip(encoded, runs, strict=True)
        )

    def session(self, problem: str) -> Session:
        """Start a solution that grows step by step; each step runs its own tokens only.

        Runs the problem, so that the first step is as quick as any other.

        Raises:
            InputTypeError, InputError: for a problem that cannot be encoded or leaves no room.
            EngineError: when the model fails.
        """
        problem = check_text(problem, "problem")
        track: Track
        if isinstance(self._open_engine(), DecoderEngine) and self._encoder.incremental:
            track = CachedTrack(
                problem,
                encoder=self._encoder,
                engine=self._open_decoder,
                score=self.recipe.score,
                max_tokens=self.max_tokens,
            )
        else:
            track = RescoredTrack(
                problem, encoder=self._encoder, score=self.score, max_tokens=self.max_tokens
            )
        if self._domain is not None:
            track = GuardedTrack(track, problem, self._domain)
        return Session(track, threshold=self.threshold)

    async def ascore(self, problem: str, steps: Sequence[str]) -> StepScores:
        """Await :meth:`score` without blocking the event loop; see :mod:`.awaiting`."""
        return await run_in_thread(self.score, problem, steps)

    async def ascore_many(self, items: Iterable[tuple[str, Sequence[str]]]) -> list[StepScores]:
        """Await :meth:`score_many`; ``items`` are taken in another thread."""
        return await run_in_thread(self.score_many, items)

    async def arank(
        self, problem: str, candidates: Sequence[Sequence[str]], by: str | None = None
    ) -> Ranking:
        """Await :meth:`rank`."""
        return await run_in_thread(self.rank, problem, candidates, by)

    async def asession(self, problem: str) -> Session:
        """Await :meth:`session`, which runs the problem."""
        return await run_in_thread(self.session, problem)

    def split(self, response: str) -> list[str]:
        """Cut a raw response into steps by the recipe's own rule; blank pieces are dropped."""
        return self._encoder.split(response)

    def self_test(self) -> float:
        """Score the stored cases; return the largest |difference| from torch's scores.

        Raises:
            SelfTestError: when it exceeds what the package allows for this variant.
        """
        tolerance = self._variant.proof.get(selftest.TOLERANCE_KEY)
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
            raise VariantError(
                f"variant {self._variant.name!r} records no {selftest.TOLERANCE_KEY}, so its "
                "self-test cannot be judged; export the checkpoint again"
            )
        cases = selftest.load_cases(self.package.read_bytes(SELFTEST_NAME))
        return selftest.check(cases, lambda p, s: self.score(p, s).scores, float(tolerance))

    def close(self) -> None:
        """Free the model. Scoring afterwards raises; closing twice does not."""
        self._engine = None

    def _open_engine(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise ConfigError("this Scorer is closed; load the package again with Scorer.load")
        return engine

    def _open_decoder(self) -> DecoderEngine:
        # a Scorer never changes its engine, except to close
        return cast(DecoderEngine, self._open_engine())

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pairs(items: object) -> Iterator[tuple[str, Sequence[str]]]:
    # callers without a type checker get a sentence, not an unpacking error
    if not isinstance(items, Iterable) or isinstance(items, str | bytes):
        raise InputTypeError(f"items must be pairs (problem, steps), got {type(items).__name__}")
    for index, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputTypeError(
                f"item {index} must be a pair (problem, steps), got {type(item).__name__}"
            )
        yield item[0], item[1]


def _package_path(path: str | os.PathLike[str] | None) -> tuple[str | os.PathLike[str], str]:
    if path is not None:
        return path, "argument"
    named = os.environ.get(PACKAGE_VARIABLE, "").strip()
    if named:
        return named, PACKAGE_VARIABLE
    embedded = Path(str(files("prm_edge_runtime"))) / "default_package"
    if embedded.is_dir():
        return embedded, EMBEDDED
    raise PackageNotFoundError(
        "no package was named and this build embeds none; pass its folder, or set "
        f"{PACKAGE_VARIABLE}; make one with: prm-edge export CHECKPOINT"
    )


def _device(device: str | None) -> str:
    source = "device" if device is not None else DEVICE_VARIABLE
    name = device if device is not None else os.environ.get(DEVICE_VARIABLE, "").strip() or "auto"
    if name not in DEVICES:
        raise ConfigError(f"{source} must be one of {', '.join(DEVICES)}; got {name!r}")
    return name


def _choose(package: Package, device: str, name: str | None) -> Variant:
    manifest = package.manifest
    if device != "auto":
        return choose_variant(manifest, device=device, name=name)
    if name is not None:
        return choose_variant(manifest, device=package.variant(name).device, name=name)
    has = {variant.device for variant in manifest.variants}
    device = "cuda" if "cuda" in has and (ort.cuda_available() or "cpu" not in has) else "cpu"
    logger.info("device auto: chose %s (the package has %s)", device, ", ".join(sorted(has)))
    return choose_variant(manifest, device=device, name=None)
