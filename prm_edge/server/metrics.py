"""What the server counts, under Prometheus' naming rules: base units, ``_total`` on counters.

Labels take few values, whatever clients send: a path that is no route is ``other``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prm_edge_runtime.prefixes import PrefixCounters

    from .queue import FairQueue

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
METHODS: Final = ("GET", "HEAD", "POST", "DELETE")
OTHER: Final = "other"


# name -> the counter of the runtime, its kind, and what it says
PREFIX_CACHE: Final[tuple[tuple[str, str, type[Metric], str], ...]] = (
    ("lookups", "lookups", CounterMetricFamily, "Problems and solutions that were looked up."),
    ("hits", "hits", CounterMetricFamily, "Of those, the ones of which a beginning was there."),
    ("saved_tokens", "tokens_saved", CounterMetricFamily, "Tokens that were not run again."),
    ("bytes", "bytes", GaugeMetricFamily, "What the prefix cache holds."),
    ("limit_bytes", "limit_bytes", GaugeMetricFamily, "What it may hold; 0 where there is none."),
)


class PrefixCollector(Collector):
    """The runtime's own counters of its prefix cache, read when they are asked for."""

    def __init__(self, counters: Callable[[], PrefixCounters]) -> None:
        self._counters: Final = counters

    def collect(self) -> Iterator[Metric]:
        """One metric for each row of the table."""
        counters = self._counters()
        for name, field, kind, text in PREFIX_CACHE:
            yield kind(f"prm_edge_prefix_cache_{name}", text, value=getattr(counters, field))  # type: ignore[call-arg]


class Metrics:
    """The metrics of one server, apart from any other in the process."""

    def __init__(
        self, about: dict[str, str], prefixes: Callable[[], PrefixCounters] | None = None
    ) -> None:
        self.registry: Final = CollectorRegistry()
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        registry = self.registry
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "prm_edge_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "prm_edge_request_duration_seconds",
            "From the first byte of a request's head to its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.refused = Counter(
            "prm_edge_refused_requests",
            "Requests answered with an error, by its code.",
            ("code",),
            registry=registry,
        )
        self.abandoned = Counter(
            "prm_edge_abandoned_requests",
            "Requests whose client went before the answer.",
            registry=registry,
        )
        self.queue_requests = Gauge(
            "prm_edge_queue_requests", "Requests that wait for the model.", registry=registry
        )
        self.queue_tokens = Gauge(
            "prm_edge_queue_tokens", "About how many tokens wait.", registry=registry
        )
        self.queue_wait = Histogram(
            "prm_edge_queue_wait_seconds",
            "From the queue to the model.",
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "prm_edge_scored_tokens", "Tokens of the solutions scored.", registry=registry
        )
        self.tokens_run = Counter(
            "prm_edge_run_tokens",
            "Tokens the model ran, without those that it had run before.",
            registry=registry,
        )
        self.batches = Counter("prm_edge_batches", "Runs of the model.", registry=registry)
        self.busy_seconds = Counter(
            "prm_edge_busy_seconds", "Time that the model ran.", registry=registry
        )
        self.sessions = Gauge("prm_edge_sessions", "Live sessions.", registry=registry)
        self.session_bytes = Gauge(
            "prm_edge_session_bytes",
            "The most that live sessions hold, shared parts counted for each.",
            registry=registry,
        )
        self.sessions_expired = Counter(
            "prm_edge_expired_sessions",
            "Sessions that nobody used for too long.",
            registry=registry,
        )
        info = Gauge("prm_edge_info", "What is served.", tuple(about), registry=registry)
        info.labels(**about).set(1)
        if prefixes is not None:
            registry.register(PrefixCollector(prefixes))

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)

    def watch(self, queue: FairQueue) -> None:
        """Tell how full a queue is whenever somebody asks."""
        self.queue_requests.set_function(lambda: queue.requests)
        self.queue_tokens.set_function(lambda: queue.tokens)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer."""
        at = (route, method if method in METHODS else OTHER, status)
        known = self._known.get(at)
        if known is None:  # finding the metrics of labels takes longer than counting
            known = self._known[at] = (
                self.requests.labels(route, at[1], str(status)),
                self.request_seconds.labels(route),
            )
        known[0].inc()
        known[1].observe(seconds)
