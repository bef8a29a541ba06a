"""What is counted, and who may read it."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from proxy.messages import TurnRecord
from proxy.metrics import Metrics
from tests.doors import open_doors

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
