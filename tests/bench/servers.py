"""What is measured, and what it is measured against: each a process that is started and ended here."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import parked
from tests.stores.servers import free_port

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("PARLEY_BENCH_CACHE") or Path.home() / ".cache" / "parley-bench")
SERVED, BESIDE = "0", "1"  # cores: of what is measured; of the vendor, the load and the stores
KEY = "sk-bench-0123456789abcdef"
VENDORS = ("newoaks", "askhandle", "quickchat", "quickchat-legacy", "misterturing")
STREAMING = ("newoaks", "misterturing")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(eq=False)
class Server:
    """Somebody who answers `POST /v1/chat/completions`; without a process it is the vendor itself.

    `listening` is how many seconds that took from its start, `patience` by how much longer it is measured.
    """

    name: str
    port: int
    model: str = "bench"
    headers: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    listening: float = 0.0
    patience: float = 1.0

    def as_model(self, model: str) -> "Server":
        """The same process asked for another model."""
        return Server(f"parley {model}", self.port, model, self.headers, self.process, self.listening)

    @property
    def pids(self) -> Sequence[int]:
        """Of all its processes."""
        return list(_tree(self.process.pid)) if self.process else []

    def rss(self) -> float:
        """MiB in memory now, summed over its processes."""
        return sum(_rss(pid) for pid in self.pids)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _tree(int(child))


def _rss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used; 0 if there is none any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


@dataclass
class Stage:
    """All processes of a run. `folder` is theirs to write to."""

    folder: Path
    vendor: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0  # so many; the last one's log has this number

    @property
    def url(self) -> str:
        """The vendor's."""
        return f"http://127.0.0.1:{self.vendor}"

    def pids(self) -> Sequence[int]:
        """Of everything that was started here."""
        return [pid for process in self.running if process.poll() is None for pid in _tree(process.pid)]

    def start(
        self, *command: str | Path, core: str = SERVED, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start it on a core, with what it says going to a file."""
        self.started += 1
        with (self.folder / f"{self.started}.log").open("wb") as log:
            pinned = ["taskset", "-c", core, *map(str, command)]
            environment = {**os.environ, **(env or {})}
            process = subprocess.Popen(pinned, stdout=log, stderr=log, cwd=ROOT, env=environment)
        self.running.append(process)
        return process

    def end(self, *processes: subprocess.Popen[bytes]) -> None:
        """End these, or all."""
        for process in processes or tuple(self.running):
            process.terminate()
        for process in processes or tuple(self.running):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process in self.running:
                self.running.remove(process)

    def serve(self, server: Server, *command: str | Path, env: Mapping[str, str] | None = None) -> Server:
        """Start a server and wait until it listens."""
        began = time.monotonic()
        server.process = self.start(*command, env=env)
        until_listening(server.port, server.process)
        server.listening = time.monotonic() - began
        return server

    def parley(
        self,
        *,
        store: str = "memory://",
        workers: int = 1,
        core: str = SERVED,
        filled: int = 0,
        model: str = "newoaks",
    ) -> Server:
        """A Parley with every vendor's bot, one key, metrics, and its log in a file; asked for one of its models."""
        port = free_port()
        module = ("tests.bench.parked", str(filled)) if filled else ("proxy",)
        config = self.config(port, store)
        server = Server(f"parley {model}", port, model, {"authorization": f"Bearer {KEY}"})
        command = (sys.executable, "-m", *module, "serve", "--config", config, "--workers", str(workers))
        began = time.monotonic()
        server.process = self.start(*command, core=core)
        log = self.folder / f"{self.started}.log"
        while b"parley listening" not in log.read_bytes():  # the port is open before all workers are there
            if server.process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.01)
        server.listening = time.monotonic() - began
        return server

    def config(self, port: int, store: str = "memory://") -> Path:
        """The file that describes such a Parley. Bounds that a load from one machine would meet are out of the way."""
        wide = {"max_connections": 4000, "max_concurrency": 4000, "queue": 4000}
        accounts: Mapping[str, Mapping[str, str]] = {
            "newoaks": {"vendor": "newoaks", "secret_key": "bench", "chatbot_id": "bench"},
            "askhandle": {"vendor": "askhandle", "token": "bench"},
            "quickchat": {"vendor": "quickchat", "token": "bench", "scenario_id": "bench"},
            "quickchat-legacy": {"vendor": "quickchat", "api_key": "bench", "scenario_id": "bench"},
            "misterturing": {"vendor": "misterturing", "api_key": "bench", "assistant_id": "bench"},
        }
        config: dict[str, Any] = {
            "server": {"port": port},
            "keys": [{"name": "bench", "key": KEY}],
            "store": store,
            "conversation": {"max_parked": parked.ROOM},
            "models": {
                name: {**account, **wide, "base_url": f"{self.url}/{account['vendor']}"}
                for name, account in accounts.items()
            },
        }
        path = self.folder / f"parley-{port}.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    def bare(self) -> Server:
        """See bare.py."""
        port = free_port()
        return self.serve(Server("bare", port), sys.executable, "-m", "tests.bench.bare", str(port), self.url)

    def nginx(self) -> Server:
        """A reverse proxy with one worker, connections to the vendor kept, no buffering."""
        port, home = free_port(), self.folder / "nginx"
        home.mkdir(exist_ok=True)
        kept = "keepalive 4000; keepalive_requests 100000000;"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = " ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)
        (home / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log crit;\n"
            "worker_rlimit_nofile 20000; events { worker_connections 10000; }\n"
            f"http {{ access_log off; tcp_nodelay on; {folders}\n"
            f"upstream vendor {{ server 127.0.0.1:{self.vendor}; {kept} }}\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 100000000; location / {{\n"
            'proxy_pass http://vendor; proxy_http_version 1.1; proxy_set_header Connection "";\n'
            "proxy_buffering off; client_max_body_size 20m; } } }\n"
        )
        return self.serve(
            Server("nginx", port), _there("nginx"), "-p", home, "-c", home / "nginx.conf", "-e", home / "error.log"
        )

    def portkey(self) -> Server:
        """Portkey's gateway; the vendor is named by headers, as its documents say."""
        port = free_port()
        headers = {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{self.url}/v1",
            "authorization": "Bearer k",
        }
        command = ("node", "-r", HERE / "loopback.cjs", _there("portkey"), f"--port={port}", "--headless")
        return self.serve(Server("portkey", port, headers=headers), *command, env={"NODE_ENV": "production"})

    def litellm(self) -> Server:
        """LiteLLM's proxy, one worker, tuned as its page on production says; no database."""
        port = free_port()
        account = {"model": "openai/bench", "api_base": f"{self.url}/v1", "api_key": "bench"}
        config: dict[str, Any] = {
            "model_list": [{"model_name": "bench", "litellm_params": account}],
            "general_settings": {"master_key": KEY, "disable_error_logs": True},
            "litellm_settings": {"set_verbose": False, "json_logs": True, "request_timeout": 600},
        }
        path = self.folder / "litellm.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        env = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        server = Server("litellm", port, headers={"authorization": f"Bearer {KEY}"}, patience=2.5)
        command = (
            _there("litellm"),
            "--config",
            path,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        )
        return self.serve(server, *command, env=env)

    def redis(self) -> tuple[subprocess.Popen[bytes], str]:
        """A Redis that writes nothing to its disk, and its URL."""
        port = free_port()
        command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        process = self.start(*command, core=BESIDE)
        until_listening(port, process)
        return process, f"redis://127.0.0.1:{port}/0"


OTHERS = ("nginx", "portkey", "litellm")


def _there(name: str) -> Path:
    """Where one of the others is installed."""
    places = {
        "nginx": CACHE / "nginx/usr/sbin/nginx",
        "litellm": CACHE / "litellm/bin/litellm",
        "portkey": CACHE / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js",
    }
    return Path(shutil.which("nginx") or places[name]) if name == "nginx" else places[name]


def is_installed(name: str) -> bool:
    """Whether one of the others can be measured here."""
    return _there(name).exists()


@contextmanager
def stage(folder: Path, vendor: Path) -> Iterator[Stage]:
    """A stage with the vendor on it; whatever is started there ends with it."""
    made = Stage(folder, free_port())
    try:
        until_listening(made.vendor, made.start(vendor, str(made.vendor), core=BESIDE))
        yield made
    finally:
        made.end()


def until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens there. Raises RuntimeError if its process ends, or after two minutes."""
    until = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"does not listen: {process.args!r}") from None
            time.sleep(0.01)
        else:
            return
