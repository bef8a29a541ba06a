"""The commands, as far as they can be called in process; the rest is in end_to_end/."""

from pathlib import Path

import pytest

from proxy.cli import Vendors, main


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    return (
        1 if isinstance(code, str) else code
    ), f"{code if isinstance(code, str) else ''}{''.join(capsys.readouterr())}"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`parley --help` lists what there is."""
    code, text = outcome(capsys, "--help")

    assert code == 0
    assert all(command in text for command in ("demo", "serve", "simulate"))


@pytest.mark.parametrize("arguments", [(), ("sevre",), ("serve", "--port", "x")])
def test_a_wrong_call_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """A command that is not there or gets odd arguments exits with 2 and a usage line."""
    code, text = outcome(capsys, *arguments)

    assert code == 2
    assert "usage: parley" in text


def test_a_missing_file_says_how_to_make_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`serve` without a configuration file exits with 1 and says what to do."""
    code, text = outcome(capsys, "serve", "--config", str(tmp_path / "none.yaml"))

    assert code == 1
    assert "config.example.yaml" in text


def test_an_open_proxy_stays_at_home(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without keys `serve` and `demo` refuse to listen for other machines."""
    path = tmp_path / "config.yaml"
    path.write_text("models: {m: {vendor: quickchat, token: t, scenario_id: s}}")

    for arguments in (["serve", "--config", str(path), "--host", "0.0.0.0"], ["demo", "--host", "0.0.0.0"]):
        code, text = outcome(capsys, *arguments)

        assert code == 1
        assert "key" in text


def config_of(folder: Path, store: str) -> str:
    path = folder / "config.yaml"
    path.write_text(f"store: {store}\nmodels: {{m: {{vendor: quickchat, token: t, scenario_id: s}}}}")
    return str(path)


def test_workers_need_a_shared_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Several processes on a store in memory are refused in one sentence, with the remedy."""
    code, text = outcome(capsys, "serve", "--config", config_of(tmp_path, "memory://"), "--workers", "2")

    assert code == 1
    assert "memory://" in text
    assert "`store: sqlite:///parley.db`" in text
    assert "redis://" in text
    assert "\n" not in text


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5", ""])
def test_workers_are_counted(capsys: pytest.CaptureFixture[str], count: str) -> None:
    """A number of workers that is none is a wrong call, and told as such."""
    code, text = outcome(capsys, "serve", f"--workers={count}")

    assert code == 2
    assert f"argument --workers: {count!r} is no number of processes: 1 or more" in text


@pytest.mark.parametrize("command", ["serve", "check", "models"])
def test_a_store_that_cannot_be_used_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    """What `check` finds faultless `serve` can serve: a file that cannot be made is told by both."""
    config = config_of(tmp_path, f"sqlite:///{tmp_path}/nowhere/x.db")

    code, text = outcome(capsys, command, "--config", config)

    assert code == 1
    assert "store: " in text
    assert "in a folder that exists" in text


@pytest.mark.parametrize("command", ["check", "models"])
def test_to_look_makes_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    """A store's file is made by those who serve, not by those who look at the configuration."""
    config = config_of(tmp_path, f"sqlite:///{tmp_path}/x.db")

    code, _ = outcome(capsys, command, "--config", config)

    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("command", ["check", "models"])
def test_a_file_of_others_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    """A store's file that is there is looked into."""
    (tmp_path / "x.db").write_text("The diary of somebody, who would not like it to be written into.")

    code, text = outcome(capsys, command, "--config", config_of(tmp_path, f"sqlite:///{tmp_path}/x.db"))

    assert code == 1
    assert "belongs to another program" in text
    assert "diary" not in text


def test_vendors_are_imported_on_demand() -> None:
    """The options of a vendor are found by its name, and of no other."""
    vendors = Vendors()

    assert {"newoaks", "quickchat"} <= set(vendors)
    assert vendors["newoaks"].__module__ == "proxy.vendors.newoaks"
    assert "nobody" not in vendors
    assert len(vendors) >= 4
