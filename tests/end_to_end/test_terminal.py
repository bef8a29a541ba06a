"""The commands for people, as subprocesses before simulated vendors: check, models, chat, setup, schema."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Stage, demo_models, stage

VENDORS = ["askhandle", "misterturing", "newoaks", "quickchat", "quickchat-legacy"]


@pytest.fixture(scope="module")
def built() -> Iterator[Stage]:
    with stage(models={"newoaks": {"aliases": ["gpt-4o-mini"]}}, keys=[{"name": "me", "key": "sk-terminal"}]) as made:
        yield made


@pytest.fixture
def config(built: Stage, tmp_path: Path) -> Path:
    """A configuration file of the simulated bots, with a key that no terminal chat needs to know."""
    models = demo_models(built.simulator_url, built.simulator)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"models": models, "keys": [{"name": "x", "key": "sk-other"}]}))
    return path


def parley(*arguments: object, said: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; a traceback is nobody's answer."""
    command = [sys.executable, "-m", "proxy", *map(str, arguments)]
    done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_check_shows_what_the_file_makes(config: Path) -> None:
    """`check` shows every model with its vendor, address and the names of its credential, and exits with 0."""
    code, out, _ = parley("check", "--config", config)

    assert code == 0
    for name in VENDORS:
        assert f"\n{name}  " in out
    assert "secret_key" in out
    assert "demo-secret-key" not in out
    assert "no faults" in out


def test_check_tells_all_faults(tmp_path: Path) -> None:
    """`check` tells every fault with its path, and exits with 1."""
    path = tmp_path / "bad.yaml"
    path.write_text("server: {port: 99999, hartbeat: 3}\nmodels: {a: {vendor: newoaks}}\n")

    code, out, err = parley("check", "--config", path)

    assert (code, out) == (1, "")
    for place in ("server.port", "server.hartbeat", "models.a.secret_key", "models.a.chatbot_id"):
        assert place in err
    assert "heartbeat" in err


def test_check_live_asks_every_bot(config: Path, built: Stage) -> None:
    """`check --live` shows each bot's latency and reply; a bot that fails makes the exit code 1."""
    code, out, _ = parley("check", "--config", config, "--live")
    assert code == 0
    assert out.count(" s  Hello") == len(VENDORS)

    built.simulator.quickchat.fail("unauthorized")
    code, out, _ = parley("check", "--config", config, "--live")
    assert code == 1
    assert "quickchat: " in out
    assert "FAILED: Quickchat AI refused" in out


def test_models_lists_them(config: Path) -> None:
    """`models` prints the table and nothing else."""
    code, out, _ = parley("models", "--config", config)

    assert code == 0
    assert len(out.splitlines()) == len(VENDORS) + 1


def test_chat_keeps_the_conversation(config: Path) -> None:
    """`chat` streams each reply and shows how it was continued; a fault is shown and may be said again."""
    said = "My name is Ada\nfault failed\nWhat is my name?\n"

    code, out, err = parley("chat", "newoaks", "--config", config, said=said)

    assert code == 0
    assert out.count("[opened]") == 1
    assert "Your name is Ada" in out
    assert "vendor_failed" in err
    assert "[rebuilt unknown-history]" in out


@pytest.mark.parametrize("model", ["gpt-4o-mini", "quickchat"])
def test_chat_with_a_running_proxy(built: Stage, model: str) -> None:
    """`chat --base-url` talks to a proxy that runs elsewhere, with its key."""
    said = "My name is Ada\nWhat is my name?\n"

    code, out, _ = parley("chat", model, "--base-url", f"{built.url}/v1", "--key", "sk-terminal", said=said)

    assert code == 0
    assert "Your name is Ada" in out
    assert "[continued exact]" in out


def test_chat_tells_what_is_wrong(built: Stage, config: Path) -> None:
    """A wrong key, a wrong address and a wrong model are told in a line each."""
    _, _, err = parley("chat", "newoaks", "--base-url", f"{built.url}/v1", "--key", "no", said="Hello\n")
    assert "invalid_api_key" in err
    _, _, err = parley("chat", "newoaks", "--base-url", built.simulator_url, said="Hello\n")
    assert "base URL" in err
    code, _, err = parley("chat", "newoaks", "--base-url", "http://127.0.0.1:9/v1", said="Hello\n")
    assert code == 1
    assert "did not answer" in err
    code, _, err = parley("chat", "nobody", "--config", config)
    assert code == 1
    assert "there are: askhandle" in err


def test_setup_is_for_who_needs_it(config: Path) -> None:
    """`setup` deploys an assistant or makes one; for other vendors there is nothing to set up."""
    assert parley("setup", "misterturing", "--config", config)[0] == 0
    code, out, _ = parley("setup", "misterturing", "--config", config, "--create", "Shop", "--description", "Sells")
    assert code == 0
    assert out.strip()
    code, _, err = parley("setup", "newoaks", "--config", config)
    assert code == 1
    assert "nothing to set up" in err


def test_schema_is_json() -> None:
    """`schema` prints the JSON Schema of the configuration with every vendor's keys."""
    code, out, _ = parley("schema")

    assert code == 0
    assert {"secret_key", "assistant_id", "poll_timeout", "kb_topic"} <= set(json.dumps(json.loads(out)).split('"'))
