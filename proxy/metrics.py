"""Counters of turns for Prometheus. With several workers any of them tells the sum of all, from files they share."""

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from proxy.messages import BotLoad, TurnRecord

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

        self._of = cache(self._labelled)  # to look a label up takes longer than to count
        self._running = self._gauge("parley_turns_running", "Turns that a bot is answering", "model")
        self._waiting = self._gauge("parley_turns_waiting", "Turns in line for a bot", "model")
        self._resting = self._gauge("parley_bot_resting", "1 while a bot that kept failing is left alone", "model")
        self._tasks = self._gauge("parley_tasks", "Tasks of the event loop")
        if not self.shared:
            ProcessCollector(registry=registry)  # memory, processor time and files, where the system tells

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, labels, registry=self._registry, multiprocess_mode="livesum")

    @property
    def shared(self) -> bool:
        """Whether this process is one of several, which must look themselves for the others to tell."""
        return SHARED in os.environ

    def look(self, loads: Iterable[BotLoad]) -> None:
        """Set what is told of this moment."""
        for load in loads:
            self._running.labels(load.model).set(load.running)
            self._waiting.labels(load.model).set(load.waiting)
            self._resting.labels(load.model).set(load.resting)
        self._tasks.set(len(asyncio.all_tasks()))

    def __call__(self, record: TurnRecord) -> None:
        """Count one turn that has ended."""
        turns, parked, renamed, deltas, first, whole = self._of(record.model, record.how, record.reason, record.outcome)
        turns.inc()
        deltas.inc(record.deltas)
        if record.parked:
            parked.inc()
        if record.renamed:
            renamed.inc()
        if record.first_delta is not None:
            first.observe(record.first_delta - record.started)
        if record.ended is not None:
            whole.observe(record.ended - record.started)

    def _labelled(
        self, model: str, how: str, reason: str, outcome: str
    ) -> tuple[Counter, Counter, Counter, Counter, Histogram, Histogram]:
        counters = (self._parked, self._renamed, self._deltas)
        parked, renamed, deltas = (counter.labels(model) for counter in counters)
        turns = self._turns.labels(model, how, reason, outcome)
        return turns, parked, renamed, deltas, self._first.labels(model), self._whole.labels(model)

    def text(self) -> bytes:
        """All of it in Prometheus' text form; `content_type` is its type."""
        folder = os.environ.get(SHARED)
        if folder is None or not Path(folder).is_dir():
            return generate_latest(self._registry)
        for file in Path(folder).glob("gauge_live*.db"):
            _forget_dead(int(file.stem.rpartition("_")[2]), folder)
        shared = CollectorRegistry()
        MultiProcessCollector(shared, path=folder)  # type: ignore[no-untyped-call] # its library has left it out
        return generate_latest(shared)


def _forget_dead(pid: int, folder: str) -> None:
    """What a worker that died was doing is not going on any more."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # if there is one of this id, it is somebody else's
        with suppress(FileNotFoundError):  # another worker was quicker
            mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
