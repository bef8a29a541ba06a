"""The suite's own footing: the vendor speaks what the adapters understand, and the load sees what went wrong."""

import io
import shutil
from collections.abc import Iterator

import pytest

from tests.bench.__main__ import built
from tests.bench.runs import Load, Runs
from tests.bench.servers import STREAMING, VENDORS, Server, Stage, stage

pytestmark = pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("taskset"), reason="needs gcc and taskset")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("bench")
    with stage(folder, built("vendor", folder)) as made:
        yield made


@pytest.fixture(scope="module")
def runs(scene: Stage) -> Runs:
    return Runs(scene, built("load", scene.folder), io.StringIO(), patience=0)


@pytest.fixture(scope="module")
def parley(scene: Stage) -> Server:
    return scene.parley(core="0,1")


@pytest.mark.parametrize("model", VENDORS)
def test_turns_continue(runs: Runs, parley: Server, model: str) -> None:
    """With every vendor's format the load's chats go on in their conversations, three turns of four."""
    runs.set_vendor()
    row = runs.run("plain", parley.as_model(model), Load(2, seconds=2, warm=0.1), tries=1)

    assert row["failed"] == 0
    assert row["continued"] == pytest.approx(0.75 * row["requests"], abs=4)
    assert row["continued"]


@pytest.mark.parametrize("model", STREAMING)
def test_streams_are_whole(runs: Runs, parley: Server, model: str) -> None:
    """Every chunk of a paced stream arrives and is counted, however the gateway parts them."""
    runs.set_vendor(20, gap=0.002)
    row = runs.run("paced", parley.as_model(model), Load(2, seconds=2, warm=0.1, words=20), tries=1)

    assert row["failed"] == 0
    assert row["requests"]
    assert row["words"] == pytest.approx(20 * row["requests"], abs=2 * 20)


def test_short_streams_are_failures(runs: Runs, scene: Stage) -> None:
    """A stream that ends before all its chunks were there is counted as a failure."""
    runs.set_vendor(19)
    row = runs.run("burst", Server("direct", scene.vendor), Load(1, seconds=0.2, warm=0, words=20), tries=1)

    assert row["requests"] == 0
    assert row["short"] == row["failed"] > 0


def test_refusals_are_failures(runs: Runs, parley: Server) -> None:
    """An answer that is no success is counted as a failure."""
    runs.set_vendor()
    known = parley.as_model("newoaks")
    runs.bodies(known, Load(1))  # what it answers is learnt with a good key
    stranger = Server(known.name, known.port, known.model, {"authorization": "Bearer wrong"}, known.process)
    row = runs.run("plain", stranger, Load(1, seconds=0.2, warm=0), tries=1)

    assert row["requests"] == 0
    assert row["refused"] == row["failed"] > 0
