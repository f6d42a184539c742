"""What `/metrics` tells, in the text format of Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """The counters of one server; names begin with `seqtune_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": "seqtune", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **own)
        self.latency = Histogram(
            "request_seconds", "From a request's head to its last byte.", ["route"], buckets=SECONDS, **own
        )
        self.tokens = Counter("tokens", "Tokens read (prompt) and written (completion).", ["run", "kind"], **own)
        self.batch = Histogram("batch_rows", "Inputs decoded together, by step.", buckets=ROWS, **own)
        self.cancelled = Counter("cancelled_inputs", "Inputs given up: a client hung up, or time was over.", **own)
        self.reloads = Counter("reloads", "Runs loaded anew.", ["run"], **own)
        self.waiting = Gauge("waiting_inputs", "Inputs that wait to be decoded.", **own)
        self.active = Gauge("active_inputs", "Inputs that are being decoded.", **own)

    def text(self) -> bytes:
        """All of them, as Prometheus reads it."""
        return generate_latest(self.registry)
