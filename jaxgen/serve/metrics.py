"""Counters of a server in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from jaxgen.serve.tickets import Stats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one app; engines: {name: what gives its `Stats`}; routes: its paths."""

    def __init__(self, engines: Mapping[str, Callable[[], Stats]], routes: Collection[str]) -> None:
        import prometheus_client as prometheus

        self.routes = routes
        self.registry = prometheus.CollectorRegistry()
        about: Any = {"registry": self.registry}
        self.requests = prometheus.Counter(
            "jaxgen_requests", "Requests that have ended.", ["route", "status"], **about
        )
        self.running = prometheus.Gauge("jaxgen_requests_running", "Requests now.", **about)
        self.seconds = prometheus.Histogram(
            "jaxgen_request_seconds", "From a request to its end.", buckets=_SECONDS, **about
        )
        self.first = prometheus.Histogram(
            "jaxgen_first_token_seconds", "To the first token.", buckets=_SECONDS, **about
        )
        self.tokens = prometheus.Counter(
            "jaxgen_tokens", "Tokens of prompts and of texts.", ["model", "kind"], **about
        )
        self.registry.register(_Engines(engines))

    def done(self, scope: Any, status: int, seconds: float) -> None:
        """Count a request."""
        route = scope["path"] if scope["path"] in self.routes else "other"
        self.requests.labels(route, str(status)).inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all of them."""
        import prometheus_client as prometheus

        return prometheus.generate_latest(self.registry)


class _Engines:
    """What the engines count, read when it is asked for."""

    def __init__(self, engines: Mapping[str, Callable[[], Stats]]) -> None:
        self.engines = engines

    def collect(self) -> Iterable[Any]:
        """Yield a gauge for each number."""
        from prometheus_client.core import GaugeMetricFamily

        counts = {model: stats() for model, stats in self.engines.items()}
        for number, key in enumerate(Stats._fields):
            about = f"jaxgen_engine_{key}", f"{key} of the engine"
            family = GaugeMetricFamily(*about, labels=["model"])
            for model, stats in counts.items():
                family.add_metric([model], float(stats[number]))
            yield family
