"""Counters of a server in the form that Prometheus reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models"),
    *("/tokenize", "/detokenize", "/score", "/health", "/ready", "/metrics", "/"),
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one app; engines: {name: what gives its `Stats`}."""

    def __init__(self, engines: Mapping[str, Callable[[], Any]]) -> None:
        import prometheus_client as prometheus

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
        route = scope["path"] if scope["path"] in ROUTES else "other"
        self.requests.labels(route, str(status)).inc()
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all of them."""
        import prometheus_client as prometheus

        return prometheus.generate_latest(self.registry)


class _Engines:
    """What the engines count, read when it is asked for."""

    def __init__(self, engines: Mapping[str, Callable[[], Any]]) -> None:
        self.engines = engines

    def collect(self) -> Iterable[Any]:
        """Yield a gauge for each number."""
        from prometheus_client.core import GaugeMetricFamily

        rows: dict[str, list[tuple[str, float]]] = {}
        for name, stats in self.engines.items():
            for key, value in _numbers(stats()):
                rows.setdefault(key, []).append((name, value))
        for key, found in rows.items():
            family = GaugeMetricFamily(
                f"jaxgen_engine_{key}", f"{key} of the engine", labels=["model"]
            )
            for name, value in found:
                family.add_metric([name], value)
            yield family


def _numbers(stats: Any) -> list[tuple[str, float]]:
    if dataclasses.is_dataclass(stats):
        about: Any = {one.name: getattr(stats, one.name) for one in dataclasses.fields(stats)}
    else:
        as_dict = getattr(stats, "_asdict", None)
        about = dict(stats) if as_dict is None else as_dict()
    return [(k, float(v)) for k, v in about.items() if isinstance(v, int | float)]
