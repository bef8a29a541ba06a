"""Worker processes on one listening socket: forked, told when to end, replaced when they die.

Knows nothing of what they serve: each gets a line to its parent and does its work. A worker says READY over it once it
accepts requests; the parent says DRAIN and HANG_UP. Its end means that the other side is dead, however it died.
"""

import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from proxy.telemetry import log

READY, DRAIN, HANG_UP = b"r", b"d", b"h"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LONG_LIFE = 10.0  # seconds; who dies after them is replaced at once
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds before others are, doubled each time

Work = Callable[[socket.socket], None]


class NotStarted(Exception):
    """There is no worker, or one ended before all of them were ready."""


@dataclass(eq=False)
class _Worker:
    pid: int
    line: socket.socket
    born: float = field(default_factory=time.monotonic)
    ready: bool = False


class Workers:
    """`count` processes that do `work`; `announce` is called once, when all of them are ready."""

    def __init__(self, listener: socket.socket, count: int, work: Work, announce: Callable[[], None]) -> None:
        self._listener = listener
        self._count = count
        self._work = work
        self._announce = announce
        self._workers: list[_Worker] = []
        self._announced = self._stopping = False
        self._pause = 0.0
        self._due: list[float] = []  # when those that died are to be replaced

    def run(self) -> None:
        """Returns when all have ended after a signal. Whatever else ends it, no worker is left behind."""
        gc.freeze()  # a collector that visits what the parent made would unshare its pages in every worker
        with self._signals_heard() as alarm:
            try:
                for _ in range(self._count):
                    self._start(alarm)
                while not self._stopping:
                    self._wait(alarm)
                    self._replace(alarm)
            finally:
                self._stop(signal.SIGTERM)
                while self._workers:
                    self._wait(alarm)

    @contextmanager
    def _signals_heard(self) -> Iterator[socket.socket]:
        """Their numbers can be read from the socket, so that one `select` waits for all that may happen."""
        alarm, bell = socket.socketpair()
        bell.setblocking(False)
        with alarm, bell:
            before = [signal.signal(number, lambda *_: None) for number in SIGNALS]
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody can be waited for
            waking = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
            try:
                yield alarm
            finally:
                signal.set_wakeup_fd(waking)
                for number, handler in zip(SIGNALS, before, strict=True):
                    signal.signal(number, handler)

    def _start(self, alarm: socket.socket) -> None:
        # A signal that came between fork and `_live` would ring the parent's bell from within the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            line, far_end = socket.socketpair()
            with far_end:
                pid = self._fork(line)
                if pid == 0:
                    self._live(far_end, [alarm, line, *(worker.line for worker in self._workers)])
        except OSError as fault:
            raise NotStarted(f"a worker process cannot be started ({fault.strerror})") from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._workers.append(_Worker(pid, line))

    @staticmethod
    def _fork(line: socket.socket) -> int:
        try:
            return os.fork()
        except OSError:
            line.close()
            raise

    def _replace(self, alarm: socket.socket) -> None:
        while self._due and self._due[0] <= time.monotonic():
            self._due.pop(0)
            try:
                self._start(alarm)
            except NotStarted as fault:
                log.error(str(fault), extra={"parley": {"pause": self._later()}})

    def _later(self, lived: float = 0.0) -> float:
        """Somebody is to be replaced; returns in how many seconds."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE) if lived < LONG_LIFE else 0.0
        self._due = sorted([*self._due, time.monotonic() + self._pause])
        return self._pause

    def _live(self, line: socket.socket, parents: list[socket.socket]) -> NoReturn:
        """A worker's whole life. What the parent holds is let go of: its death is to be noticed by all."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent to pass on
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for held in parents:
                held.close()
            self._work(line)
            code = 0
        except BaseException as fault:  # noqa: BLE001 - nothing may climb up into what was the parent's stack
            if not isinstance(fault, SystemExit):
                log.error("a worker failed", extra={"parley": {"pid": os.getpid()}}, exc_info=fault)
        finally:
            os._exit(code)

    def _wait(self, alarm: socket.socket) -> None:
        """Until something happens, or somebody is due to be replaced."""
        timeout = max(0.0, self._due[0] - time.monotonic()) if self._due else None
        heard, _, _ = select.select([alarm, *(worker.line for worker in self._workers)], [], [], timeout)
        if alarm in heard:
            for number in alarm.recv(64):
                self._stop(number)
        for worker in [worker for worker in self._workers if worker.line in heard]:
            if self._said(worker):
                worker.ready = True
                self._tell_if_ready()
            else:
                self._bury(worker)

    def _said(self, worker: _Worker) -> bytes:
        try:
            return worker.line.recv(1)
        except OSError:  # it died before it had read what it was told
            return b""

    def _tell_if_ready(self) -> None:
        if not self._announced and not self._stopping and all(worker.ready for worker in self._workers):
            self._announced = True
            self._announce()

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.line.close()
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if self._stopping:
            return
        if not self._announced:
            raise NotStarted("a worker process ended before it could serve: its log, above, says why")
        pause = self._later(time.monotonic() - worker.born)
        told = {"pid": worker.pid, "exit_code": code, "pause": pause}
        log.log(logging.ERROR if code else logging.WARNING, "a worker ended and is replaced", extra={"parley": told})

    def _stop(self, number: int) -> None:
        """Once is to drain, again by Ctrl-C to hang up."""
        told = DRAIN if not self._stopping else HANG_UP if number == signal.SIGINT else b""
        self._stopping = True
        self._due.clear()
        self._listener.close()  # the port is open for as long as a worker listens
        for worker in self._workers:
            with suppress(OSError):  # it has just died
                worker.line.send(told)
