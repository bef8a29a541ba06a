"""Counters of turns for Prometheus. With several workers any of them tells the sum of all, from files they share."""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from proxy.messages import TurnRecord

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # set before this module is imported: the folder of the files workers share

SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)


class Metrics:
    """A sink for turn records. Labels are names of the configuration and our own words, so their number is bounded."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._turns = Counter(
            "parley_turns",
            "Turns by how their conversation was found, and how they ended",
            ("model", "conversation", "reason", "outcome"),
            registry=registry,
        )
        self._parked = Counter("parley_handles_parked", "Conversations parked", ("model",), registry=registry)
        self._renamed = Counter(
            "parley_handles_renamed", "Conversations whose id the vendor changed", ("model",), registry=registry
        )
        self._deltas = Counter("parley_deltas", "Pieces of replies", ("model",), registry=registry)
        self._first = Histogram(
            "parley_first_delta_seconds", "Until a reply's first piece", ("model",), registry=registry, buckets=SECONDS
        )
        self._whole = Histogram(
            "parley_turn_seconds", "Until a turn's end", ("model",), registry=registry, buckets=SECONDS
        )

    def __call__(self, record: TurnRecord) -> None:
        """Count one turn that has ended."""
        self._turns.labels(record.model, record.how, record.reason, record.outcome).inc()
        self._parked.labels(record.model).inc(record.parked)
        self._renamed.labels(record.model).inc(record.renamed)
        self._deltas.labels(record.model).inc(record.deltas)
        if record.first_delta is not None:
            self._first.labels(record.model).observe(record.first_delta - record.started)
        if record.ended is not None:
            self._whole.labels(record.model).observe(record.ended - record.started)

    def text(self) -> bytes:
        """All of it in Prometheus' text form; `content_type` is its type."""
        folder = os.environ.get(SHARED)
        if folder is None or not Path(folder).is_dir():
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared, path=folder)  # type: ignore[no-untyped-call] # its library has left it out
        return generate_latest(shared)
