"""A login by OpenSSH's own program: what it leaves, what it shares, and when it is taken."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, LabHost
from lab.lab import LOGIN_PATH
from lab.ssh_agent import ssh_agent
from lab.tools import wait_until
from tests.hosts.helpers import error_of, ssh_config, sshd_on
from ugro_tasks.errors import HostError, HostKeyUnknown, HostUnreachable, LoginRefused
from ugro_tasks.hosts.host import Host
from ugro_tasks.hosts.rsync import Rsync
from ugro_tasks.hosts.ssh import control_sockets, jump_hosts
from ugro_tasks.hosts.ssh.host import SshHost
from ugro_tasks.hosts.ssh.jump_hosts import JumpMaster
from ugro_tasks.hosts.ssh.openssh_master import Master
from ugro_tasks.hosts.ssh.openssh_transport import OpenSshTransport
from ugro_tasks.hosts.ssh.paramiko_transport import ParamikoTransport

Login = Callable[..., SshHost]


@pytest.fixture
def transport() -> str:
    """UGRO chooses."""
    return "ssh"


def hello(host: Host) -> bytes:
    return host.run(["echo", "hello"])


def is_by(host: SshHost, kind: type) -> bool:
    assert hello(host) == b"hello\n"
    return isinstance(host.transport, kind)


# ---- nothing is left ----


def masters(folder: Path) -> list[int]:
    """The processes of OpenSSH with a socket in this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"-S\0" + os.fsencode(folder) in words:
                found.append(int(process.name))
    return found


def sockets_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_socket()]


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the sockets, of this test alone; its path must be short."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder, f"ugro-{os.getuid()}")
        for parent in [*control_sockets._BY_PARENT]:
            if parent.startswith(folder):
                with control_sockets._BY_PARENT.pop(parent)._watcher:
                    # It ends when its stdin does.
                    pass


def test_a_closed_host_leaves_no_process_and_no_socket(
    login: Login, sockets: Path
) -> None:
    host = login(transport="openssh")
    assert hello(host) == b"hello\n"
    assert len(sockets_in(sockets)) == 1
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert masters(sockets)
    host.close()
    assert sockets_in(sockets) == []
    wait_until(lambda: not masters(sockets), "the master to end")


PROGRAM = """
import sys, time
from tests.unit.factories import make_node
from ugro_tasks.hosts.ssh import jump_hosts
from ugro_tasks.hosts.fleet import connect
jump_hosts.PERSIST_SECONDS = 3
address, *jump = sys.argv[1:]
sleeps = "sleep" in jump
jump = [word for word in jump if word != "sleep"]
node = make_node(
    transport="openssh", address=address, user="root", jump=f"root@{jump[0]}" if jump else None
)
host = connect(node, 10)
host.run(["true"])
print("ready", flush=True)
if sleeps:
    host.run(["sleep", "600"], timeout_seconds=900)
time.sleep(600)
"""


@contextmanager
def controller_of(argv: list[str], sockets: Path) -> Iterator[None]:
    """A program that has logged in, killed at the end."""
    environ = os.environ | {"TMPDIR": str(sockets.parent)}
    checkout = Path(__file__).parents[2]
    with subprocess.Popen(
        argv, cwd=checkout, env=environ, stdout=subprocess.PIPE
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == b"ready\n"
        yield
        controller.kill()


def test_a_controller_that_is_killed_leaves_no_process_and_no_socket(
    home: Lab, hosts: list[LabHost], sockets: Path
) -> None:
    argv = [sys.executable, "-c", PROGRAM, hosts[0].address]
    with controller_of(argv, sockets):
        assert masters(sockets)
    wait_until(lambda: not masters(sockets), "the master to end")
    wait_until(lambda: not sockets.exists(), "the folder to go")


@pytest.mark.parametrize("jump", [False, True])
def test_a_controller_that_is_killed_in_mid_command_ends_all_of_it(
    home: Lab, hosts: list[LabHost], sockets: Path, jump: bool
) -> None:
    """The command itself may go on for ever."""
    addresses = [hosts[1].address, hosts[0].address]
    argv = [sys.executable, "-c", PROGRAM, *addresses[: 1 + jump]]
    with controller_of([*argv, "sleep"], sockets):
        wait_until(lambda: "sleep 600" in processes_of(hosts[1]), "the command")
        assert len(masters(sockets)) > 1
    wait_until(lambda: not masters(sockets), "the masters to end")
    wait_until(lambda: not sockets.exists(), "the folder to go")


def processes_of(host: LabHost) -> str:
    return "\n".join(" ".join(argv) for _, argv in host.processes())


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_somebody_else_has_put_there_is_not_used(
    hosts: list[LabHost], home: Lab, sockets: Path, what: str
) -> None:
    if what == "folder":
        sockets.mkdir()
        sockets.chmod(0o777)
    elif what == "file":
        sockets.touch()
    else:
        sockets.symlink_to("/nowhere")
    argv = [sys.executable, "-c", PROGRAM, hosts[1].address]
    with controller_of(argv, sockets):
        (own,) = [path for path in sockets.parent.iterdir() if path != sockets]
        assert own.stat().st_mode & 0o777 == 0o700
        assert len(sockets_in(own)) == 1
    wait_until(lambda: not own.exists(), "its own folder to go")
    assert os.path.lexists(sockets)


def test_dead_sockets_go_with_the_next_login(
    sockets: Path, home: Lab, hosts: list[LabHost]
) -> None:
    sockets.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(sockets / "dead"))
    with controller_of([sys.executable, "-c", PROGRAM, hosts[1].address], sockets):
        assert not (sockets / "dead").exists()


@pytest.mark.parametrize("name", ["a%b", "a b", "it's", "a${HOME}b"])
def test_any_name_of_the_temporary_folder_will_do(
    login: Login, sockets: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = sockets.parent / name
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert hello(login(transport="openssh")) == b"hello\n"


def test_a_long_name_of_the_temporary_folder_does_no_harm(
    login: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert hello(login(transport="openssh")) == b"hello\n"


# ---- its connection ----


def test_rsync_goes_over_the_same_connection(
    login: Login, hosts: list[LabHost], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("content")
    host = login(transport="openssh")
    assert hello(host) == b"hello\n"
    options, remote = host.rsync_remote()
    assert "ControlMaster=no" in options[1]
    Rsync(host).push(f"{tmp_path}/file", "/tmp/of-rsync-1")
    assert remote == "node:"
    hosts[0].stop_sshd()
    # No new connection could be made.
    Rsync(host).push(f"{tmp_path}/file", "/tmp/of-rsync-2")


def test_rsync_makes_no_connection_of_its_own(login: Login, tmp_path: Path) -> None:
    """Where the master has gone, its client must not go around it, unverified."""
    host = login(transport="openssh")
    options, remote = host.rsync_remote()
    host.close()
    argv = ["rsync", *options, f"{tmp_path}/", f"{remote}/tmp/of-rsync"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ugro-finds-no-master" in done.stderr


def test_a_stopped_connection_is_noticed_and_made_anew(login: Login) -> None:
    host = login(transport="openssh")
    assert hello(host) == b"hello\n"
    assert isinstance(host.transport, OpenSshTransport)
    master = host.transport._master
    assert isinstance(master, Master)
    os.kill(master.pipes.process.pid, signal.SIGKILL)
    master.pipes.process.wait()
    assert hello(host) == b"hello\n"


# ---- jump hosts ----


def test_nodes_behind_a_jump_host_share_one_login_on_it(
    login: Login, hosts: list[LabHost], sockets: Path
) -> None:
    """An sshd turns away whoever comes while others log in (MaxStartups); this one, the third."""
    with sshd_on(hosts[0], 2222, LOGIN_PATH, "MaxStartups 2:100:2"):
        jump = f"root@{hosts[0].address}:2222"
        nodes = [login(1 + number % 2, jump=jump) for number in range(14)]
        with ThreadPoolExecutor(len(nodes)) as threads:
            assert list(threads.map(hello, nodes)) == [b"hello\n"] * len(nodes)
        assert len(sockets_in(sockets)) == len(nodes) + 1
        for node in nodes:
            node.close()
    wait_until(lambda: not masters(sockets), "all masters to end")
    assert sockets_in(sockets) == []


def test_a_jump_host_that_turns_us_away_is_tried_again(
    login: Login, hosts: list[LabHost]
) -> None:
    """Strangers fill it for a moment."""
    with sshd_on(hosts[0], 2222, LOGIN_PATH, "MaxStartups 1:100:1"):
        stranger = socket.create_connection((hosts[0].address, 2222))
        timer = threading.Timer(1.0, stranger.close)
        timer.start()
        host = login(1, jump=f"root@{hosts[0].address}:2222")
        assert hello(host) == b"hello\n"
        timer.join()


def test_a_jump_host_that_goes_is_logged_in_to_again(
    login: Login, hosts: list[LabHost]
) -> None:
    jump = f"root@{hosts[0].address}"
    nodes = [login(1, jump=jump), login(2, jump=jump)]
    assert [hello(node) for node in nodes] == [b"hello\n"] * 2
    hosts[0].reboot()
    assert [hello(node) for node in nodes] == [b"hello\n"] * 2


def test_a_jump_host_that_refuses_is_asked_once_for_all(
    login: Login, hosts: list[LabHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Counted(JumpMaster):
        def __init__(self, *words: Any) -> None:
            tried.append(words)
            super().__init__(*words)

    monkeypatch.setattr(jump_hosts, "JumpMaster", Counted)
    jump = f"nobody@{hosts[0].address}"
    nodes = [login(1, jump=jump) for _ in range(6)]
    with ThreadPoolExecutor(len(nodes)) as threads:
        errors = list(threads.map(lambda node: error_of(partial(hello, node)), nodes))
    assert {type(error) for error in errors} == {LoginRefused}
    assert len({error.text for error in errors}) == 1
    # Whoever came late asked anew.
    assert len(tried) < len(nodes)
    assert f"jump host nobody@{hosts[0].address}" in errors[0].text


def test_a_jump_host_without_a_shell_will_do(
    login: Login, hosts: list[LabHost]
) -> None:
    """Most often nobody may run a command there."""
    with sshd_on(hosts[0], 2222, LOGIN_PATH, "ForceCommand /bin/false"):
        host = login(1, jump=f"root@{hosts[0].address}:2222")
        assert hello(host) == b"hello\n"


def test_a_connection_of_the_users_to_a_jump_host_is_shared(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    """As a second factor of the bastion leaves it."""
    own = home.ssh_config.read_text().splitlines()
    with master_of_the_user(home, hosts[0]) as path:
        lines = [f"Host {hosts[0].address}", f"ControlPath {path}", "IdentityFile none"]
        ssh_config(home, *lines, *own)
        host = login(1, jump=f"root@{hosts[0].address}")
        assert hello(host) == b"hello\n"
        host.close()
        assert path.is_socket(), "the user's master is none of ours"


def test_a_jump_host_that_forbids_to_go_on_is_named(
    login: Login, hosts: list[LabHost]
) -> None:
    with sshd_on(hosts[0], 2222, LOGIN_PATH, "AllowTcpForwarding no"):
        host = login(1, jump=f"root@{hosts[0].address}:2222")
        error = error_of(lambda: hello(host))
    assert isinstance(error, HostUnreachable)
    assert "the jump host cannot reach" in error.what
    assert "AllowTcpForwarding" in error.fix


# ---- what a host says ----


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "ForceCommand echo This account is not available.",
            "account is not available",
        ),
        ("MaxSessions 1", "no more commands run over one connection"),
        ("MaxSessions 0", "closed the connection during the login"),
    ],
)
def test_a_host_that_lets_nothing_run_is_told_in_its_words(
    login: Login, hosts: list[LabHost], line: str, words: str
) -> None:
    with sshd_on(hosts[0], 2222, LOGIN_PATH, line):
        error = error_of(lambda: hello(login(transport="openssh", ssh_port=2222)))
    assert words in error.what


def test_one_command_too_many_ends_no_other(login: Login, hosts: list[LabHost]) -> None:
    with sshd_on(hosts[0], 2222, LOGIN_PATH, "MaxSessions 3"):
        host = login(transport="openssh", ssh_port=2222)
        assert hello(host) == b"hello\n"
        with ThreadPoolExecutor(5) as threads:
            wait = partial(host.run, ["sh", "-c", "sleep 2; echo well"])
            outcomes = list(threads.map(lambda _: outcome_of(wait), range(5)))
    assert sorted(outcomes) == ["NodeFault"] * 3 + ["b'well\\n'"] * 2


def outcome_of(function: Callable[[], object]) -> str:
    try:
        return str(function())
    except HostError as error:
        return type(error).__name__


# ---- the user's ssh-agent stays here ----


@pytest.mark.parametrize("by", ["paramiko", "openssh", "master"])
def test_no_agent_is_forwarded_whatever_the_configuration_says(
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    own = home.ssh_config.read_text().splitlines()
    ask = ["sh", "-c", "echo agent=$SSH_AUTH_SOCK"]
    with ssh_agent(tmp_path / "agent"), contextlib.ExitStack() as stack:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        lines = ["Host *", "ForwardAgent yes"]
        ssh_config(home, *lines, *own)
        if by == "master":
            path = stack.enter_context(master_of_the_user(home, hosts[0]))
            ssh_config(home, *lines, f"ControlPath {path}", *own)
            argv = ["ssh", hosts[0].address, ask[2]]
            told = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
            assert told.stdout != b"agent=\n", "the user's own commands get it"
        host = login(transport="ssh" if by == "master" else by)
        assert host.run(ask) == b"agent=\n"
        assert isinstance(host.transport, ParamikoTransport) is (by == "paramiko")


def test_a_controller_that_is_killed_leaves_no_login_on_a_jump_host(
    home: Lab, hosts: list[LabHost], sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [sys.executable, "-c", PROGRAM, hosts[1].address, hosts[0].address]
    with controller_of(argv, sockets):
        assert len(masters(sockets)) > 1
    wait_until(lambda: not masters(sockets), "the masters to end", 40)
    wait_until(lambda: not sockets.exists(), "the folder to go")


# ---- the choice ----


def test_paramiko_is_taken_where_it_can_do_all(login: Login) -> None:
    assert is_by(login(), ParamikoTransport)


@pytest.mark.parametrize(
    "line",
    [
        "AddressFamily inet",
        "BindAddress {controller}",
        "KnownHostsCommand /bin/cat {known_hosts}",
        "MACs umac-128-etm@openssh.com",
    ],
)
def test_openssh_is_taken_for_what_only_it_can_do(
    home: Lab, login: Login, line: str
) -> None:
    own = home.ssh_config.read_text().splitlines()
    filled = line.format(
        controller=home.subnet.replace(".0/24", ".1"), known_hosts=home.known_hosts
    )
    ssh_config(home, "Host *", filled, "Ciphers aes256-ctr", *own)
    assert is_by(login(), OpenSshTransport)


@contextmanager
def master_of_the_user(home: Lab, host: LabHost) -> Iterator[Path]:
    """A living master in the user's own ControlPath, as a second factor leaves it."""
    path = home.home / ".ssh" / "cm"
    argv = ["ssh", "-o", "ControlMaster=yes", "-o", f"ControlPath={path}", "-N"]
    argv += ["-o", f"UserKnownHostsFile={home.known_hosts}", host.address]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        try:
            wait_until(path.is_socket, "the master")
            yield path
        finally:
            process.terminate()


def test_a_living_master_of_the_users_is_shared(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    own = home.ssh_config.read_text().splitlines()
    with master_of_the_user(home, hosts[0]) as path:
        ssh_config(home, "Host *", f"ControlPath {path}", *own)
        (home.home / ".ssh" / "id_ed25519").rename(home.home / ".ssh" / "aside")
        host = login()
        assert is_by(host, OpenSshTransport)
        host.close()
        assert path.is_socket(), "the user's master is none of ours"
        again = login()
        assert hello(again) == b"hello\n"
    # Without it there is no key.
    assert isinstance(error_of(lambda: hello(again)), LoginRefused)


@pytest.mark.parametrize(
    "lines",
    [
        ["StrictHostKeyChecking no"],
        ["StrictHostKeyChecking accept-new", "UserKnownHostsFile /dev/null"],
        ["NoHostAuthenticationForLocalhost yes"],
    ],
)
def test_a_master_that_may_have_verified_no_key_is_not_shared(
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    own = home.ssh_config.read_text().splitlines()
    with master_of_the_user(home, hosts[0]) as path:
        ssh_config(home, "Host *", f"ControlPath {path}", *lines, *own)
        host = login()
        if "/dev/null" in lines[-1]:
            assert isinstance(error_of(lambda: hello(host)), HostKeyUnknown)
        else:
            assert is_by(host, ParamikoTransport)
