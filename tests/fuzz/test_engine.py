"""The engine: it finds what is planted, makes it short, and is honest about what it did."""

import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import engine
from tests.fuzz.target import Target, bent, joined, singles, thirds

TOKENS = [b"a", b"b", b"c"]


def planted(data: bytes) -> None:
    assert b"b" not in data.partition(b"ca")[2], "planted"


PLANTED = Target("planted", planted, joined(TOKENS, 12), TOKENS, ["tests/fuzz/test_engine.py"])


@pytest.fixture(autouse=True)
def own_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engine, "CORPUS", tmp_path)
    monkeypatch.setattr(command, "CORPUS", tmp_path)
    monkeypatch.setattr(command, "TARGETS", {"planted": PLANTED})
    return tmp_path


def test_it_finds_and_shrinks() -> None:
    """A planted fault is found, and its input is left with nothing that could be left out."""
    done = engine.run(PLANTED, inputs=100_000, seconds=30, seed=1)

    assert done.found is not None
    assert done.found.data == b"cab"
    assert 0 < done.inputs < 10_000


def test_the_command_keeps_a_finding(own_corpus: Path) -> None:
    """A finding becomes a file of the corpus and exit code 1, and is the first input that the next run tries."""
    assert command.main(["planted", "--inputs", "100000"]) == 1
    assert [path.read_bytes() for path in own_corpus.rglob("found-*")] == [b"cab"]
    assert engine.run(PLANTED, inputs=9, seconds=30, seed=5).inputs == 1


def test_the_command_passes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without findings ends with 0 after as many inputs as were asked for, and says so."""
    harmless = Target("planted", lambda data: None, PLANTED.make, TOKENS, [])
    monkeypatch.setattr(command, "TARGETS", {"planted": harmless})

    assert command.main(["--inputs", "700"]) == 0
    assert " 700 inputs" in capsys.readouterr().out


def test_new_branches_are_kept(own_corpus: Path) -> None:
    """Inputs that reach new branches are put into the corpus, a short one for each."""

    def branching(data: bytes) -> None:
        if b"ab" in data:
            len(data)
        if b"cc" in data:
            len(data)

    target = Target("planted", branching, PLANTED.make, TOKENS, ["tests/fuzz/test_engine.py"])
    done = engine.run(target, inputs=5000, seconds=30, seed=1)
    kept = engine.distilled(target, done.pool, 60)

    assert len(kept) <= 3
    assert any(b"ab" in data for data in kept)
    assert any(b"cc" in data for data in kept)


def test_slowness_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that takes longer than its length allows breaks a property, too."""
    monkeypatch.setattr(engine, "SLOW", 0.001)

    def slow(data: bytes) -> None:
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass

    assert isinstance(engine.tried(Target("slow", slow, PLANTED.make, TOKENS, []), b""), engine.TooSlow)


def test_cuts_lose_nothing() -> None:
    """However an input is cut, its pieces are the input."""
    for chosen in range(0, 1 << 16, 37):
        assert "".join(thirds("abcdef", chosen)) == "".join(singles("abcdef")) == "abcdef"
        assert len(bent(Random(chosen), b"abc" * 9, [b"xyz"], TOKENS)) <= 27 * 2 + 9
