"""Numbers of a server in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linscale.generate.engine import Stats

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted of the requests; what the engine counts is read from `stats` when it is asked for."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "linscale_requests", "Requests by path and status.", ("path", "status"), registry=self._registry
        )
        self.first_token_s = Histogram(
            "linscale_time_to_first_token_seconds",
            "From a request to its first token.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.text_s = Histogram(
            "linscale_text_seconds", "From a request to the end of its text.", buckets=SECONDS, registry=self._registry
        )
        self._registry.register(_OfEngine(stats))

        self._mean_text_s = 1.0

    def text_ended(self, seconds: float) -> None:
        """Count a text that was written to its end."""
        self.text_s.observe(seconds)
        self._mean_text_s += (seconds - self._mean_text_s) / 16

    def mean_text_s(self) -> float:
        """How long the last texts took, those of long ago counting less."""
        return self._mean_text_s

    def text(self) -> bytes:
        """The answer of /metrics."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, value, help_text in (
            ("slots", stats.slots, "Texts that can be written at once."),
            ("running", stats.running, "Texts that are written now."),
            ("reading", stats.reading, "Texts whose prompt is read now."),
            ("waiting", stats.waiting, "Texts that wait for a slot."),
            ("state_bytes", stats.state_bytes, "Memory of one slot."),
            ("step_seconds", stats.step_s, "Between the ends of the last two steps."),
        ):
            yield GaugeMetricFamily(f"linscale_{name}", help_text, value=value)
        for name, value, help_text in (
            ("tokens_read", stats.tokens_read, "Tokens of prompts."),
            ("tokens_made", stats.tokens_made, "Tokens written."),
            ("steps", stats.steps, "Decoding steps."),
        ):
            yield CounterMetricFamily(f"linscale_{name}", help_text, value=value)

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known from `collect`."""
        return iter(())


class CountRequests:
    """Counts every request by the path that it matched and the status that it got."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # the client left before an answer

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = scope.get("route")
            self._metrics.requests.labels(getattr(route, "path", "other"), str(status)).inc()
