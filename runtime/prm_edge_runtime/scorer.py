"""Score the steps of worked solutions with a package: the public face of the runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, cast

from . import ort, scoring, selftest
from .awaiting import run_in_thread
from .choice import EMBEDDED, choose, device_asked, package_path
from .cuda_options import CudaOptions, cuda_options
from .domain import Domain, GuardedTrack, embedded_domain
from .encoding import RecipeEncoder, check_steps, check_text
from .engine import DecoderEngine, Engine, open_engine
from .errors import (
    ConfigError,
    DeviceError,
    EngineError,
    InputError,
    InputTypeError,
)
from .kinds import known_kinds
from .lengths import ERROR, NULL, check_policy, fit
from .manifest import SELFTEST_NAME, TOKENIZER_NAME, Variant
from .overlap import Overlap
from .package import Package, choose_variant, open_package
from .prefixes import PrefixCache, PrefixCounters, limit_bytes
from .reading import Reading
from .recipe import Recipe
from .records import Prepared, pairs, run_prepared
from .results import OUT_OF_DOMAIN, Ranking, StepScores
from .results import rank as rank_scores
from .session import Session
from .tracks import CachedTrack, RescoredTrack, Track

logger = logging.getLogger("prm_edge")

# What `score_many` looks at before it runs it: enough to find records that belong together.
AHEAD_RECORDS: Final = 256
AHEAD_TOKENS: Final = 1 << 16


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
        *,
        prefix_cache_mb: float = 0,
    ) -> None:
        self.package: Final = package
        self.source: Final = source
        self.recipe: Final[Recipe] = package.manifest.recipe
        self.max_tokens: Final = package.manifest.max_tokens
        self.threshold: Final = package.manifest.threshold(variant.name)
        self._reading = Reading(recipe=self.recipe, error_kinds=package.manifest.error_kinds)
        self._domain = domain
        self._variant = variant
        self._engine: Engine | None = engine
        self._encoder = RecipeEncoder(package.read_bytes(TOKENIZER_NAME), self.recipe)
        if variant.prefix is not None:
            self._encoder.check_opening(variant.prefix.ids)
        limit = limit_bytes(prefix_cache_mb)
        self._prefixes = PrefixCache(limit) if limit and isinstance(engine, DecoderEngine) else None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        variant: str | None = None,
        threads: int | None = None,
        verify: str = "auto",
        self_test: bool | None = None,
        force: bool = False,
        prefix_cache_mb: float = 0,
        cuda: CudaOptions | None = None,
    ) -> Scorer:
        """Open a package and its best variant for the device.

        Args:
            path: package folder; without one ``PRM_EDGE_PACKAGE``, else the embedded default.
            device: ``cpu``; ``cuda``, which never falls back; or ``auto``, which takes CUDA when
                the package and the machine have it. Without one ``PRM_EDGE_DEVICE``, else auto.
            variant: a variant's name, instead of the best one for the device. The fp16 variant of
                a GPU runs on the CPU too when ``device="cpu"`` is said, to check it.
            threads: threads of one run; without it ``PRM_EDGE_THREADS``, else every core.
            verify: ``auto``, ``full`` or ``sizes``; see :func:`.package.open_package`.
            self_test: score the package's stored cases first and compare with torch's scores;
                without it on CUDA alone, whose kernels nothing has checked on this machine.
            force: with the embedded default, score what is plainly outside its domain too;
                without it such records get None and the status ``out_of_domain``.
            prefix_cache_mb: memory for what calls after this one may have in common with those
                before, 0 for none. Changes no score; see :attr:`prefix_cache`. On CUDA it is memory
                of the GPU.
            cuda: which GPU, how much of its memory, which stream; without it ``PRM_EDGE_CUDA``,
                as in ``gpu=1,memory_limit_mb=6000``, else the defaults.

        Raises:
            PackageError: no such package, damaged files, or no variant for this device.
            DeviceError: the device asked for cannot be had, or onnxruntime is not installed.
            ConfigError: an option or environment variable with an impossible value.
            SelfTestError: this machine does not reproduce the stored scores.
        """
        limit_bytes(prefix_cache_mb)  # refuse before any work is done
        where, source = package_path(path)
        package = open_package(where, verify=verify)
        asked = device_asked(device)
        chosen = choose(package, asked, variant)
        options: dict[str, Any] = {
            "threads": threads,
            "source": source,
            "force": force,
            "prefix_cache_mb": prefix_cache_mb,
            "cuda": cuda_options(cuda),
        }
        try:
            scorer = cls.from_package(package, chosen, **options)
        except (DeviceError, EngineError) as error:
            has = {other.device for other in package.manifest.variants}
            if asked != "auto" or variant is not None or chosen.device == "cpu" or "cpu" not in has:
                raise
            logger.warning("device auto: %s cannot be used (%s); taking cpu", chosen.device, error)
            chosen = choose_variant(package.manifest, device="cpu", name=None)
            scorer = cls.from_package(package, chosen, **options)
        if chosen.proof.get("allowed_drift"):
            logger.warning(
                "variant %s of %s was exported with --allow-drift: its scores differ from "
                "torch's by more than the budget",
                chosen.name,
                package.manifest.name,
            )
        if self_test or (self_test is None and chosen.device == "cuda"):
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
        prefix_cache_mb: float = 0,
        cuda: CudaOptions | None = None,
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
            kinds=len(package.manifest.error_kinds),
            threads=ort.thread_count(threads),
            options=cuda_options(cuda),
            max_tokens=package.manifest.max_tokens,
        )
        # who names a package knows what it is for; who takes the default may not
        domain = embedded_domain(package) if source == EMBEDDED and not force else None
        return cls(package, variant, engine, source, domain, prefix_cache_mb=prefix_cache_mb)

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``: where the session really runs."""
        return self._variant.device

    @property
    def variant(self) -> str:
        """The name of the variant that runs."""
        return self._variant.name

    @property
    def error_kinds(self) -> tuple[str, ...] | None:
        """The kinds of error that a step can be given, None where the package names none."""
        return known_kinds(self.package.manifest.error_kinds) or None

    @property
    def prefix_cache(self) -> PrefixCounters:
        """How often the prefix cache helped, and what it holds; zeros where there is none."""
        return self._prefixes.counters if self._prefixes else PrefixCounters()

    def score(self, problem: str, steps: Sequence[str], *, on_too_long: str = ERROR) -> StepScores:
        """Score every step of one solution.

        Args:
            on_too_long: what to do when a step ends beyond ``max_tokens``: ``error``; ``null``, no
                score from there on (nor before, where the model is not causal); or ``window``, the
                rest is scored with the problem and the steps just before it. ``status`` says which.

        Raises:
            InputTypeError: for one string instead of a list; cut it with :meth:`split`.
            InputError: for text that cannot be encoded, and for a step beyond ``max_tokens``.
            ConfigError: when there is no such policy.
            EngineError: when the model fails or returns a number that is none.
        """
        policy = check_policy(on_too_long)
        return self._run([self._prepared(problem, steps, policy)])[0]

    def prepare(self, problem: str, steps: Sequence[str], *, on_too_long: str = ERROR) -> Prepared:
        """Do what of :meth:`score` needs no model: check and encode, for :meth:`score_prepared`.

        For who has a thread for the model and others beside it. Raises as :meth:`score` does.
        """
        return self._prepared(problem, steps, check_policy(on_too_long))

    def score_prepared(self, prepared: Sequence[Prepared]) -> list[StepScores]:
        """Score what :meth:`prepare` returned, together, with the numbers of :meth:`score_many`.

        Raises:
            EngineError: when the model fails or returns a number that is none.
        """
        return self._run(prepared)

    def outside(self, problem: str, steps: Sequence[str]) -> str | None:
        """Why a record is plainly outside what the embedded default can judge; None if it is not.

        Always None for a package that was named, and with ``force``.
        """
        return None if self._domain is None else self._domain.outside(problem, steps)

    def score_many(
        self, items: Iterable[tuple[str, Sequence[str]]], *, on_too_long: str = ERROR
    ) -> list[StepScores]:
        """Score several solutions, in order, with the same numbers as one by one.

        What records near each other have in common is run once, and short ones are run together.
        Memory is bounded: a few hundred records are looked at ahead, a few hundred tokens run. On
        a GPU the next few hundred are encoded while these run.

        Raises:
            InputTypeError, InputError, ConfigError, EngineError: as :meth:`score`.
        """
        policy = check_policy(on_too_long)
        ahead: list[Prepared] = []
        n_tokens = 0
        with Overlap(self._run, beside=self.device != "cpu") as runs:
            for index, (problem, steps) in enumerate(pairs(items)):
                ahead.append(self._prepared(problem, steps, policy, f"item {index}: "))
                n_tokens += len(ahead[-1].encoded.ids)
                if len(ahead) >= AHEAD_RECORDS or n_tokens >= AHEAD_TOKENS:
                    runs.put(ahead)
                    ahead, n_tokens = [], 0
            runs.put(ahead)
        return runs.found

    def rank(
        self,
        problem: str,
        candidates: Sequence[Sequence[str]],
        by: str | None = None,
        *,
        on_too_long: str = ERROR,
    ) -> Ranking:
        """Compare candidate solutions of one problem by an aggregate (the recipe's own if None).

        What candidates have in common at their beginning, the problem and the same first steps,
        is run once. Scores are those of :meth:`score`, to the bit.

        Raises:
            InputTypeError, InputError, EngineError: as :meth:`score`; also for no candidates.
            ConfigError: when the recipe does not define the aggregate ``by``, or as :meth:`score`.
        """
        by = self.recipe.aggregate if by is None else by
        scoring.aggregate((), by, self.recipe.aggregates)  # refuse before any work is done
        policy = check_policy(on_too_long)
        check_text(problem, "problem")
        if isinstance(candidates, str | bytes) or not isinstance(candidates, Sequence):
            raise InputTypeError(
                f"candidates must be a list of lists of steps, got {type(candidates).__name__}"
            )
        if not candidates:
            raise InputError("there are no candidates to compare; pass one or more lists of steps")
        checked = [check_steps(c, f"candidates[{index}]") for index, c in enumerate(candidates)]
        prepared = [
            self._prepared(problem, steps, policy, f"candidates[{index}]: ")
            for index, steps in enumerate(checked)
        ]
        return rank_scores(tuple(self._run(prepared)), by)

    def _prepared(
        self,
        problem: str,
        steps: Sequence[str],
        on_too_long: str,
        what: str = "",
        *,
        guarded: bool = True,
    ) -> Prepared:
        encoded = self._encoder.encode(problem, steps)
        causal = self._open_engine().causal
        if guarded and self.outside(problem, steps) is not None:
            return Prepared(encoded=encoded, parts=(), prompt_tokens=0, missing=OUT_OF_DOMAIN)
        parts = fit(
            self._encoder,
            problem,
            steps,
            encoded,
            max_tokens=self.max_tokens,
            causal=causal,
            on_too_long=on_too_long,
            what=what,
        )
        prompt = self._encoder.prompt_tokens(problem, encoded) if self._prefixes else 0
        return Prepared(encoded=encoded, parts=parts, prompt_tokens=prompt)

    def _run(self, prepared: Sequence[Prepared]) -> list[StepScores]:
        return run_prepared(
            self._open_engine(),
            prepared,
            reading=self._reading,
            threshold=self.threshold,
            prefixes=self._prefixes,
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
                reading=self._reading,
                max_tokens=self.max_tokens,
                prefixes=self._prefixes,
            )
        else:
            track = RescoredTrack(
                problem,
                encoder=self._encoder,
                score=partial(self.score, on_too_long=NULL),
                max_tokens=self.max_tokens,
            )
        if self._domain is not None:
            track = GuardedTrack(track, problem, self._domain)
        return Session(track, reading=self._reading, threshold=self.threshold)

    async def ascore(
        self, problem: str, steps: Sequence[str], *, on_too_long: str = ERROR
    ) -> StepScores:
        """Await :meth:`score` without blocking the event loop; see :mod:`.awaiting`."""
        return await run_in_thread(self.score, problem, steps, on_too_long=on_too_long)

    async def ascore_many(
        self, items: Iterable[tuple[str, Sequence[str]]], *, on_too_long: str = ERROR
    ) -> list[StepScores]:
        """Await :meth:`score_many`; ``items`` are taken in another thread."""
        return await run_in_thread(self.score_many, items, on_too_long=on_too_long)

    async def arank(
        self,
        problem: str,
        candidates: Sequence[Sequence[str]],
        by: str | None = None,
        *,
        on_too_long: str = ERROR,
    ) -> Ranking:
        """Await :meth:`rank`."""
        return await run_in_thread(self.rank, problem, candidates, by, on_too_long=on_too_long)

    async def asession(self, problem: str) -> Session:
        """Await :meth:`session`, which runs the problem."""
        return await run_in_thread(self.session, problem)

    def split(self, response: str) -> list[str]:
        """Cut a raw response into steps by the recipe's own rule; blank pieces are dropped."""
        return self._encoder.split(response)

    def self_test(self) -> float:
        """Score the stored cases; return the largest |difference| from torch's scores.

        Where errors are named, what is named is compared too.

        Raises:
            SelfTestError: when one exceeds what the package allows for this variant.
        """
        engine = self._open_engine()
        replays = isinstance(engine, DecoderEngine) and engine.replays

        def in_session(problem: str, steps: Sequence[str]) -> list[float | None]:
            with self.session(problem) as session:
                return [session.add(step) for step in steps]

        return selftest.run(
            self.package.read_bytes(SELFTEST_NAME),
            self._variant,
            # what the machine computes is tested, whether or not its cases are in the domain
            lambda problem, steps: self._run(
                [self._prepared(problem, steps, ERROR, guarded=False)]
            )[0],
            in_session if replays else None,
        )

    def close(self) -> None:
        """Free the model. Scoring afterwards raises; closing twice does not."""
        self._engine = self._prefixes = None

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
