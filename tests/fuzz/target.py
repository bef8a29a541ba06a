"""What is fuzzed, as the engine sees it, and how its inputs are made: pieces of the grammar, joined and bent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar
from zlib import crc32

CANARY = "kestrel sings"  # stands in what others wrote; no message may quote it
Sliced = TypeVar("Sliced", bytes, str)


@dataclass(frozen=True)
class Target:
    """`check` raises for an input that breaks a property; `make` is an input of the grammar, `tokens` its pieces.

    `watched` are the files whose branches an input is interesting for, from the root of the project.
    """

    name: str
    check: Callable[[bytes], None]
    make: Callable[[Random], bytes]
    tokens: Sequence[bytes]
    watched: Sequence[str]


def chance(data: bytes) -> int:
    """A number that depends on the input only, so that every input fails or passes for good."""
    return crc32(data)


def thirds(whole: Sliced, chosen: int) -> list[Sliced]:
    """Three pieces, cut where the number says; some may be empty."""
    first, second = sorted((chosen % (len(whole) + 1), (chosen >> 11) % (len(whole) + 1)))
    return [whole[:first], whole[first:second], whole[second:]]


def singles(whole: Sliced) -> list[Sliced]:
    """The finest cut there is."""
    return [whole[i : i + 1] for i in range(len(whole))]


def joined(tokens: Sequence[bytes], most: int) -> Callable[[Random], bytes]:
    """A maker of up to so many tokens in a row; one in a thousand is much longer."""

    def make(rng: Random) -> bytes:
        size = int(rng.random() * most) + 1
        return b"".join(rng.choices(tokens, k=size if rng.random() < 0.999 else size * 50))

    return make


def bent(rng: Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """The input with one to three small changes, some of them taken from other inputs."""
    for _ in range(int(rng.random() * 3) + 1):
        at = int(rng.random() * (len(data) + 1))
        end = min(len(data), at + int(rng.random() ** 2 * 12))
        match int(rng.random() * 7):
            case 0:
                data = data[:at] + rng.choice(tokens) + data[at:]
            case 1:
                data = data[:at] + rng.choice(tokens) + data[end:]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:end] + data[at:]
            case 4:
                data = data[:at] + bytes([int(rng.random() * 256)]) + data[at + 1 :]
            case 5:
                other = rng.choice(others)
                data = data[:at] + other[int(rng.random() * (len(other) + 1)) :]
            case _:
                data = data[:at]
    return data[:LONGEST]


LONGEST = 64 * 1024  # bytes of an input
