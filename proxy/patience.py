"""Deadlines that are put off again and again, as those of a stream are, and that hardly ever strike.

asyncio's own set a timer for each wait and take it back, which adds up where every piece of a stream is waited for.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Self


class Alarm:
    """Calls `strike` at the moment it is set to, on the event loop's clock. A timer that comes too early is moved."""

    def __init__(self, strike: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._strike = strike
        self._at = self._looks_at = inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Strike then, and not when it was to strike before; `inf` is never."""
        self._at = at
        if at < self._looks_at:
            self._look_at(at)

    def end(self) -> None:
        """Never strike again, and let go of whom it would strike: the two know each other."""
        self._strike = lambda: None
        if self._timer is not None:
            self._timer.cancel()

    def _look_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = at
        self._timer = self.loop.call_at(at, self._look)

    def _look(self) -> None:
        looked_at, self._looks_at = self._looks_at, inf
        if self._at == inf:
            return
        if looked_at < self._at:
            self._look_at(self._at)
            return
        self._at = inf
        self._strike()


class Patience:
    """asyncio.timeout for waits that follow each other, each of the task that waits.

    Raises TimeoutError as that does: where this, and nobody else, has cancelled the wait.
    """

    def __init__(self) -> None:
        self._alarm = Alarm(self._strike)
        self._task: asyncio.Task[object] | None = None  # the task that waits, while one does
        self._struck = False

    def until(self, at: float) -> Self:
        """The next wait, as a context: at most until this moment on the event loop's clock."""
        self._alarm.set(at)
        return self

    def end(self) -> None:
        """Nothing will be waited for any more."""
        self._alarm.end()

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task(self._alarm.loop)
        assert task is not None
        self._cancelling = task.cancelling()

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        task, self._task = self._task, None
        if self._struck and task is not None:
            self._struck = False
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from fault

    def _strike(self) -> None:
        if self._task is not None:
            self._struck = True
            self._task.cancel()
