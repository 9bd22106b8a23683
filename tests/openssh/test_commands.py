"""Whole commands under the user's ssh configuration: each gets where `ssh -o BatchMode=yes` does, and nowhere else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from lab import Lab, LabHost
from lab.ugro import Ugro
from tests.hosts.helpers import sshd_on
from tests.openssh.test_agreement import CONFIGURATIONS, configure, ssh_reaches

__all__ = ["configure"]

# Of each kind some; `test_agreement.py` has all.
TRIED = [
    "an alias",
    "a pattern",
    "the first value counts",
    "Match exec that holds",
    "Match final",
    "Match originalhost",
    "another port",
    "a port of nobody",
    "a user that is not there",
    "a jump host",
    "a jump host by name",
    "a chain of jump hosts",
    "ProxyJump none",
    "a jump host that is not there",
    "ProxyCommand",
    "a key of another name",
    "a key named by tokens",
    "no key",
    "no login by keys",
    "a known_hosts elsewhere",
    "a known_hosts of strangers",
    "HostKeyAlias",
    "its key is in a list of revoked ones",
    "one cipher",
    "forwards and a terminal",
    "an included file",
]


@pytest.fixture
def ugro(home: Lab, hosts: list[LabHost], tmp_path: Path) -> Iterator[Ugro]:
    """UGRO with one node, of which the cluster file says no more than what one types after `ssh`."""
    made = Ugro(home, tmp_path, hosts=1)
    document = yaml.safe_load(made.cluster_file.read_text())
    master = document["cluster"]["master"]
    for key in ("user", "port", "ssh_port"):
        master.pop(key, None)
    master["ssh"] = "gpu0"
    made.cluster_file.write_text(yaml.safe_dump(document))
    made.set_timeouts(connect_seconds=2)
    made.environ["XDG_STATE_HOME"] = str(tmp_path / "state")
    yield made
    made.close()


@pytest.mark.parametrize("name", TRIED)
def test_the_commands_agree_with_ssh(
    name: str,
    configure: Callable[[list[str]], None],
    hosts: list[LabHost],
    ugro: Ugro,
) -> None:
    lines, is_reached = CONFIGURATIONS[name]
    configure(lines)
    needs_port = any(line.startswith("Port 2222") for line in lines)
    with sshd_on(hosts[0], 2222) if needs_port else contextlib.nullcontext():
        assert ssh_reaches("gpu0") is is_reached
        health = ugro.run("health", "--json")
        (node,) = json.loads(health.stdout)["nodes"]
        assert node["reachable"] is is_reached
        synced = ugro.run("sync-envs")
        assert (synced.returncode == 0) is is_reached, synced.stderr
        launched = ugro.launch("exp1", "--seconds 1", "--detach")
        assert (launched.returncode == 0) is is_reached, launched.stderr
        if not is_reached:
            # Each says why, and what to do.
            for told in (synced.stderr, launched.stderr):
                assert "gpu0" in told or "lab0" in told
            return
        job = ugro.job("exp1")
        state = job.wait_for("succeeded", "failed")
        assert state["state"] == "succeeded", state
        gathered = ugro.run("gather", "exp1")
        assert gathered.returncode == 0, gathered.stderr
        assert all(there == here for there, here in job.digests())
