"""Worker processes with work that is not worth the name; real servers in them are in end_to_end/test_workers.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

# Forked from a program of its own: pytest has threads, which are no company for a fork.
FAMILY = """
import os, socket, sys, time
from contextlib import suppress
from proxy import workers
from proxy.telemetry import start_logging

def tell(*words):
    os.write(1, " ".join([*map(str, words), chr(10)]).encode())

def announce():
    tell("announced")

def ready(line):
    tell("born", os.getpid())
    with suppress(OSError):  # the parent may be dead
        line.send(workers.READY)

def obey(line):
    while told := line.recv(1):
        tell("told", os.getpid(), told.decode())
        if told == workers.HANG_UP or told == workers.DRAIN and not PATIENT:
            return
    tell("orphan", os.getpid())
    time.sleep(NAP)

PATIENT, NAP = False, 0
elder = []  # as many as were forked before this one
os.register_at_fork(after_in_parent=lambda: elder.append(1))
start_logging(plain=False)
listener = socket.create_server(("127.0.0.1", 0))
tell("port", listener.getsockname()[1])
{}
try:
    workers.Workers(listener, 2, work, announce).run()
except workers.NotStarted as fault:
    sys.exit(str(fault))
tell("over")
"""

PLAIN = "def work(line): ready(line); obey(line)"


@dataclass
class Family:
    """A parent with its workers, and what they have said."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def said(self) -> list[list[str]]:
        return [line.split() for line in self.out.read_text().splitlines()]

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.err.read_text().splitlines() if line.startswith("{")]

    def of(self, word: str) -> list[str]:
        """What was said after this word, by whomever."""
        return [" ".join(words[1:]) for words in self.said if words[0] == word]

    @property
    def born(self) -> list[int]:
        return [int(pid) for pid in self.of("born")]

    def ended(self) -> int:
        return self.process.wait(10)


def until(holds: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def family(work: str, at: Path) -> Iterator[Family]:
    """Two workers and their parent, in a process group of their own like a terminal's."""
    out, err = at / "stdout", at / "stderr"
    for file in (out, err):
        file.write_bytes(b"")
    words = [sys.executable, "-W", "error", "-c", FAMILY.format(work)]
    with out.open("ab") as out_file, err.open("ab") as err_file:  # several processes write to them
        process = subprocess.Popen(words, stdout=out_file, stderr=err_file, cwd=ROOT, start_new_session=True)
    try:
        yield Family(process, out, err)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_it_is_announced_when_all_are_ready(tmp_path: Path) -> None:
    """One ready worker is not enough; all of them are told once, by the parent."""
    with family("def work(line): time.sleep(0.3 * len(elder)); ready(line); obey(line)", tmp_path) as running:
        until(lambda: running.of("announced"))
        assert [words[0] for words in running.said] == ["port", "born", "born", "announced"]
        assert len({running.process.pid, *running.born}) == 3
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
    assert sorted(running.of("told")) == sorted(f"{pid} d" for pid in running.born)
    assert running.said[-1] == ["over"]
    assert running.log == []


def test_ctrl_c_is_passed_on_by_the_parent(tmp_path: Path) -> None:
    """A Ctrl-C that reaches the whole group counts once in each worker: the first drains, the second hangs up."""
    with family(f"PATIENT = True\n{PLAIN}", tmp_path) as running:
        until(lambda: running.of("announced"))
        os.killpg(running.process.pid, signal.SIGINT)
        until(lambda: len(running.of("told")) == 2)
        time.sleep(0.2)
        assert sorted(running.of("told")) == sorted(f"{pid} d" for pid in running.born)
        assert running.process.poll() is None
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.ended() == 0
    assert sorted(told[-1] for told in running.of("told")) == ["d", "d", "h", "h"]
    assert "Traceback" not in running.err.read_text()


def test_the_port_is_open_while_a_worker_listens(tmp_path: Path) -> None:
    """The parent lets go of the port once it stops, so that nobody waits for an answer of nobody."""
    leaves = "def work(line): ready(line); line.recv(1); listener.close(); tell('closed'); line.recv(1)"
    with family(leaves, tmp_path) as running:
        until(lambda: running.of("announced"))
        (port,) = running.of("port")
        socket.create_connection(("127.0.0.1", int(port)), 2).close()
        running.process.send_signal(signal.SIGTERM)
        until(lambda: sum(words[0] == "closed" for words in running.said) == 2)
        assert running.process.poll() is None
        with socket.socket() as caller:
            assert caller.connect_ex(("127.0.0.1", int(port))) != 0


def test_orphans_notice(tmp_path: Path) -> None:
    """Workers hear the end of the line when their parent is killed, all at once: none holds another's line open."""
    with family(f"NAP = 1.5\n{PLAIN}", tmp_path) as running:
        until(lambda: running.of("announced"))
        os.kill(running.born[0], signal.SIGKILL)
        until(lambda: len(running.born) == 3)
        running.process.kill()
        until(lambda: len(running.of("orphan")) == 2, 1)
        until(lambda: not any(map(lives, running.born)), 5)
    assert sorted(map(int, running.of("orphan"))) == sorted(running.born[1:])


def test_a_start_that_fails_is_the_end(tmp_path: Path) -> None:
    """When a worker ends before it is ready, the others are ended too, and one sentence says so, without secrets."""
    fails = "def work(line):\n  if elder: raise ValueError('sk-secret')\n  ready(line); obey(line)"
    with family(fails, tmp_path) as running:
        assert running.ended() == 1
        assert not any(map(lives, running.born))
    told = running.err.read_text()
    assert [line["event"] for line in running.log] == ["a worker failed"]
    assert running.log[0]["exception"] == "ValueError"
    assert told.splitlines()[-1] == "a worker process ended before it could serve: its log, above, says why"
    assert "sk-secret" not in told
    assert "Traceback" not in told
    assert not running.of("announced")


def test_the_dead_are_replaced_with_patience(tmp_path: Path) -> None:
    """A worker that dies is replaced, after a pause that grows while the new ones do not live long."""
    with family("def work(line): ready(line); obey(line) if len(elder) < 2 else os._exit(7)", tmp_path) as running:
        until(lambda: running.of("announced"))
        killed = running.born[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(running.log) == 4)
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
    assert {line["event"] for line in running.log} == {"a worker ended and is replaced"}
    assert [line["pause"] for line in running.log] == [0.25, 0.5, 1.0, 2.0]
    assert [line["exit_code"] for line in running.log] == [-9, 7, 7, 7]
    assert running.log[0]["pid"] == killed
    assert sum(words[0] == "announced" for words in running.said) == 1


def test_who_lived_long_is_replaced_at_once(tmp_path: Path) -> None:
    """There is no pause after a worker that had served for a while, whatever went before."""
    with family(f"workers.LONG_LIFE = 0.6\n{PLAIN}", tmp_path) as running:
        until(lambda: running.of("announced"))
        os.kill(running.born[0], signal.SIGKILL)
        until(lambda: len(running.born) == 3)
        time.sleep(0.7)
        os.kill(running.born[2], signal.SIGKILL)
        until(lambda: len(running.born) == 4)
    assert [line["pause"] for line in running.log] == [0.25, 0.0]


def test_the_end_may_come_in_a_pause(tmp_path: Path) -> None:
    """A worker that is due to be replaced in the moment of the signal keeps nobody from ending."""
    with family(PLAIN, tmp_path) as running:
        until(lambda: running.of("announced"))
        os.kill(running.born[0], signal.SIGKILL)
        until(lambda: running.log)
        running.process.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        assert running.ended() == 0
        assert not any(map(lives, running.born))


def test_a_system_that_cannot_fork(tmp_path: Path) -> None:
    """When there can be no process, a start fails in one sentence, and a replacement is tried again."""
    never = "def refuse(): raise OSError(11, 'Resource temporarily unavailable')\n"
    with family(f"{never}os.fork = refuse\n{PLAIN}", tmp_path) as running:
        assert running.ended() == 1
    told = "a worker process cannot be started (Resource temporarily unavailable)"
    assert running.err.read_text() == f"{told}\n"
    twice = "fork = os.fork\ndef sometimes(): return refuse() if len(elder) > 1 else fork()\nos.fork = sometimes\n"
    with family(never + twice + PLAIN, tmp_path) as running:
        until(lambda: running.of("announced"))
        os.kill(running.born[0], signal.SIGKILL)
        until(lambda: len(running.log) == 3)
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
    assert [line["pause"] for line in running.log] == [0.25, 0.5, 1.0]


def test_an_output_that_nobody_reads_leaves_nobody_behind(tmp_path: Path) -> None:
    """When the parent fails, its workers end before it does."""
    broken = (
        "tell_all = tell\ndef tell(*words):\n  if words == ('announced',): raise BrokenPipeError\n  tell_all(*words)\n"
    )
    with family(broken + PLAIN, tmp_path) as running:
        assert running.ended() == 1
        assert not any(map(lives, running.born))
    assert len(running.of("told")) == 2
    assert "BrokenPipeError" in running.err.read_text()
