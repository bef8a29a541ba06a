"""The Containerfile: linted, and its steps done on this machine, since images cannot be built everywhere."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
NOBODY = 10001
CONFIG = """
keys: [{name: team, key: sk-container}]
models: {help: {vendor: quickchat, token: t, scenario_id: s}}
"""


def steps(word: str) -> list[str]:
    """What follows an instruction, each time it is given."""
    return re.findall(rf"^{word} (.*)$", TEXT.replace("\\\n", " "), re.MULTILINE)


def python_for_all(root: Path) -> Path:
    """This Python; a copy of it if it lies where only its owner may go."""
    if all(folder.stat().st_mode & 0o001 for folder in Path(sys.executable).resolve().parents):
        return Path(sys.executable)
    copy = root / "python"
    unused = shutil.ignore_patterns("test", "__pycache__", "site-packages", "*.a")
    shutil.copytree(sys.base_prefix, copy, symlinks=True, ignore=unused)
    return copy / "bin" / "python3"


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """The image's /opt/parley, made by its own RUN steps, which nobody may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can become the container's user")
    with TemporaryDirectory() as name:  # not pytest's, which it closes to others
        root = Path(name)
        root.chmod(0o755)
        make(root)
        yield root


def make(root: Path) -> None:
    source = root / "src"
    source.mkdir()
    for copied in steps("COPY")[:2]:
        for name in shlex.split(copied)[:-1]:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source)
    (run,) = steps("RUN")
    command = run.replace("python -m venv", f"{python_for_all(root)} -m venv").replace(
        "/opt/parley", f"{root}/opt/parley"
    )
    subprocess.run(["bash", "-euc", command], cwd=source, check=True, capture_output=True, text=True)
    (root / "config.yaml").write_text(CONFIG)


def test_it_is_linted() -> None:
    """A linter of container files has nothing to say about ours."""
    linter = Path(sys.executable).with_name("hadolint")

    assert subprocess.run([linter, ROOT / "Containerfile"], capture_output=True, text=True, check=False).stdout == ""


def test_it_runs_as_nobody_for_everybody() -> None:
    """The image names a user without rights, listens on all addresses, and knows how to ask after its health."""
    assert steps("USER") == [f"{NOBODY}:{NOBODY}"]
    assert '"--host", "0.0.0.0"' in steps("CMD")[-1]
    assert "/healthz" in steps("HEALTHCHECK")[0]


@pytest.mark.timeout(180)
def test_what_it_makes_serves_and_ends_well(tree: Path) -> None:
    """What the steps install serves, as a user without rights, from a tree it leaves alone, and ends with 0."""
    program = [f"{tree}/opt/parley/bin/parley", "serve", "--host", "0.0.0.0", "--port", "0"]
    environment = {
        "PARLEY_CONFIG": f"{tree}/config.yaml",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": f"{tree}/python/lib",
    }
    before = sorted(str(path) for path in tree.rglob("*"))
    with subprocess.Popen(
        program,
        cwd="/",
        env=environment,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdout=-1,
        stderr=-1,
        text=True,
    ) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith("parley listening on http://0.0.0.0:"), running.communicate()
        port = line.rpartition(":")[2].strip()
        check = re.findall(r'"((?:[^"])*)"', steps("HEALTHCHECK")[0])[2].replace("8080", port)
        subprocess.run(
            [f"{tree}/opt/parley/bin/python", "-c", check], check=True, user=NOBODY, group=NOBODY, env=environment
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5)
        running.send_signal(signal.SIGTERM)

        assert running.wait(20) == 0
    assert sorted(str(path) for path in tree.rglob("*")) == before
    assert not list(tree.glob("opt/parley/lib/*/site-packages/pip"))
