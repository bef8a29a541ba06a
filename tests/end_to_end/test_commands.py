"""The installed command in processes of its own: what it prints, how it ends, and what it refuses to begin."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from proxy.simulator import Simulator
from tests.conftest import demo_models
from tests.end_to_end.callers import (
    Answer,
    Chat,
    Line,
    async_plain,
    async_stream,
    call,
    calling,
    question,
    request_bytes,
    soon,
)
from tests.stores.servers import black_hole

ROOT = Path(__file__).parents[2]
SECRETS = {"SECRET_KEY_FOR_US": "sk-our-own-key"}


@dataclass
class Running:
    """A started command: its process, the URL it serves at, and the files that its output goes to."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    url: str = ""

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the log; each is a JSON object."""
        return [json.loads(line) for line in self.err.read_text().splitlines()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float = 10) -> int:
        """The exit code."""
        await soon(lambda: self.process.poll() is not None, seconds)
        code = self.process.returncode
        assert isinstance(code, int)
        return code


@contextmanager
def command(*arguments: str, at: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`python -m proxy` with these arguments, in an environment without anything of ours but `env`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY")}
    words = [sys.executable, "-W", "error", "-m", "proxy", *arguments]
    out, err = at / "stdout", at / "stderr"
    for file in (out, err):
        file.write_bytes(b"")
    with out.open("ab") as out_file, err.open("ab") as err_file:  # several processes write to them
        process = subprocess.Popen(
            words,
            stdout=out_file,
            stderr=err_file,
            cwd=at,
            start_new_session=True,
            env={**plain, "PYTHONPATH": str(ROOT), **(env or {})},
        )
    try:
        yield Running(process, out, err)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def started(*arguments: str, at: Path, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """The same, once it says that it listens."""
    with command(*arguments, at=at, env=env) as running:
        deadline = time.monotonic() + 15
        while not (said := running.out.read_text()).endswith("\n"):
            assert running.process.poll() is None, running.err.read_text()
            assert time.monotonic() < deadline, "it did not start in time"
            time.sleep(0.02)
        match = re.fullmatch(r"parley listening on (http://127\.0\.0\.1:\d+)\n", said)
        assert match, said
        running.url = match[1]
        yield running


def config_at(path: Path, backstage: tuple[Simulator, str], **sections: Any) -> str:
    """Writes a configuration for the simulated vendors, and returns its path."""
    simulator, url = backstage
    file = path / "parley.yaml"
    file.write_text(json.dumps({"models": demo_models(url, simulator), **sections}))
    return str(file)


KEYED: dict[str, Any] = {"keys": [{"name": "web-team", "key": "${SECRET_KEY_FOR_US}"}]}


async def exchange(url: str, simulator: Simulator) -> list[Answer]:
    """Six requests, one after the other: two turns, three that go wrong, and one that is left; the raw answers."""
    bearer = "authorization: Bearer sk-our-own-key"
    chat = Chat(url, "newoaks", key="sk-our-own-key")
    assert (await chat.say("My darkest secret")).how == "opened"
    chat.way = async_stream
    assert (await chat.say("My second secret")).how == "continued exact"
    simulator.quickchat.fail("failed")
    failed = await call(url, question("quickchat", "My third secret"), headers=[bearer])
    simulator.newoaks.fail("error-in-stream")
    streaming = question("newoaks", "say my fourth secret words", stream=True)
    broken = await call(url, streaming, headers=[bearer, "x-request-id: the-broken-one"])
    refused = await call(url, question("newoaks", "Hello"), headers=["authorization: Bearer sk-guessed"])
    simulator.newoaks.fail("slow")
    before = len(simulator.newoaks.calls)
    async with calling(url, question("newoaks", "Gone"), headers=[bearer]) as line:
        await soon(lambda: len(simulator.newoaks.calls) == before + 2)
        line.leave()
    await call(url, path="/readyz", method="GET")
    await asyncio.sleep(0.2)
    simulator.newoaks.release()
    return [failed, broken, refused]


async def test_serve_answers_and_logs(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """`serve` prints its one line, answers, logs JSON lines without texts and secrets, and ends at SIGTERM with 0."""
    simulator, _ = backstage
    config = config_at(tmp_path, backstage, **KEYED)
    with started("serve", "--config", config, "--port", "0", at=tmp_path, env=SECRETS) as running:
        raw = await exchange(running.url, simulator)
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
    shown = running.err.read_text() + running.out.read_text()
    for secret in ("secret", "Gone", "sk-our", "sk-guessed", simulator.newoaks.secret_key, simulator.quickchat.token):
        assert secret not in shown
    assert "Traceback" not in shown
    assert running.out.read_text().count("\n") == 1
    lines = [entry for entry in running.log if entry["event"] == "request"]
    outcomes = ["ok", "ok", "vendor_failed", "vendor_failed", "invalid_api_key", "left"]
    assert [entry["outcome"] for entry in lines] == outcomes
    assert [entry["status"] for entry in lines[:5]] == [200, 200, 502, 200, 401]
    assert [entry["request_id"] for entry in lines[2:5]] == [answer.headers["x-request-id"] for answer in raw]
    assert lines[3]["request_id"] == "the-broken-one"
    for entry in lines:
        assert {"time", "level", "event", "request_id", "method", "path", "ms"} <= set(entry)
    for entry in lines[:4]:
        assert (entry["model"] in ("newoaks", "quickchat"), entry["key"]) == (True, "web-team")
    assert [entry["conversation"] for entry in lines[:2]] == ["opened", "continued"]
    assert lines[1]["first_delta_ms"] <= lines[1]["turn_ms"] <= lines[1]["ms"] + 1


async def is_draining(url: str, kept: Line) -> bool:
    """Whether nothing new is let in, be it over a new connection or a kept one, while the probes still answer."""
    deadline = time.monotonic() + 1
    while (ready := await call(url, path="/readyz", method="GET")).status == 200:
        assert time.monotonic() < deadline, "not ready at once"
    assert ready.status == 503
    assert (await call(url, path="/healthz", method="GET")).status == 200
    kept.writer.write(request_bytes("/v1/models", b"", "GET"))
    for answer in (
        await kept.answer(),
        await call(url, question("newoaks", "Hello")),
        await call(url, question("newoaks", "Hello", stream=True)),
    ):
        assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "true"
        assert answer.headers["connection"] == "close"
    return True


async def test_sigterm_lets_running_replies_end(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """SIGTERM in the midst: what runs ends whole, what is new gets a 503 that says how to go on; the exit code is 0."""
    simulator, _ = backstage
    config = config_at(tmp_path, backstage)
    text = "word " * 24 + "end"
    with started("serve", "--config", config, "--port", "0", at=tmp_path) as running:
        simulator.newoaks.gap = 0.05
        simulator.quickchat.latency = 1.2
        async with (
            asyncio.timeout(15),
            calling(running.url, question("newoaks", f"say {text}", stream=True)) as streaming,
            calling(running.url, question("quickchat", "say all of it")) as plain,
            calling(running.url, path="/readyz", method="GET") as kept,
        ):
            assert (await kept.answer()).status == 200
            answer = await streaming.begin()
            pieces = streaming.pieces(answer)
            answer.pieces.append(await anext(pieces))
            running.signal(signal.SIGTERM)
            assert await is_draining(running.url, kept)
            assert running.process.poll() is None
            async for piece in pieces:
                answer.pieces.append(piece)
            whole = await plain.answer()
        assert await running.ended(5) == 0
    assert answer.data[-1] == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in answer.data[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text
    assert whole.json["choices"][0]["message"]["content"] == "all of it"
    assert simulator.newoaks.hung_up == simulator.quickchat.hung_up == 0
    assert [entry["outcome"] for entry in running.log if entry.get("turn_ms")] == ["ok", "ok"]
    assert {entry["level"] for entry in running.log} <= {"info", "warning"}


async def test_grace_is_not_for_ever(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """A reply that outlasts `shutdown_grace` is stopped: no `[DONE]`, the vendor hung up on, still exit code 0."""
    simulator, _ = backstage
    config = config_at(tmp_path, backstage, server={"shutdown_grace": 0.4})
    with started("serve", "--config", config, "--port", "0", at=tmp_path) as running:
        simulator.newoaks.gap = 0.1
        simulator.quickchat.latency = 60
        async with (
            asyncio.timeout(10),
            calling(running.url, question("newoaks", "say " + "word " * 300, stream=True)) as streaming,
            calling(running.url, question("quickchat", "Hello")) as plain,
        ):
            answer = await streaming.begin()
            pieces = streaming.pieces(answer)
            answer.pieces.append(await anext(pieces))
            await soon(lambda: len(simulator.quickchat.calls) == 1)
            running.signal(signal.SIGTERM)
            async for piece in pieces:
                answer.pieces.append(piece)
            stopped = await plain.answer()
        assert b"[DONE]" not in answer.body
        assert not answer.whole or "error" in answer.data[-1]
        assert stopped.status >= 500
        assert stopped.json["error"]["code"] == "shutting_down"
        assert stopped.headers["x-should-retry"] == "false", "the vendor may have taken the message in"
        assert stopped.headers["retry-after"] == "1"
        assert await running.ended(5) == 0
    await soon(lambda: simulator.newoaks.hung_up == simulator.quickchat.hung_up == 1)
    assert "Traceback" not in running.err.read_text()
    assert not [line for line in running.log if line["level"] == "error"], "a stop is no internal error"


async def test_second_interrupt_does_not_wait(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """Ctrl-C waits for the running replies; a second one does not."""
    simulator, _ = backstage
    config = config_at(tmp_path, backstage)
    with started("serve", "--config", config, "--port", "0", at=tmp_path) as running:
        simulator.newoaks.gap = 0.2
        async with calling(running.url, question("newoaks", "say " + "word " * 300, stream=True)) as streaming:
            await streaming.first_piece()
            running.signal(signal.SIGINT)
            await asyncio.sleep(0.5)
            assert running.process.poll() is None
            running.signal(signal.SIGINT)
            await running.ended(4)
    assert "Traceback" not in running.err.read_text()


async def test_demo_needs_nothing(tmp_path: Path) -> None:
    """`demo` serves a model for every vendor without any configuration, shows how to call it, and ends at Ctrl-C."""
    with started("demo", "--port", "0", at=tmp_path) as running:
        listed = (await call(running.url, path="/v1/models", method="GET")).json["data"]
        names = [model["id"] for model in listed]
        assert {"newoaks-demo", "quickchat-demo"} <= set(names)

        async def talk(name: str) -> None:
            chat = Chat(running.url, name, async_plain)
            assert (await chat.say("My name is Ada.")).how == "opened"
            chat.way = async_stream
            answer = await chat.say("What is my name?")
            assert answer.how == "continued exact"
            assert "Ada" in answer.text

        await asyncio.gather(*map(talk, names))
        told = running.err.read_text()
        assert f"curl {running.url}/v1/chat/completions" in told
        assert f'base_url="{running.url}/v1"' in told
        assert all(name in told for name in names)
        running.signal(signal.SIGINT)
        assert await running.ended() == 0
    assert "Traceback" not in running.err.read_text()
    assert running.out.read_text().count("\n") == 1


async def test_demo_is_quick(tmp_path: Path) -> None:
    """Requests over one connection are answered without delay: nothing waits for the other side's TCP."""
    with started("demo", "--port", "0", at=tmp_path) as running:
        times = []
        async with calling(running.url, path="/v1/models", method="GET") as line:
            assert (await line.answer()).status == 200
            for _ in range(15):
                began = time.monotonic()
                line.writer.write(request_bytes("/v1/models", b"", "GET"))
                assert (await line.answer()).status == 200
                times.append(time.monotonic() - began)
        assert median(times) < 0.03


FAULTY = """
server: {port: 99999, hartbeat: 3}
keys: [{name: a}]
models:
  shop: {vendor: newoaks, secret_key: "${NOT_SET_ANYWHERE}", chatbot_id: my-dark-id, time_out: 3}
  help: {vendor: quickchatt, scenario_id: x}
  desk: {vendor: quickchat, scenario_id: x, token: a-dark-token, api_key: a-dark-key}
"""


@contextmanager
def both(at: Path, *more: str) -> Iterator[list[Running]]:
    """`serve` and `demo` side by side with these words, each in a directory of its own."""
    (at / "demo").mkdir()
    with (
        command("serve", "--config", "parley.yaml", *more, at=at) as serve,
        command("demo", *more, at=at / "demo") as demo,
    ):
        yield [serve, demo]


async def test_config_faults_are_all_listed(tmp_path: Path) -> None:
    """A faulty configuration ends the start with 1 and a list of every fault with its path, without values."""
    (tmp_path / "config.yaml").write_text(FAULTY)
    (tmp_path / "empty").mkdir()
    with (
        command("serve", "--port", "0", at=tmp_path) as faulty,
        command("serve", at=tmp_path / "empty", env={"PARLEY_CONFIG": "elsewhere.yaml"}) as missing,
    ):
        assert await faulty.ended() == await missing.ended() == 1
    told = faulty.err.read_text()
    for path in ("server.port", "server.hartbeat", "keys[0]", "models.shop.secret_key", "models.shop.time_out",
                 "models.help.vendor", "models.desk"):  # fmt: skip
        assert path in told, path
    for hint in ("heartbeat", "NOT_SET_ANYWHERE", "misterturing", "timeout"):
        assert hint in told, hint
    assert "dark" not in told
    for words in ("elsewhere.yaml", "parley demo"):
        assert words in missing.err.read_text()
    for running in (faulty, missing):
        assert "Traceback" not in running.err.read_text()
        assert running.out.read_text() == ""


async def test_open_proxy_is_not_exposed(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """An open proxy for the whole network is refused, with what to do about it."""
    config_at(tmp_path, backstage)
    with both(tmp_path, "--host", "0.0.0.0", "--port", "0") as commands:
        assert [await running.ended() for running in commands] == [1, 1]
    for running in commands:
        told = running.err.read_text()
        assert "add a key under `keys:` or listen on 127.0.0.1" in told
        assert "Traceback" not in told
        assert running.out.read_text() == ""


async def test_taken_port_is_told(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """A port that is in use ends the start with 1 and a message that names it, without a traceback."""
    config_at(tmp_path, backstage)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with both(tmp_path, "--port", port) as commands:
            assert [await running.ended() for running in commands] == [1, 1]
    for running in commands:
        told = running.err.read_text()
        assert f"127.0.0.1:{port}" in told
        assert "in use" in told
        assert "Traceback" not in told
        assert running.out.read_text() == ""


async def test_impossible_port_is_told(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """A port that no machine has ends the start with a message, without a traceback."""
    config_at(tmp_path, backstage)
    with both(tmp_path, "--port", "99999") as commands:
        assert {await running.ended() for running in commands} <= {1, 2}
    for running in commands:
        told = running.err.read_text()
        assert "99999" in told
        assert "Traceback" not in told


async def test_check_live_reaches_the_store(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """`check --live` shows whether the store answers; one that does not makes the exit code 1; no file is made."""
    with black_hole() as port:
        for store, code, told in (
            ("memory://", 0, "store memory://: 0.0"),
            ("sqlite:///x.db", 0, "store sqlite:///x.db: 0.00 s  is made by `parley serve`"),
            (f"redis://:sk-hidden@127.0.0.1:{port}/0", 1, f"store redis://127.0.0.1:{port}/0: 0."),
        ):
            config = config_at(tmp_path, backstage, store=store)
            with command("check", "--config", config, "--live", at=tmp_path) as running:
                assert await running.ended() == code, running.err.read_text()
            assert told in running.out.read_text()
            assert ("FAILED: " in running.out.read_text()) == bool(code)
            assert "sk-hidden" not in running.out.read_text() + running.err.read_text()
    assert not (tmp_path / "x.db").exists()
