"""What logind says of a logout, and where a job may have a cgroup of its own; with a real systemd in tests/logind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ugro_tasks.node import processes, scope
from ugro_tasks.node.scope import is_killed, look_at_logout, scope_argv

NOBODY = "as 0"
TOKEN = "exp1_20260120_120000.c0ffee00:gpu0:0"


@pytest.mark.parametrize(
    ("kills", "only", "but", "expected"),
    [
        ("b true", NOBODY, 'as 1 "root"', True),
        ("b false", NOBODY, 'as 1 "root"', False),
        ("b true", NOBODY, 'as 2 "root" "ada"', False),
        ("b true", 'as 1 "ada"', NOBODY, True),
        ("b true", 'as 1 "bob"', NOBODY, False),
        ("b true", 'as 1 "ada"', 'as 1 "ada"', False),
    ],
)
def test_whose_processes_logind_ends(
    kills: str, only: str, but: str, expected: bool
) -> None:
    assert is_killed("ada", f"{kills}\n{only}\n{but}\n") is expected


@pytest.mark.parametrize("said", ["", "b true", "Failed to get property\n\n\n"])
def test_where_logind_says_nothing_nothing_is_said_of_it(said: str) -> None:
    assert not is_killed("ada", said)


def test_a_machine_without_systemd_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scope, "SYSTEMD", str(tmp_path / "no systemd"))
    assert look_at_logout()() == {"kills": False, "lingers": False, "scope_error": ""}


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make a machine on which this user lingers."""
    (tmp_path / processes.user_name(os.getuid())).touch()
    (tmp_path / "run/systemd").mkdir(parents=True)
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(scope, "LINGERING", str(tmp_path))
    monkeypatch.setattr(scope, "runtime_folder", lambda: str(tmp_path / "run"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("lingering")
def test_a_scope_is_named_after_the_token() -> None:
    argv = scope_argv(TOKEN)
    assert f"--unit=ugro-{TOKEN}.scope" in argv
    assert argv[-1] == "--"


@pytest.mark.usefixtures("lingering")
def test_a_name_that_is_too_long_for_systemd_has_no_scope() -> None:
    assert scope_argv("x" * 250) == []


@pytest.mark.usefixtures("lingering")
def test_who_does_not_linger_has_no_scope(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scope, "LINGERING", str(tmp_path / "nobody"))
    assert scope_argv(TOKEN) == []


OWN = f"/user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (f"0::{OWN}/app.slice/ugro-{TOKEN}.scope\n", TOKEN),
        (f"0::{OWN}/app.slice/ugro-{TOKEN}.scope/a/part\n", TOKEN),
        (f"4:memory:/\n1:name=systemd:{OWN}/ugro-{TOKEN}.scope\n0::/\n", TOKEN),
        (f"0::/user.slice/user@4242.service/ugro-{TOKEN}.scope\n", None),
        (f"0::{OWN}/app.slice/other-{TOKEN}.scope\n", None),
        (f"0::{OWN}/app.slice/ugro-{TOKEN}.service\n", None),
        (f"0::{OWN}/app.slice/ugro-probe-1.scope\n", None),
        ("", None),
    ],
    ids=["scope", "below", "version 1", "another user's", "name", "service", "probe", "gone"],
)  # fmt: skip
def test_the_token_of_a_scope_counts_in_this_users_systemd_alone(
    monkeypatch: pytest.MonkeyPatch, cgroup: str, expected: str | None
) -> None:
    monkeypatch.setattr(processes, "read_text", lambda _: cgroup)
    assert processes.token_of_scope(1) == expected
