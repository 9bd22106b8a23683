"""`inv init` and `inv reset` on the lab."""

import json
import os
import pty
import shutil
import subprocess
import sys

import pytest

from lab import Lab, LabHost
from lab.lab import ROOT
from tests.hosts.helpers import background, fingerprint, inv, ssh_config, ugro

TOKEN = "UGRO_TOKEN=exp9_20260101_000000.5f2c:lab0:node"


@pytest.fixture
def strange(home: Lab) -> Lab:
    """A lab that nobody has logged in to yet."""
    home.known_hosts.unlink()
    return home


# ---- inv init ----


def test_init_shows_each_fingerprint(strange: Lab, hosts: list[LabHost]) -> None:
    done = ugro("init", "--accept-new-host-keys")
    for host in hosts:
        assert f"{host.address} shows ssh-ed25519 {fingerprint(host)}" in done.stderr


def test_init_asks_nobody_where_nobody_is(strange: Lab, hosts: list[LabHost]) -> None:
    done = inv(strange, "init", stdin="y\ny\ny\n")
    assert done.returncode == 22
    assert fingerprint(hosts[0]) in done.stderr
    assert "--accept-new-host-keys" in done.stderr
    assert not strange.known_hosts.exists()


@pytest.mark.parametrize(
    ("answers", "code", "recorded"),
    [("y\ny\ny\n", 0, 3), ("y\nn\n", 22, 1), ("\n", 22, 0)],
)
def test_init_records_what_is_agreed_to(
    strange: Lab, answers: str, code: int, recorded: int
) -> None:
    master, terminal = pty.openpty()
    with open(master, "w") as keyboard:
        keyboard.write(answers)
        keyboard.flush()
        done = subprocess.run(
            [f"{sys.prefix}/bin/inv", "init"],
            cwd=ROOT,
            env=strange.environ,
            stdin=terminal,
            capture_output=True,
            timeout=30,
            check=False,
        )
        os.close(terminal)
    lines = (
        strange.known_hosts.read_text().splitlines()
        if strange.known_hosts.exists()
        else []
    )
    assert (done.returncode, len(lines)) == (code, recorded)


def test_init_records_the_keys_for_this_user_only(
    strange: Lab, hosts: list[LabHost]
) -> None:
    assert ugro("init", "--accept-new-host-keys").returncode == 0
    recorded = strange.known_hosts.read_text().splitlines()
    assert sorted(recorded) == sorted(
        f"{host.address} {host.public_key}" for host in hosts
    )
    assert strange.known_hosts.stat().st_mode & 0o777 == 0o600


def test_init_keeps_what_known_hosts_holds(strange: Lab, hosts: list[LabHost]) -> None:
    mine = f"# mine\nnas.example.org {hosts[0].public_key}\n"
    strange.known_hosts.write_text(mine)
    assert ugro("init", "--accept-new-host-keys").returncode == 0
    assert strange.known_hosts.read_text().startswith(mine)


def test_init_again_finds_nothing_new(strange: Lab) -> None:
    ugro("init", "--accept-new-host-keys")
    recorded = strange.known_hosts.read_bytes()
    again = ugro("init")
    assert (again.returncode, again.stderr) == (0, "")
    assert strange.known_hosts.read_bytes() == recorded


@pytest.mark.usefixtures("one_node_is_away")
def test_init_records_no_changed_key(strange: Lab, hosts: list[LabHost]) -> None:
    wrong = f"{hosts[0].address} {hosts[1].public_key}\n"
    strange.known_hosts.write_text(wrong)
    done = ugro("init", "--accept-new-host-keys")
    assert done.returncode in (5, 23)
    assert "its host key has changed" in done.stdout + done.stderr
    assert f"ssh-keygen -R {hosts[0].address}" in done.stdout + done.stderr
    addresses = [
        line.split()[0] for line in strange.known_hosts.read_text().splitlines()
    ]
    assert addresses.count(hosts[0].address) == 1
    assert strange.known_hosts.read_text().startswith(wrong)


def test_init_trusts_the_jump_host_on_the_way(
    strange: Lab, hosts: list[LabHost]
) -> None:
    own = strange.ssh_config.read_text().splitlines()
    ssh_config(
        strange,
        f"Host {hosts[2].address}",
        f"  ProxyJump root@{hosts[1].address}",
        *own,
    )
    done = ugro("init", "--nodes", "lab2", "--accept-new-host-keys")
    assert done.returncode == 0
    recorded = strange.known_hosts.read_text().splitlines()
    assert recorded == [
        f"{host.address} {host.public_key}" for host in (hosts[1], hosts[2])
    ]


@pytest.mark.usefixtures("one_node_is_away")
def test_init_goes_on_where_a_node_is_down(strange: Lab, hosts: list[LabHost]) -> None:
    hosts[1].stop_sshd()
    done = ugro("init", "--accept-new-host-keys")
    assert done.returncode == 5
    assert "✗ lab1: reachable:" in done.stdout
    assert len(strange.known_hosts.read_text().splitlines()) == 2


def test_init_makes_the_folders(strange: Lab, hosts: list[LabHost]) -> None:
    project = strange.project.removeprefix("~/")
    for host in hosts:
        host.remove(project)
    strange.experiments.rename(strange.folder / "aside")
    assert ugro("init", "--accept-new-host-keys").returncode == 0
    assert all(host.path(project).is_dir() for host in hosts)
    assert strange.experiments.is_dir()
    shutil.rmtree(strange.experiments)
    (strange.folder / "aside").rename(strange.experiments)


@pytest.mark.usefixtures("one_node_is_away")
def test_init_says_when_a_login_is_refused(strange: Lab, hosts: list[LabHost]) -> None:
    granted = hosts[1].run(["cat", ".ssh/authorized_keys"]).stdout
    hosts[1].run(["tee", ".ssh/authorized_keys"], input="")
    try:
        done = ugro("init", "--accept-new-host-keys")
    finally:
        hosts[1].run(["tee", ".ssh/authorized_keys"], input=granted)
    assert done.returncode == 5
    assert f"ssh-copy-id root@{hosts[1].address}" in done.stdout


# ---- inv reset ----


def test_reset_ends_what_carries_a_token_and_says_so(
    home: Lab, hosts: list[LabHost]
) -> None:
    with background(hosts[0], f"env {TOKEN} sleep 77") as pid:
        done = ugro("reset")
        assert done.returncode == 0
        assert pid not in [p for p, _ in hosts[0].processes()]
    assert f"lab0: ended pid {pid} of exp9_20260101_000000: sleep 77" in done.stdout


def test_reset_leaves_all_else_alone(home: Lab, hosts: list[LabHost]) -> None:
    innocents = "env UGRO_JOB_ID=exp9 MY_UGRO_TOKEN=a:b:node sh -c 'sleep 78; : UGRO_TOKEN=a:b:node'"
    with background(hosts[0], innocents) as pid:
        assert ugro("reset").returncode == 0
        assert pid in [p for p, _ in hosts[0].processes()]
        hosts[0].run(["pkill", "-x", "-P", str(pid), "sleep"], check=False)


def test_reset_ends_one_that_will_not_be_asked(home: Lab, hosts: list[LabHost]) -> None:
    deaf = f"env {TOKEN} sh -c 'trap \"\" TERM; sleep 79; sleep 79; sleep 79'"
    with background(hosts[0], deaf):
        assert ugro("reset", "--nodes", "lab0").returncode == 0
        assert hosts[0].processes(token=b"UGRO_TOKEN") == []


def test_reset_ends_what_was_started_by_another_controller(
    home: Lab, hosts: list[LabHost]
) -> None:
    other = "UGRO_TOKEN=of_somebody_else.77:gpu7:node"
    with background(hosts[2], f"env {other} sleep 80") as pid:
        ugro("reset")
        assert pid not in [p for p, _ in hosts[2].processes()]


def test_reset_of_some_nodes_leaves_the_others(home: Lab, hosts: list[LabHost]) -> None:
    with background(hosts[0], f"env {TOKEN} sleep 81") as pid:
        assert ugro("reset", "--nodes", "lab1,lab2").returncode == 0
        assert pid in [p for p, _ in hosts[0].processes()]


def test_reset_in_json(home: Lab, hosts: list[LabHost]) -> None:
    with background(hosts[0], f"env {TOKEN} sleep 82") as pid:
        answer = json.loads(ugro("reset", "--json").stdout)["nodes"]
    assert [process["pid"] for process in answer["lab0"]["ended"]] == [pid]
    assert answer["lab1"] == answer["lab2"] == {"ended": []}


def test_reset_with_nothing_to_end_says_so(home: Lab) -> None:
    done = ugro("reset")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"lab{i}: nothing of UGRO was running" for i in range(3)
    ]


def test_reset_with_a_node_down_ends_the_rest(home: Lab, hosts: list[LabHost]) -> None:
    hosts[1].stop_sshd()
    with background(hosts[0], f"env {TOKEN} sleep 83") as pid:
        done = ugro("reset")
        assert pid not in [p for p, _ in hosts[0].processes()]
    assert "lab1: " in done.stderr
    assert "refused" in done.stderr
    assert done.returncode != 0  # what runs there was not ended
