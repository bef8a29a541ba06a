"""The same targets under atheris, which watches every branch of every input: `python -m tests.fuzz.guided TARGET`.

atheris is in no lock: install it beside the tests (`pip install atheris`). What follows the target is libFuzzer's, such
as `-runs=100000` or `-max_total_time=60`. A finding is shrunk and kept as by the other command.
"""

import os
import sys
from importlib import import_module
from random import Random
from tempfile import mkdtemp
from typing import Any

atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["proxy"]):
    from tests.fuzz.__main__ import keep_finding
    from tests.fuzz.engine import CORPUS, Found, corpus, shrunk, tried
    from tests.fuzz.target import bent
    from tests.fuzz.targets import TARGETS

target = TARGETS[sys.argv[1]]
kept = [path.read_bytes() for path in corpus(target)]


def one_input(data: bytes) -> None:
    if fault := tried(target, data):
        keep_finding(target, Found(shrunk(target, data, fault), fault))
        os._exit(1)


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """By the grammar as often as by libFuzzer."""
    rng = Random(seed)
    kind = rng.random()
    if kind < 0.2:
        return target.make(rng)[:most]
    if kind < 0.6:
        return bent(rng, data, [*kept, data], target.tokens)[:most]
    return bytes(atheris.Mutate(data, most))


seeds = [str(CORPUS / target.name)] if kept else []  # only read: what is new goes into the first folder
atheris.Setup([sys.argv[0], *sys.argv[2:], mkdtemp(), *seeds], one_input, custom_mutator=mutated)
atheris.Fuzz()
