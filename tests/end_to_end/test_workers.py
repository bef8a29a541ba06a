"""Several processes before the same conversations: workers of one command, and two proxies that share a Redis."""

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy.simulator import Simulator, Vendor
from tests.end_to_end.callers import Answer, Chat, Line, Refused, call, calling, question, raw_plain, raw_stream, soon
from tests.end_to_end.test_commands import ROOT, Running, config_at, started
from tests.stores.servers import redis_server

MODELS = ("newoaks", "quickchat", "misterturing")
SQLITE = "sqlite:///parley.db"  # in the directory that the command is started in
BROKEN = (OSError, asyncio.IncompleteReadError, Refused)

pytestmark = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="this system shows no connections")


@contextmanager
def family(at: Path, backstage: tuple[Simulator, str], **sections: Any) -> Iterator[Running]:
    """`serve --workers 2` on one SQLite file."""
    config = config_at(at, backstage, store=SQLITE, **sections)
    with started("serve", "--config", config, "--port", "0", "--workers", "2", at=at) as running:
        yield running


def workers(running: Running) -> set[int]:
    """The processes that a command has forked."""
    pid = running.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def lives(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def served_by(line: Line, pids: set[int]) -> set[int]:
    """Which of these processes holds the other end of a connection."""
    ends = [f":{line.writer.get_extra_info(end)[1]:04X}" for end in ("peername", "sockname")]
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [row[9] for row in rows if [row[1][-5:], row[2][-5:]] == ends]
    return {pid for pid in pids for held in Path(f"/proc/{pid}/fd").iterdir() if _leads_to(held, inode)}


def _leads_to(held: Path, inode: str) -> bool:
    try:
        return os.readlink(held) == f"socket:[{inode}]"
    except FileNotFoundError:
        return False


@dataclass
class Talk:
    """A chat whose questions are told apart from all others'. Each of its turns goes to the next proxy.

    It asks again when an answer is lost.
    """

    name: int
    chat: Chat
    urls: Sequence[str]
    told: list[str] = field(default_factory=list)  # how each reply was continued
    lost: int = 0

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await self._turn()

    async def _turn(self) -> None:
        text = f"talk {self.name} turn {len(self.told)}"
        for tries in range(20):
            self.chat.url = self.urls[(self.name + len(self.told) + tries) % len(self.urls)]
            try:
                heard = await self.chat.say(text)
            except BROKEN:
                self.chat.messages.pop()
                self.lost += 1
                await asyncio.sleep(0.05)
                continue
            self.told.append(heard.how)
            assert f'You said: "{text}"' in heard.text
            if heard.how == "continued exact":
                assert re.search(rf"message \W*{self.seen()}\W* of our", heard.text), heard.text
            return
        raise AssertionError("the proxy did not come back")

    def seen(self) -> int:
        """How many messages the vendor conversation has been sent: what was rebuilt came with the next as one."""
        turns = len(self.told)
        return turns - max(index for index, how in enumerate(self.told) if how != "continued exact")


def talks(urls: Sequence[str], count: int) -> list[Talk]:
    """Chats with every vendor, plain and streaming; each request has a connection of its own."""
    ways = (raw_plain, raw_stream)
    return [Talk(i, Chat("", MODELS[i % 3], ways[i // 3 % 2]), urls) for i in range(count)]


def check(vendors: Sequence[Vendor]) -> None:
    """No vendor conversation holds a turn twice, or turns of two talks."""
    for vendor in vendors:
        for conversation in vendor.conversations.values():
            asked = [entry.text.rpartition("\n\n")[2] for entry in conversation.heard]
            assert max(Counter(asked).values(), default=0) <= 1, asked
            told = "\n".join(entry.text for entry in conversation.heard)
            assert len(set(re.findall(r"talk (\d+) turn", told))) <= 1, told


def check_losses(crowd: Sequence[Talk]) -> None:
    """All that was not continued had lost an answer before."""
    told = [how for talk in crowd for how in talk.told]
    assert set(told) <= {"opened", "continued exact", "rebuilt unknown-history"}
    assert told.count("opened") == len(crowd)
    assert told.count("rebuilt unknown-history") <= sum(talk.lost for talk in crowd)


def ended(running: Running) -> dict[int, int]:
    """How many requests each worker says it has served."""
    return {line["pid"]: line["requests"] for line in running.log if line["event"] == "a worker ended"}


async def test_workers_share_conversations(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """Whichever worker gets a turn, it continues the conversation of the one before, at the vendor's own count."""
    simulator, _ = backstage
    with family(tmp_path, backstage) as running:
        pids = workers(running)
        crowd = talks([running.url], 30)
        await asyncio.gather(*(talk.turns(4) for talk in crowd))
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert {tuple(talk.told) for talk in crowd} == {("opened", *["continued exact"] * 3)}
    assert sum(talk.lost for talk in crowd) == 0
    assert set(ended(running)) == pids
    assert min(ended(running).values()) >= 12
    assert sum(ended(running).values()) == 120
    vendors = list(simulator.vendors.values())
    check(vendors)
    assert sorted(len(talk.heard) for vendor in vendors for talk in vendor.conversations.values()) == [4] * 30
    assert running.out.read_text().count("\n") == 1


@asynccontextmanager
async def streaming(running: Running, name: str = "say", words: int = 40) -> AsyncIterator[list[tuple[Line, Answer]]]:
    """Streams in the midst, at least one in each worker."""
    pids, busy = workers(running), set[int]()
    async with AsyncExitStack() as stack:
        lines = []
        for index in range(20):
            text = f"{name} " + " ".join(f"word{index}x{word}" for word in range(words))
            line = await stack.enter_async_context(calling(running.url, question("newoaks", text, stream=True)))
            answer = await line.begin()
            answer.pieces.append(await anext(line.pieces(answer)))
            lines.append((line, answer))
            busy |= served_by(line, pids)
            if busy == pids and len(lines) >= 4:
                break
        assert busy == pids
        yield lines


async def whole(line: Line, answer: Answer) -> str:
    """The text of a stream, which must come to its end."""
    async for piece in line.pieces(answer):
        answer.pieces.append(piece)
    assert answer.data[-1] == "[DONE]"
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer.data[:-1])


async def test_sigterm_drains_every_worker(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """At SIGTERM all workers are unready at once and end what they speak; what they parked goes on after a restart."""
    simulator, _ = backstage
    simulator.newoaks.gap = 0.03
    with family(tmp_path, backstage) as running:
        pids = workers(running)
        async with asyncio.timeout(20), streaming(running) as lines:
            running.signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
            for _ in range(12):
                assert (await call(running.url, path="/readyz", method="GET")).status == 503
                refused = await call(running.url, question("newoaks", "Hello"))
                assert (refused.status, refused.json["error"]["code"]) == (503, "shutting_down")
            assert set(filter(lives, pids)) == pids
            texts = await asyncio.gather(*(whole(*line) for line in lines))
        assert await running.ended(5) == 0
        assert not any(map(lives, pids))
    for index, text in enumerate(texts):
        assert text == " ".join(f"word{index}x{word}" for word in range(40))
    assert simulator.newoaks.hung_up == 0
    simulator.newoaks.gap = 0
    with family(tmp_path, backstage) as again:
        for text in texts:
            chat = Chat(again.url, "newoaks")
            chat.messages = [{"role": "user", "content": f"say {text}"}, {"role": "assistant", "content": text}]
            assert (await chat.say("And then?")).how == "continued exact"


async def test_ctrl_c_in_a_terminal(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """A Ctrl-C reaches parent and workers, and counts once: all drain; the second one hangs up."""
    simulator, _ = backstage
    simulator.newoaks.gap = 0.2
    with family(tmp_path, backstage) as running:
        async with asyncio.timeout(20), streaming(running, words=200) as lines:
            os.killpg(running.process.pid, signal.SIGINT)
            await asyncio.sleep(0.6)
            assert running.process.poll() is None
            assert simulator.newoaks.hung_up == 0
            os.killpg(running.process.pid, signal.SIGINT)
            assert await running.ended(4) == 0
            await soon(lambda: simulator.newoaks.hung_up == len(lines))
    assert "Traceback" not in running.err.read_text()


async def test_a_killed_worker_is_replaced(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """A worker killed under load costs the turns in flight: another takes its place, and no turn is said twice."""
    simulator, _ = backstage
    simulator.newoaks.gap = 0.002
    with family(tmp_path, backstage) as running:
        pids = workers(running)
        crowd = talks([running.url], 12)
        talking = asyncio.gather(*(talk.turns(12) for talk in crowd))
        await soon(lambda: min(len(talk.told) for talk in crowd) >= 3, 20)
        os.kill(min(pids), signal.SIGKILL)
        await talking
        await soon(lambda: len(workers(running)) == 2, 5)
        pids |= workers(running)
        assert len(pids) == 3
        for talk in talks([running.url], 30):
            await talk.turns(1)
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
    (death,) = [line for line in running.log if line["event"] == "a worker ended and is replaced"]
    assert (death["pid"], death["exit_code"], death["level"]) == (min(pids), -signal.SIGKILL, "error")
    assert set(ended(running)) == pids - {min(pids)}
    assert min(ended(running).values()) > 0
    check_losses(crowd)
    check([simulator.vendors[name] for name in MODELS])
    assert "Traceback" not in running.err.read_text()


async def test_a_killed_parent_leaves_nobody(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """Workers whose parent is killed end what they speak, and are gone; so is the port."""
    simulator, _ = backstage
    simulator.newoaks.gap = 0.02
    with family(tmp_path, backstage) as running:
        pids = workers(running)
        async with asyncio.timeout(20), streaming(running) as lines:
            running.signal(signal.SIGKILL)
            await asyncio.sleep(0.2)
            for _ in range(12):
                assert (await call(running.url, path="/readyz", method="GET")).status == 503
            assert all([await whole(*line) for line in lines])
        await soon(lambda: not any(map(lives, pids)), 5)
        parts = urlsplit(running.url)
        with socket.socket() as caller:
            assert caller.connect_ex((parts.hostname, parts.port)) == errno.ECONNREFUSED
    assert "Traceback" not in running.err.read_text()


def test_nobody_reads_the_output(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """When the one line finds no reader, the parent and all workers end without complaint."""
    config = config_at(tmp_path, backstage, store=SQLITE)
    words = [sys.executable, "-m", "proxy", "serve", "--config", config, "--port", "0", "--workers", "2"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as told:
        assert b"Traceback" not in told.read()
    assert process.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@contextmanager
def twins(at: Path, backstage: tuple[Simulator, str], store: str) -> Iterator[list[Running]]:
    """Two proxies, each in a folder of its own, that share a store."""
    with ExitStack() as stack:
        running = []
        for name in ("one", "other"):
            folder = at / name
            folder.mkdir()
            config = config_at(folder, backstage, store=store)
            running.append(stack.enter_context(started("serve", "--config", config, "--port", "0", at=folder)))
        yield running


async def test_two_proxies_share_a_redis(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """Chats that go from one proxy to the other with every turn stay in their vendor conversations."""
    simulator, _ = backstage
    with redis_server() as redis, twins(tmp_path, backstage, redis.url) as running:
        crowd = talks([proxy.url for proxy in running], 30)
        await asyncio.gather(*(talk.turns(4) for talk in crowd))
    assert {tuple(talk.told) for talk in crowd} == {("opened", *["continued exact"] * 3)}
    assert sum(talk.lost for talk in crowd) == 0
    for proxy in running:
        assert sum(line["event"] == "request" for line in proxy.log) == 60
    vendors = list(simulator.vendors.values())
    check(vendors)
    assert sorted(len(talk.heard) for vendor in vendors for talk in vendor.conversations.values()) == [4] * 30


async def test_one_proxy_goes_on_without_the_other(tmp_path: Path, backstage: tuple[Simulator, str]) -> None:
    """When one of two proxies is killed under load, its chats go on at the other, and no turn is said twice."""
    simulator, _ = backstage
    simulator.newoaks.gap = 0.002
    with redis_server() as redis, twins(tmp_path, backstage, redis.url) as running:
        urls = [proxy.url for proxy in running]
        crowd = talks(urls, 12)
        talking = asyncio.gather(*(talk.turns(12) for talk in crowd))
        await soon(lambda: min(len(talk.told) for talk in crowd) >= 3, 20)
        running[0].signal(signal.SIGKILL)
        del urls[0]
        await talking
        before = sum(talk.lost for talk in crowd)
        await asyncio.gather(*(talk.turns(2) for talk in crowd))
    assert 0 < before == sum(talk.lost for talk in crowd)
    assert {tuple(talk.told[-2:]) for talk in crowd} == {("continued exact", "continued exact")}
    check_losses(crowd)
    check([simulator.vendors[name] for name in MODELS])
