"""An event loop whose time passes only when told: nothing sleeps, and every step ends when there is nothing to do."""

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

START = 1000.0
PATIENCE = 0.05  # real seconds for one look at real sockets and threads, while somebody waits for these


class _Idle(selectors.BaseSelector):
    """A selector that asks what to do instead of waiting."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.idle: Callable[[float | None], float] = lambda timeout: 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        return self._real.select(self.idle(timeout))

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class TimelessLoop(asyncio.SelectorEventLoop):
    """`settle` runs all there is to run, and lets as much time pass as it is told, timer by timer.

    While `busy` says that real I/O is under way no time passes, and the loop waits for that instead.
    """

    def __init__(self) -> None:
        self._now = START
        self._until = START
        self._quiet: deque[asyncio.Future[None]] = deque()
        self._doing: asyncio.Task[Any] | None = None
        self.busy: Callable[[], bool] = lambda: False
        selector = _Idle()
        super().__init__(selector)
        self._clock_resolution = 1e-6  # what is less than that ahead is due: after months floats tell no less apart
        selector.idle = self._idle

    def time(self) -> float:
        return self._now

    def settle(self, seconds: float = 0) -> None:
        """Run until nothing is left to do before `seconds` from now."""
        self._until = self._now + seconds
        self.run_forever()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something to its end, and what else there is to run, letting no time pass."""
        self._doing = task = self.create_task(work)
        self.settle()
        return task.result()

    def quiet(self) -> asyncio.Future[None]:
        """Done when there is nothing else to do: what happens in between does not depend on how fast others are."""
        self._quiet.append(self.create_future())
        return self._quiet[-1]

    def finish(self) -> None:
        """Cancel all that is left, and close."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.do(self._end_of(tasks))
        self.do(self.shutdown_asyncgens())
        self.busy = lambda: True  # threads end in their own time
        self.run_until_complete(self.shutdown_default_executor())
        self.close()

    async def _end_of(self, tasks: set[asyncio.Task[Any]]) -> None:
        await asyncio.wait(tasks)

    def _idle(self, timeout: float | None) -> float:
        while self._quiet:
            waiting = self._quiet.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return 0
        if self.busy() or (self._doing is not None and not self._doing.done()):
            return PATIENCE
        if timeout is not None and self._now + timeout <= self._until:
            self._now += timeout
        else:
            self._now = self._until
            self.stop()
        return 0
