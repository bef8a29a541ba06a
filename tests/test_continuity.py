"""The property test of I1..I4: whatever clients, vendors, stores and processes do, no conversation is mixed up.

`python -m tests.test_continuity --store memory --steps 100000` plays on with fresh chance and says what happened.
"""

import argparse
import asyncio
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from proxy.conversation import Continuation, Conversation, Partition, Stage
from proxy.errors import VendorFailed
from proxy.messages import Parked
from proxy.reply import Replies
from proxy.stores.memory import MemoryStore
from tests.continuity.machine import OWNERS, Chat, Ids, Machine
from tests.continuity.shelf import PER_HEAD, ByUrl, Cupboard, InMemory, Watched
from tests.continuity.truth import Plan
from tests.stores.servers import redis_server

STORES = ("memory", "sqlite", "redis")
EXAMPLES = {"memory": 60, "sqlite": 25, "redis": 25}  # of each of PARTS
PARTS = 3
STEPS = 50
TIERS = ("exact", "interrupted", "contained", "window", "caught-up")


@contextmanager
def cupboard(store: str) -> Iterator[Cupboard]:
    """Where a store comes from. Redis is a server of its own; without one the test is skipped, but fails in CI."""
    with ExitStack() as stack:
        if store == "memory":
            yield InMemory()
        elif store == "sqlite":
            shm = Path("/dev/shm")  # noqa: S108 - what is committed need not outlast the machine
            folder = stack.enter_context(TemporaryDirectory(dir=shm if shm.is_dir() else None))
            yield ByUrl(lambda number: f"sqlite:///{folder}/{number}.db")
        else:
            server = stack.enter_context(redis_server())
            yield ByUrl(lambda number: f"{server.url}?prefix=t{number}:")


def play(
    machine: type[Machine], *, examples: int, steps: int = STEPS, fresh: bool = False, shrink: bool = True
) -> None:
    """Run a machine; AssertionError with the shortest story found if something was wrong."""
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=not fresh,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    with patch("proxy.conversation.token_hex", Ids()):
        run_state_machine_as_test(machine, settings=chosen)


def machine_for(place: Cupboard, name: str, **more: Any) -> type[Machine]:
    """A machine on these stores, with a count and a course of chance of its own."""
    return type(name, (Machine,), {"cupboard": place, "total": Counter(), **more})


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """What the relay logs of faults that are meant is not worth keeping."""
    log = logging.getLogger("parley")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


@pytest.mark.timeout(400)  # a failure takes its time to be told in short
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("store", STORES)
def test_nothing_is_mixed_up(store: str, part: int) -> None:
    """No interleaving of clients, faults, restarts and stores breaks I1 to I4, and what can be continued is."""
    with cupboard(store) as place:
        play(seed(part)(machine_for(place, f"Part{part}")), examples=EXAMPLES[store])


@pytest.mark.parametrize("store", STORES)
def test_handles_at_one_head_are_bounded(store: str) -> None:
    """Of many identical chats at most 32 are parked at their head, and of all chats at most `max_parked`."""
    with cupboard(store) as place:
        for twin, bound in ((True, PER_HEAD), (False, 20)):
            state = machine_for(place, "Flood")()
            state.build(pauses=1, max_parked=300 if twin else bound)
            for i in range(2):
                for _ in range(PER_HEAD // 2 + 4):
                    state._say(state._add(Chat(OWNERS[0], twin=twin)), Plan(echo=twin), at=i)
                state._settle()
            parked = state.loop.do(_still_parked(state))
            state.teardown()
            assert parked == bound


async def _still_parked(state: Machine) -> int:
    store = state.houses[0].store
    return sum([await store.take(id) is not None for id in list(state.witness.parked)])


# --- tests of the test: each of these faults must be found


class Generous(MemoryStore):
    """Gives an entry to all who want it."""

    async def take(self, id: str) -> Parked | None:
        return self._entries.get(id)

    async def take_newest(self, label: str) -> Parked | None:
        return next(iter(await self.find([label])), None)


class Late:
    """Parks only after the reply's end was passed on."""

    def __init__(self, store: Watched) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, parked: Parked) -> None:
        async def later() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            await self._store.put(parked)

        task = asyncio.create_task(later())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def partitions_as(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Partitions that overlook something; `changes` are functions of a field's value."""
    whole = Partition.digest

    def digest(self: Partition) -> bytes:
        return whole(replace(self, **{name: change(getattr(self, name)) for name, change in changes.items()}))

    monkeypatch.setattr(Partition, "digest", digest)


def without_ids(forwarded: Mapping[str, str]) -> dict[str, str]:
    return {
        name: re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[id]", text) for name, text in forwarded.items()
    }


def assert_found(rule: str, place: Cupboard | None = None, **more: Any) -> None:
    """A product that is broken does not pass; the rule says as what it is found out."""
    machine = machine_for(place or InMemory(), "Broken", complains_of=tuple(rule.split("|")), **more)
    with pytest.raises(AssertionError):
        play(machine, examples=400, shrink=False)


def memory_of(store: type[MemoryStore]) -> Cupboard:
    class Place(InMemory):
        make = store

    return Place()


@pytest.mark.parametrize("rule", ["I1", "I4: the entry"])
def test_a_take_that_leaves_the_entry_is_found(rule: str) -> None:
    """A store that gives one entry to many is found out, by the store and by what the bot sees."""
    assert_found(rule, memory_of(Generous))


def test_end_users_thrown_together_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions that leave out the end user are found out."""
    partitions_as(monkeypatch, end_user=lambda user: "")

    assert_found("I2")


@pytest.mark.parametrize("field", ["tenant", "scope"])
def test_other_partitions_thrown_together_are_found(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Partitions that leave out the tenant or the scope are found out."""
    partitions_as(monkeypatch, **{field: lambda value: ""})

    assert_found("I2")


def test_models_thrown_together_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions that leave out the model and its bot are found out."""
    partitions_as(monkeypatch, model=lambda name: "", bot=lambda name: "")

    assert_found("I1|I2")


def test_ids_masked_in_the_priming_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions in which two system prompts are the same that differ by an id are found out."""
    partitions_as(monkeypatch, forwarded=without_ids)

    assert_found("I2")


def test_parking_after_the_end_is_found() -> None:
    """A relay that parks only when the end of the reply was passed on is found out."""
    assert_found("the rule, 2: the client heard the end", disguise=staticmethod(Late))


def test_a_dirty_conversation_parked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that keeps a conversation whose vendor may have seen a turn and not answered is found out."""
    monkeypatch.setattr(VendorFailed, "delivered", False)

    assert_found("the table|I1|I3")


def test_an_old_handle_resumed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that resumes what its vendor has silently given up is found out."""
    monkeypatch.setattr(Conversation, "_is_fresh", lambda *_: True)

    assert_found("I4: resumed after")


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    """A product that lacks one tier of matching, and is all the safer for it, is found out."""
    whole = Conversation.matches

    def matches(self: Conversation, stage: Stage, found: Sequence[Parked], now: float) -> Iterator[Continuation]:
        return whole(self, stage, () if stage.reason == tier else found, now)

    monkeypatch.setattr(Conversation, "matches", matches)

    assert_found(f"liveness: {tier}")


def test_a_question_asked_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that calls the vendor again for a request that is only repeated is found out."""
    monkeypatch.setattr(Replies, "to", lambda *_: None)

    assert_found("liveness: joined")


def test_listeners_mixed_up_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that lets a client listen to another one's reply is found out."""
    monkeypatch.setattr(Replies, "to", lambda replies, *_: next(iter(replies.running), None))

    assert_found("replies|repeated request")


# --- the long profile


def main() -> None:
    """Play for so many steps, and print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.test_continuity", description=__doc__)
    parser.add_argument("--store", choices=STORES, default="memory")
    parser.add_argument("--steps", type=int, default=100_000)
    chosen = parser.parse_args()
    logging.getLogger("parley").setLevel(logging.CRITICAL)
    started = time.monotonic()
    with cupboard(chosen.store) as place:
        machine = machine_for(place, "Long")
        try:
            while machine.total["steps"] < chosen.steps:
                play(machine, examples=200, fresh=True)
                print(f"\r{machine.total['steps']} steps", end="", file=sys.stderr, flush=True)
        finally:
            total, seconds = machine.total, time.monotonic() - started
            steps, examples = total.pop("steps"), total.pop("examples")
            print(
                f"\n{chosen.store}: {steps} steps, {examples} examples, {seconds:.0f} s, {steps / seconds:.0f} steps/s"
            )
            for name, count in sorted(total.items()):
                print(f"{count:8} {name}")


if __name__ == "__main__":
    main()
