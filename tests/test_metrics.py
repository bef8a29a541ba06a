"""What is counted, and who may read it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from proxy.config import Breaker, ModelOptions
from proxy.errors import VendorFailed
from proxy.messages import TurnRecord
from proxy.metrics import Metrics
from tests.doors import open_doors
from tests.scripted import Cue

RECORD = TurnRecord("shop", "continued", "exact", "ok", 10.0, 10.2, 11.0, deltas=3, parked=True)


def test_turns_are_counted() -> None:
    """A turn is counted under its model, the way it was continued and its outcome, with its times."""
    metrics = Metrics()
    for _ in range(2):
        metrics(RECORD)
    told = metrics.text().decode()

    assert 'parley_turns_total{conversation="continued",model="shop",outcome="ok",reason="exact"} 2.0' in told
    assert 'parley_handles_parked_total{model="shop"} 2.0' in told
    assert 'parley_deltas_total{model="shop"} 6.0' in told
    assert 'parley_first_delta_seconds_bucket{le="0.25",model="shop"} 2.0' in told
    assert 'parley_turn_seconds_sum{model="shop"} 2.0' in told


async def test_metrics_are_served_without_a_key_on_loopback() -> None:
    """On loopback anybody may read the metrics; elsewhere a key is needed; they may be turned off."""
    async with open_doors() as doors:
        await doors.ask()
        told = await doors.http.get("/metrics")
        assert told.headers["content-type"].startswith("text/plain")
        assert 'conversation="opened",model="shop",outcome="ok"' in told.text
    async with open_doors(host="10.0.0.1") as doors:
        assert (await doors.http.get("/metrics")).status_code == 401
        keyed = {"authorization": "Bearer sk-few"}
        assert (await doors.http.get("/metrics", headers=keyed)).status_code == 200
    async with open_doors(metrics=False) as doors:
        assert (await doors.http.get("/metrics")).status_code == 404


async def test_what_goes_on_is_told() -> None:
    """Turns that run, turns in line, bots that are left alone and the process's own means are told as they are now."""
    options = ModelOptions(vendor="scripted", max_concurrency=1, queue=5, breaker=Breaker(failures=1, pause=60))
    gate = asyncio.Event()
    async with open_doors(options) as doors:

        async def told(*lines: str) -> None:
            text = (await doors.http.get("/metrics")).text
            assert [line for line in lines if f"parley_{line}\n" not in text] == []

        doors.bot.cues += [Cue(pieces=("a", "b"), wait=gate), Cue(), Cue(fault=VendorFailed("x"))]
        asked = [asyncio.create_task(doors.ask(f"question {n}")) for n in range(2)]
        async with asyncio.timeout(5):
            while not doors.bot.turns:  # noqa: ASYNC110 - the bot rings no bell
                await asyncio.sleep(0.001)
        await told('turns_running{model="shop"} 1.0', 'turns_waiting{model="shop"} 1.0')
        await told('bot_resting{model="shop"} 0.0')
        gate.set()
        await asyncio.gather(*asked)
        await doors.ask("another")
        await told('turns_running{model="shop"} 0.0', 'turns_waiting{model="shop"} 0.0')
        await told('bot_resting{model="shop"} 1.0')
        text = (await doors.http.get("/metrics")).text
    assert float(text.partition("\nparley_tasks ")[2].split()[0]) >= 1
    assert float(text.partition("\nprocess_open_fds ")[2].split()[0]) >= 3


@pytest.mark.parametrize(("dies", "told"), [(False, "3.0"), (True, "2.0")])
def test_what_a_dead_worker_did_is_not_going_on(dies: bool, told: str, tmp_path: Path) -> None:
    """What goes on is summed over the workers that live."""
    looking = """
        import asyncio, sys
        from proxy.messages import BotLoad
        from proxy.metrics import Metrics

        async def look():
            metrics = Metrics()
            metrics.look([BotLoad("shop", int(sys.argv[1]), 0, False)])
            print(metrics.text().decode(), flush=True)

        asyncio.run(look())
        sys.stdin.read()
    """

    def worker(running: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", dedent(looking), str(running)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with worker(1) as first:
        assert first.stdout
        while 'running{model="shop"} 1.0' not in first.stdout.readline():
            pass
        if dies:
            first.kill()
            first.wait()
        with worker(2) as second:
            text, _ = second.communicate()
    assert f'parley_turns_running{{model="shop"}} {told}' in text


def test_workers_are_summed(tmp_path: Path) -> None:
    """With a folder to share, any process tells what all of them have counted."""
    counting = """
        from tests.test_metrics import RECORD
        from proxy.metrics import Metrics

        metrics = Metrics()
        metrics(RECORD)
        print(metrics.text().decode())
    """
    for so_far in ("1.0", "2.0", "3.0"):
        done = subprocess.run(
            [sys.executable, "-c", dedent(counting)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert f'parley_handles_parked_total{{model="shop"}} {so_far}' in done.stdout
