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


def test_workers_need_a_shared_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Several processes on a store in memory are refused, with the remedy."""
    path = tmp_path / "config.yaml"
    path.write_text("models: {m: {vendor: quickchat, token: t, scenario_id: s}}")

    code, text = outcome(capsys, "serve", "--config", str(path), "--workers", "2")

    assert code == 1
    assert "memory://" in text


@pytest.mark.parametrize("command", ["serve", "check", "models"])
def test_a_store_that_is_not_there_yet_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """What `check` finds faultless `serve` can serve: a store that this version has not is told by both."""
    path = tmp_path / "config.yaml"
    path.write_text("store: sqlite:///x.db\nmodels: {m: {vendor: quickchat, token: t, scenario_id: s}}")

    code, text = outcome(capsys, command, "--config", str(path))

    assert code == 1
    assert "store: " in text
    assert "memory://" in text


def test_vendors_are_imported_on_demand() -> None:
    """The options of a vendor are found by its name, and of no other."""
    vendors = Vendors()

    assert {"newoaks", "quickchat"} <= set(vendors)
    assert vendors["newoaks"].__module__ == "proxy.vendors.newoaks"
    assert "nobody" not in vendors
    assert len(vendors) >= 4
