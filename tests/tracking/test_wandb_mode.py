"""Who is logged in to W&B, and whether a run is online, offline or off."""

import sys
from pathlib import Path

import pytest
from commands import called, environment

from simclr_pl.tracking.wandb import WandbChoice
from simclr_pl.tracking.wandb_mode import logged_in, resolve_mode


def test_nobody_is_logged_in_here() -> None:
    assert not logged_in()
    assert resolve_mode("auto") == "offline"


def test_a_key_in_the_environment_logs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in()
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_a_key_in_the_netrc_file_logs_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    if name == "elsewhere":
        monkeypatch.setenv("NETRC", str(home / name))
    (home / name).write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    (home / name).chmod(0o600)
    assert logged_in()
    assert resolve_mode("auto") == "online"


def test_a_key_for_another_server_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine wandb.example.org\n  login user\n  password {'0' * 40}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert not logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/api")
    assert logged_in()


def test_a_broken_netrc_file_is_nobody_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine machine api.wandb.ai pass word")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not logged_in()


@pytest.mark.parametrize(
    ("named", "mode"),
    [
        ("online", "online"),
        ("run", "online"),
        ("offline", "offline"),
        ("Offline", "offline"),
        ("dryrun", "offline"),
        ("disabled", "off"),
        ("nonsense", "offline"),
        ("", "online"),
    ],
)
def test_wandb_mode_decides_where_nothing_was_asked_for(
    named: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)  # who says something else isn't online by mistake
    monkeypatch.setenv("WANDB_MODE", named)
    assert resolve_mode("auto") == mode
    assert resolve_mode("off") == "off"
    assert resolve_mode("offline") == "offline"


@pytest.mark.parametrize(
    ("value", "mode"), [("true", "off"), ("1", "off"), ("TRUE", "off"), ("false", "online")]
)
def test_wandb_disabled_turns_it_off(
    value: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_DISABLED", value)
    assert resolve_mode("auto") == mode


@pytest.mark.parametrize(("command", "mode"), [("offline", "offline"), ("disabled", "off")])
def test_what_w_and_b_s_own_command_has_set_holds(
    command: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    outcome = called(sys.executable, "-m", "wandb", command, env=environment(WANDB_SILENT="true"))
    assert outcome.returncode == 0, outcome
    assert resolve_mode("auto") == mode
    monkeypatch.setenv("WANDB_MODE", "online")
    assert resolve_mode("auto") == "online"


def test_the_project_is_the_environment_s_where_a_recipe_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert WandbChoice().project == "simclr_pl"
    monkeypatch.setenv("WANDB_PROJECT", "images")
    assert WandbChoice().project == "images"
    assert WandbChoice(project="letters").project == "letters"
