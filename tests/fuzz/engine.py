"""Looks for inputs that break a target's property: made by its grammar, or bent from those that reached new branches.

Branches are watched for one input in twenty: with all of them watched ten times fewer could be tried. Where atheris
is installed it can do the watching instead, in its own way and for every input.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from tests.fuzz.target import Target, bent

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
WATCHED = 20  # one input in so many
SLOW = 0.3  # seconds of processor time that any input may take, and for each byte:
SLOW_PER_BYTE = 20e-6
LONG = 16 * 1024  # bytes of an input that shows how time grows; one in so many is:
LONG_ONES = 4000
LONGEST_KEPT = 512  # bytes of an input that others are bent from
SHRINKING = 20  # seconds

Branch = tuple[str, int, int]


class TooSlow(AssertionError):
    """The time an input takes grows faster than the input."""


@dataclass
class Found:
    """An input that breaks a property, and how."""

    data: bytes
    fault: Exception


@dataclass
class Run:
    """What a run over one target came to."""

    inputs: int = 0
    seconds: float = 0.0
    branches: set[Branch] = field(default_factory=set)
    pool: list[bytes] = field(default_factory=list)
    found: Found | None = None


def corpus(target: Target) -> list[Path]:
    """The kept inputs of a target, by name."""
    return sorted((CORPUS / target.name).glob("*"))


def tried(target: Target, data: bytes) -> Exception | None:
    """What is wrong with the answer to an input. Slowness must show three times: the machine has other things to do."""
    allowed = SLOW + SLOW_PER_BYTE * len(data)
    for _ in range(3):
        began = time.process_time()
        try:
            target.check(data)
        except Exception as fault:  # noqa: BLE001 - whatever comes out is the finding
            return fault
        if time.process_time() - began < allowed:
            return None
    return TooSlow(f"{len(data)} bytes took longer than {allowed:.2f} s")


def run(target: Target, *, inputs: int, seconds: float, seed: int) -> Run:
    """Try so many inputs, or for so long, or until one is found that breaks a property."""
    rng = Random(seed)
    done = Run(pool=[])
    began = time.monotonic()
    kept = [path.read_bytes() for path in corpus(target)]
    for data in _inputs(target, kept, done.pool, rng):
        done.inputs += 1
        if done.inputs <= len(kept) or done.inputs % WATCHED == 0:
            with watching(target, done.branches) as grown:
                fault = tried(target, data)
            if isinstance(fault, TooSlow):  # maybe for being watched only
                fault = tried(target, data)
            if grown() and len(data) <= LONGEST_KEPT:
                done.pool.append(data)
        else:
            fault = tried(target, data)
        if fault is not None:
            done.found = Found(shrunk(target, data, fault), fault)
            break
        if done.inputs >= inputs or (done.inputs % 64 == 0 and time.monotonic() - began > seconds):
            break
    done.seconds = time.monotonic() - began
    return done


def _inputs(target: Target, kept: Sequence[bytes], pool: Sequence[bytes], rng: Random) -> Iterator[bytes]:
    yield from kept
    while True:
        if rng.random() < 1 / LONG_ONES:
            yield (target.make(rng) + rng.choice(target.tokens) * LONG)[:LONG]
        elif pool and rng.random() < 0.5:
            yield bent(rng, rng.choice(pool), pool, target.tokens)
        else:
            yield target.make(rng)


@contextmanager
def watching(target: Target, branches: set[Branch]) -> Iterator[Callable[[], bool]]:
    """Adds the branches that are taken meanwhile; yields what tells whether there were new ones."""
    before = len(branches)
    files = {str(ROOT / name) for name in target.watched}

    def of_a_frame(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in files:
            return None
        last = -frame.f_lineno

        def of_a_line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if event in ("line", "exception"):
                branches.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return of_a_line

        return of_a_line

    sys.settrace(of_a_frame)
    try:
        yield lambda: len(branches) > before
    finally:
        sys.settrace(None)


def shrunk(target: Target, data: bytes, fault: Exception) -> bytes:
    """A shorter input with a fault of the same kind: pieces are left out, large ones first, then bytes made plain."""
    until = time.monotonic() + SHRINKING
    size = len(data)
    while size and time.monotonic() < until:
        at = 0
        while at < len(data) and time.monotonic() < until:
            shorter = data[:at] + data[at + size :]
            if type(tried(target, shorter)) is type(fault):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def distilled(target: Target, inputs: Sequence[bytes], most: int) -> list[bytes]:
    """Few and short inputs that reach all branches the given ones reach."""
    reached: dict[bytes, set[Branch]] = {}
    for data in sorted(set(inputs), key=len):
        reached[data] = set()
        with watching(target, reached[data]):
            tried(target, data)
    chosen: list[bytes] = []
    left: set[Branch] = set().union(*reached.values()) if reached else set()
    while left and len(chosen) < most:
        best = max(reached, key=lambda data: (len(reached[data] & left), -len(data)))
        left -= reached.pop(best)
        chosen.append(best)
    return chosen
