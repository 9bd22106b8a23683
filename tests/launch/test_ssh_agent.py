"""The agent logs in by the ssh-agent of the newest command: its first one ends with the login that started it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab
from lab.ssh_agent import ssh_agent
from lab.tools import wait_until
from lab.ugro import Ugro


@pytest.fixture
def only_key(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """The user's only key, at a place that no configuration names."""
    ssh = lab.home / ".ssh"
    key = tmp_path / "key"
    before = lab.ssh_config.read_text()
    config = [line for line in before.splitlines() if "Identit" not in line]
    (ssh / "id_ed25519").rename(key)
    lab.ssh_config.write_text("\n".join([*config, ""]))
    try:
        yield key
    finally:
        key.rename(ssh / "id_ed25519")
        lab.ssh_config.write_text(before)


def test_outputs_come_home_by_a_later_commands_ssh_agent(
    ugro: Ugro, only_key: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first.sock"
    with ssh_agent(first, only_key):
        ugro.environ["SSH_AUTH_SOCK"] = str(first)
        job = ugro.detach("exp1", "--seconds 4")
    second = tmp_path / "second.sock"
    with ssh_agent(second, only_key):
        ugro.environ["SSH_AUTH_SOCK"] = str(second)
        assert ugro.run("status").returncode == 0
        # Whatever it has open, it must log in anew.
        for host in ugro.hosts:
            host.stop_sshd(sessions=True)
            host.start_sshd()
        state = job.wait_for("succeeded", "failed")
        assert state["state"] == "succeeded", state["cause"]
        wait_until(lambda: bool(job.state()["gathered_at"]), "the outputs", 60)
    assert all(there == here for there, here in job.digests())
