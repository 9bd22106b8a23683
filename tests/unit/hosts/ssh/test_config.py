"""What follows from an answer of `ssh -G`, for us and for an ssh of our own."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ugro_tasks.hosts.ssh.config import SshConfig
from ugro_tasks.hosts.ssh.openssh_options import openssh_options


def answer(**settings: str) -> SshConfig:
    given = {name: [value] for name, value in settings.items()}
    places = {"hostname": ["gpu1"], "user": ["me"], "port": ["22"]}
    return SshConfig(words=("gpu1",), settings=places | given)


@pytest.mark.parametrize(
    ("value", "files"),
    [
        ("/a/known_hosts /a/known_hosts2", ["/a/known_hosts", "/a/known_hosts2"]),
        ("/with a space/known /dev/null", ["/with a space/known"]),
    ],
)
def test_the_files_of_host_keys(value: str, files: list[str]) -> None:
    config = answer(userknownhostsfile=value)
    assert config.known_hosts_files == list(map(Path, files))
    assert config.known_hosts == Path(files[0])


@pytest.mark.parametrize("value", ["/dev/null", "none", "/dev/null /dev/null"])
def test_where_the_user_keeps_no_host_keys_ugro_does(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = answer(userknownhostsfile=value)
    own = tmp_path / "ugro" / "known_hosts"
    assert config.known_hosts == own
    assert f'UserKnownHostsFile="{own}"' in openssh_options([config], 10)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "gpu1"),
        ({"port": "2222"}, "[gpu1]:2222"),
        ({"port": "2222", "hostkeyalias": "lab"}, "lab"),
    ],
)
def test_the_name_in_known_hosts(settings: dict[str, str], name: str) -> None:
    assert answer(**settings).known_name == name


def test_a_configuration_cannot_turn_off_what_is_verified() -> None:
    options = openssh_options([answer()], 10)
    for setting in (
        "StrictHostKeyChecking=yes",
        "NoHostAuthenticationForLocalhost=no",
        "ForwardAgent=no",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
    ):
        assert setting in options


def test_new_settings_are_named_only_to_an_ssh_that_knows_them() -> None:
    assert "StdinNull=no" not in openssh_options([answer()], 10)
    assert "StdinNull=no" in openssh_options([answer(sessiontype="default")], 10)


def test_each_jump_host_of_rsync_gets_the_options_of_its_host() -> None:
    """Two levels of % and of quotes; OpenSSH takes off one of each."""
    first = answer()
    second = SshConfig(words=("-J", "first", "se%cond"), settings=first.settings)
    *_, command = openssh_options([first, second, first], 10)
    outer = shlex.split(command.removeprefix("ProxyCommand="))
    assert outer[-3:] == ["-W", "[%h]:%p", "se%%cond"]
    assert "StrictHostKeyChecking=yes" in outer
    assert "-J" not in outer
    (inner,) = [word for word in outer if word.startswith("ProxyCommand=")]
    words = shlex.split(inner.removeprefix("ProxyCommand="))
    assert words[-3:] == ["-W", "[%%h]:%%p", "gpu1"]
    assert "BatchMode=yes" in words
