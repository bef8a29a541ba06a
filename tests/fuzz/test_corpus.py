"""The corpus replayed, and a few fresh inputs of every target."""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.engine import CORPUS, corpus, tried
from tests.fuzz.target import bent
from tests.fuzz.targets import TARGETS

MOST_FILES = 60  # of a target
MOST_BYTES = 200 * 1024  # of all


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_have_all_properties(name: str) -> None:
    """Every kept input of a target passes its check."""
    kept = corpus(TARGETS[name])

    assert kept
    assert {path.name: fault for path in kept if (fault := tried(TARGETS[name], path.read_bytes()))} == {}


@pytest.mark.parametrize("name", TARGETS)
def test_fresh_inputs_have_all_properties(name: str) -> None:
    """New inputs of a target's grammar, and kept ones that are bent a little, pass its check."""
    target = TARGETS[name]
    kept = [path.read_bytes() for path in corpus(target)]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(rng: Random) -> None:
        target.check(target.make(rng) if rng.random() < 0.5 else bent(rng, rng.choice(kept), kept, target.tokens))

    check()


def test_the_corpus_is_small() -> None:
    """The corpus belongs to the targets there are, and holds few files of few bytes, no two alike."""
    files = [path for path in CORPUS.rglob("*") if path.is_file()]

    assert {path.parent.name for path in files} == set(TARGETS)
    assert max(len(corpus(target)) for target in TARGETS.values()) <= MOST_FILES
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert len({(path.parent, path.read_bytes()) for path in files}) == len(files)
