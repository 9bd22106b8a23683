"""Reaching hosts: what comes back from a command, and what is said when nothing does."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.tools import checked, wait_until
from tests.hosts.helpers import (
    error_of,
    fingerprint,
    listening,
    ssh_config,
    sshd_on,
    within,
)
from ugro_tasks.backends.ssh.reset import reset
from ugro_tasks.cluster.local import local_cluster
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.errors import (
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    NodeFault,
)
from ugro_tasks.health.init import make_folders
from ugro_tasks.health.report import examine
from ugro_tasks.hosts.fleet import Fleet, connect
from ugro_tasks.hosts.host import Host
from ugro_tasks.hosts.rsync import Rsync
from ugro_tasks.hosts.ssh.host import SshHost
from ugro_tasks.hosts.ssh.paramiko_transport import ParamikoTransport
from ugro_tasks.hosts.trust import new_key_of

Login = Callable[..., Host]

# ---- the seam: both ends do the same ----

HOSTILE = [
    "a b",
    "two\nlines",
    "tab\tand\rreturn",
    "$(touch /tmp/injected)",
    "`touch /tmp/injected`",
    "; touch /tmp/injected #",
    "&& touch /tmp/injected",
    "| tee /tmp/injected",
    "> /tmp/injected",
    "'; touch /tmp/injected; '",
    '"; touch /tmp/injected; "',
    "\\'\\\"\\\\",
    "$HOME ${HOME} ~ ~root",
    "* ? [a-z] {a,b}",
    "!! !$ ^a^b",
    "",
    "-n",
    "--",
    "blåbær 🫐 漢字",
    "\x01\x1b[31m\x7f",
]


def test_every_argument_arrives_byte_for_byte(host: Host) -> None:
    arrived = host.run(["printf", "%s\\0", *HOSTILE])
    assert arrived.decode().split("\0") == [*HOSTILE, ""]


def test_no_argument_is_run_as_a_command(host: Host, hosts: list[LabHost]) -> None:
    host.run(["true", *HOSTILE])
    assert not Path("/tmp/injected").exists()
    hosts[0].run(["test", "!", "-e", "/tmp/injected"])


def test_a_program_whose_name_is_hostile_is_not_found(host: Host) -> None:
    with pytest.raises(NodeFault):
        host.run(["$(echo true); true"])


def test_stdout_is_bytes(host: Host) -> None:
    every = bytes(range(256)) * 64
    assert host.run(["cat"], every) == every


def test_stderr_is_not_part_of_stdout(host: Host) -> None:
    assert host.run(["sh", "-c", "echo out; echo err >&2"]) == b"out\n"


@pytest.mark.parametrize("mib", [3, 15])
def test_much_goes_out(host: Host, mib: int) -> None:
    assert host.run(["head", "-c", str(mib << 20), "/dev/zero"]) == bytes(mib << 20)


def test_much_goes_in(host: Host) -> None:
    assert int(host.run(["wc", "-c"], bytes(24 << 20))) == 24 << 20


def test_much_goes_in_and_out_at_once(host: Host) -> None:
    sent = os.urandom(1 << 20) * 8
    assert within(60, lambda: host.run(["cat"], sent, timeout_seconds=50)) == sent


def test_much_on_stderr_does_not_stop_a_command(host: Host) -> None:
    chatter = ["sh", "-c", "head -c 5000000 /dev/zero >&2; echo done"]
    assert host.run(chatter, timeout_seconds=50) == b"done\n"


def test_a_command_need_not_read_its_stdin(host: Host) -> None:
    assert host.run(["echo", "done"], bytes(8 << 20), timeout_seconds=50) == b"done\n"


def test_more_than_16_mib_is_refused(host: Host) -> None:
    error = error_of(lambda: host.run(["head", "-c", str((16 << 20) + 1), "/dev/zero"]))
    assert isinstance(error, NodeFault)
    assert "16 MiB" in error.text


@pytest.mark.parametrize("code", [1, 2, 77, 255])
def test_an_exit_code_is_a_node_fault(host: Host, code: int) -> None:
    with pytest.raises(NodeFault, match=f"exit code {code}"):
        host.run(["sh", "-c", f"exit {code}"])


def test_the_last_line_of_stderr_says_why(host: Host) -> None:
    with pytest.raises(NodeFault, match="the disk is on fire"):
        host.run(["sh", "-c", "echo before >&2; echo the disk is on fire >&2; exit 3"])


def test_the_last_line_of_a_long_stderr_says_why(host: Host) -> None:
    chatter = "yes before | head -c 1000000 >&2; echo the disk is on fire >&2; exit 3"
    with pytest.raises(NodeFault, match="the disk is on fire"):
        host.run(["sh", "-c", chatter], timeout_seconds=50)


def test_a_command_ended_by_a_signal_is_a_node_fault(host: Host) -> None:
    error = error_of(lambda: host.run(["sh", "-c", "kill -9 $$"]))
    assert isinstance(error, NodeFault)


def test_a_program_that_is_not_there_is_named(host: Host) -> None:
    with pytest.raises(NodeFault, match="no-such-program"):
        host.run(["no-such-program"])


def test_a_command_that_takes_too_long_is_given_up_in_time(host: Host) -> None:
    host.run(["true"])
    begun = time.monotonic()
    with pytest.raises(HostError):
        host.run(["sleep", "30"], timeout_seconds=0.5)
    assert 0.5 <= time.monotonic() - begun < 15


def test_a_drip_of_output_does_not_lengthen_the_limit(host: Host) -> None:
    begun = time.monotonic()
    with pytest.raises(HostError):
        host.run(
            ["sh", "-c", "for _ in $(seq 300); do echo drip; sleep 0.1; done"],
            timeout_seconds=0.7,
        )
    assert time.monotonic() - begun < 15


def test_a_command_that_takes_too_long_is_said_to(host: Host) -> None:
    host.run(["true"])
    error = error_of(lambda: host.run(["sleep", "30"], timeout_seconds=0.8))
    assert "sleep" in error.text
    assert "0.8 s" in error.text


def test_after_a_timeout_the_next_command_works(host: Host) -> None:
    with pytest.raises(HostError):
        host.run(["sleep", "30"], timeout_seconds=0.3)
    assert host.run(["echo", "again"]) == b"again\n"


def test_a_command_is_run_once(host: Host, hosts: list[LabHost]) -> None:
    # It is busy for as long as its stdin does not fit into the pipe, which ends in a time-out.
    mark = f"mark{os.getpid()}{id(host)}"
    host.run(["true"])
    slow = ["sh", "-c", f"echo run >> /tmp/{mark}; exec sleep 1.5"]
    with suppress(HostError):
        host.run(slow, bytes(8 << 20), timeout_seconds=1.0)
    try:
        assert host.run(["cat", f"/tmp/{mark}"]) == b"run\n"
    finally:
        host.run(["rm", f"/tmp/{mark}"])


def test_a_stream_comes_as_it_is_written(host: Host) -> None:
    with closing(
        host.stream(["sh", "-c", "echo first; cat >/dev/null; sleep 0.3; echo second"])
    ) as stream:
        assert stream.read(5) == b"first\n"
        assert stream.read(5) == b"second\n"
        assert stream.read(5) == b""


def test_a_silent_stream_is_given_up(host: Host) -> None:
    with closing(host.stream(["sleep", "5"])) as stream, pytest.raises(HostUnreachable):
        stream.read(0.2)


def test_a_closed_stream_ends_its_command(host: Host, hosts: list[LabHost]) -> None:
    endless = ["sh", "-c", "exec yes a_closed_stream"]
    stream = host.stream(endless)
    assert stream.read(5)
    stream.close()
    wait_until(
        lambda: (
            not any("a_closed_stream" in words for _, words in hosts[0].processes())
        ),
        "yes to end",
    )


# ---- nothing is left on a node ----


@pytest.mark.parametrize("operation", [examine, reset], ids=["health", "reset"])
def test_a_request_leaves_nothing_on_the_node(
    cluster: Cluster, hosts: list[LabHost], operation: Callable[..., object]
) -> None:
    node = hosts[0]
    places = [
        "/tmp",
        "/dev/shm",
        "/run",
        "/var/tmp",
        f"{node.home}/.ssh",
        f"{node.home}/ugro",
    ]
    files = ["find", *places, "-xdev", "-type", "f"]
    memory = ["sh", "-c", "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c memfd:ugro"]
    make_folders(cluster)
    before = node.run(files).stdout
    ran = node.processes()
    with Fleet.of(cluster) as fleet:
        operation(*((fleet, cluster) if operation is examine else (cluster,)))
    assert [process for process in node.processes() if process not in ran] == []
    assert node.run(memory, check=False).stdout == "0\n"
    assert node.run(files).stdout == before


# ---- all hosts at once ----


def name_of(host: Host) -> str:
    return host.run(["uname", "-n"]).decode().strip()


def test_map_asks_all_and_answers_in_the_order_of_the_ranks(cluster: Cluster) -> None:
    def late_master(host: Host) -> str:
        time.sleep(0.2 if host.node.rank == 0 else 0)
        return name_of(host)

    with Fleet.of(cluster) as fleet:
        assert list(fleet.map(late_master).items()) == [
            ("lab0", "lab0"),
            ("lab1", "lab1"),
            ("lab2", "lab2"),
        ]


def test_map_asks_all_at_once(cluster: Cluster) -> None:
    met = threading.Barrier(3, timeout=60)
    with Fleet.of(cluster) as fleet:
        assert sorted(fleet.map(lambda _: met.wait()).values(), key=str) == [0, 1, 2]


def test_one_lost_host_is_data_beside_the_others(
    cluster: Cluster, hosts: list[LabHost]
) -> None:
    hosts[1].stop_sshd()
    with Fleet.of(cluster) as fleet:
        found = fleet.map(name_of)
    assert isinstance(found["lab1"], HostUnreachable)
    assert (found["lab0"], found["lab2"]) == ("lab0", "lab2")


def test_all_hosts_lost_is_data_too(cluster: Cluster, home: Lab) -> None:
    home.known_hosts.write_text("")
    with Fleet.of(cluster) as fleet:
        assert {type(error) for error in fleet.map(name_of).values()} == {
            HostKeyUnknown
        }


def test_a_bug_is_raised(cluster: Cluster) -> None:
    def divide(host: Host) -> float:
        return 1 / host.node.rank

    with Fleet.of(cluster) as fleet, pytest.raises(ZeroDivisionError):
        fleet.map(divide)


def test_three_nodes_of_one_machine_answer_for_themselves(tmp_path: Path) -> None:
    with Fleet.of(local_cluster(tmp_path)) as fleet:
        found = fleet.map(lambda host: host.node.name)
    assert found == {"local0": "local0", "local1": "local1", "local2": "local2"}


@pytest.mark.parametrize("transport", ["paramiko"])
def test_the_hosts_of_a_fleet_have_a_configuration_each(cluster: Cluster) -> None:
    with Fleet.of(cluster) as fleet:
        fleet.map(hello)
        connections = [host.transport.hops[-1].connection for host in fleet]
        assert len({id(connection.connect_kwargs) for connection in connections}) == 3
        assert len({id(connection.config) for connection in connections}) == 3


# ---- host keys ----


def hello(host: Host) -> bytes:
    return host.run(["echo", "hello"])


def refusal(
    login: Login, index: int = 0, seconds: float = 20, **changes: object
) -> HostError:
    """The error that a login meets; it must name the node and what to do."""
    error = error_of(lambda: hello(login(index, **changes)), seconds)
    assert error.text.startswith(f"{error.host}: ")
    assert error.host == f"lab{index}"
    assert error.what.strip()[-1] != ":", f"no reason is given: {error.what!r}"
    return error


def test_an_unknown_host_key_is_shown_as_ssh_keygen_shows_it(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    home.known_hosts.write_text("")
    error = refusal(login)
    assert isinstance(error, HostKeyUnknown)
    assert fingerprint(hosts[0]) in error.what
    assert "inv init" in error.fix


def test_without_any_known_hosts_file_a_key_is_unknown(home: Lab, login: Login) -> None:
    home.known_hosts.unlink()
    assert isinstance(refusal(login), HostKeyUnknown)


def test_nothing_is_run_on_a_host_with_an_unknown_key(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    home.known_hosts.write_text("")
    error_of(lambda: login().run(["touch", "/tmp/ran"]))
    hosts[0].run(["test", "!", "-e", "/tmp/ran"])


def test_an_unknown_key_is_not_recorded_by_a_command(home: Lab, login: Login) -> None:
    home.known_hosts.write_text("")
    refusal(login)
    assert home.known_hosts.read_text() == ""


def test_a_changed_host_key_is_shown_beside_the_known_one(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    home.known_hosts.write_text(f"{hosts[0].address} {hosts[1].public_key}\n")
    error = refusal(login)
    assert isinstance(error, HostKeyChanged)
    assert fingerprint(hosts[0]) in error.what
    assert fingerprint(hosts[1]) in error.what
    assert f"ssh-keygen -R {hosts[0].address}" in error.fix


def test_a_machine_installed_anew_is_noticed(
    hosts: list[LabHost], login: Login
) -> None:
    assert hello(login()) == b"hello\n"
    hosts[0].new_host_key()
    assert isinstance(refusal(login), HostKeyChanged)


def test_a_hashed_known_hosts_is_read(home: Lab, login: Login) -> None:
    checked(["ssh-keygen", "-H", "-f", str(home.known_hosts)])
    assert home.subnet.rsplit(".", 1)[0] not in home.known_hosts.read_text()
    assert hello(login()) == b"hello\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"# a comment",
        b"rubbish",
        b"10.0.0.1 ssh-ed25519 not-base64",
        b"@cert-authority *.example.org ssh-ed25519 "
        b"AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q",
        b"nas.example.org sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t",
        b"# bl\xe5b\xe6r",
    ],
    ids=[
        "empty",
        "comment",
        "rubbish",
        "no key",
        "authority",
        "unknown type",
        "latin1",
    ],
)
def test_a_strange_line_in_known_hosts_does_no_harm(
    home: Lab, login: Login, line: bytes
) -> None:
    home.known_hosts.write_bytes(line + b"\n" + home.known_hosts.read_bytes())
    assert hello(login()) == b"hello\n"


def test_a_revoked_key_is_not_trusted(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    home.known_hosts.write_text(f"@revoked {hosts[0].address} {hosts[0].public_key}\n")
    assert isinstance(refusal(login), HostKeyChanged | HostKeyUnknown)


@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
def test_a_key_at_another_port_is_known_by_host_and_port(
    home: Lab, hosts: list[LabHost], login: Login, hashed: bool
) -> None:
    home.known_hosts.write_text(f"[{hosts[0].address}]:2222 {hosts[0].public_key}\n")
    if hashed:
        checked(["ssh-keygen", "-H", "-f", str(home.known_hosts)])
    with sshd_on(hosts[0], 2222):
        assert hello(login(ssh_port=2222)) == b"hello\n"


def test_the_key_of_one_port_does_not_count_for_another(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    home.known_hosts.write_text(f"[{hosts[0].address}]:2222 {hosts[0].public_key}\n")
    assert isinstance(refusal(login, ssh_port=22), HostKeyUnknown)


def test_a_changed_key_at_another_port_comes_with_the_right_remedy(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    home.known_hosts.write_text(f"[{hosts[0].address}]:2222 {hosts[1].public_key}\n")
    with sshd_on(hosts[0], 2222):
        error = refusal(login, ssh_port=2222)
    (remedy,) = re.findall(r"ssh-keygen -R '?([^' ,]+)", error.fix)
    checked(["ssh-keygen", "-R", remedy, "-f", str(home.known_hosts)])
    assert home.known_hosts.read_text() == ""


def test_a_key_once_trusted_is_known_to_openssh_too(
    home: Lab, hosts: list[LabHost], cluster: Cluster
) -> None:
    home.known_hosts.unlink()
    key = new_key_of(cluster.nodes[0], 2)
    assert key is not None
    key.trust()
    assert hosts[0].ssh(["echo", "hello"]).stdout == "hello\n"
    assert home.known_hosts.stat().st_mode & 0o777 == 0o600


def test_a_new_key_does_not_touch_the_last_line_of_known_hosts(
    home: Lab, hosts: list[LabHost], cluster: Cluster
) -> None:
    # An editor may have left it without an end.
    home.known_hosts.write_text(f"{hosts[1].address} {hosts[1].public_key}")
    key = new_key_of(cluster.nodes[0], 2)
    assert key is not None
    key.trust()
    assert home.known_hosts.read_text().splitlines() == [
        f"{host.address} {host.public_key}" for host in (hosts[1], hosts[0])
    ]


# ---- what else can be in the way ----


def test_a_login_that_is_refused_says_how_to_be_let_in(
    login: Login, hosts: list[LabHost]
) -> None:
    error = refusal(login, user="nobody")
    assert isinstance(error, LoginRefused)
    assert f"ssh-copy-id nobody@{hosts[0].address}" in error.fix


def test_without_a_key_of_ones_own_the_login_is_refused(
    home: Lab, login: Login
) -> None:
    (home.home / ".ssh" / "id_ed25519").unlink()
    ssh_config(home)
    assert isinstance(refusal(login), LoginRefused)


def test_a_key_with_a_passphrase_is_said_to_have_one(home: Lab, login: Login) -> None:
    checked(
        [
            "ssh-keygen",
            "-q",
            "-p",
            "-N",
            "a secret",
            "-f",
            str(home.home / ".ssh" / "id_ed25519"),
        ]
    )
    error = refusal(login)
    assert isinstance(error, LoginRefused)
    assert "passphrase" in error.what
    assert "ssh-add" in error.fix


@pytest.mark.parametrize("port", [22, 2200])
def test_a_refused_connection_is_said_to_be_one(
    login: Login, hosts: list[LabHost], port: int
) -> None:
    hosts[0].stop_sshd()
    error = refusal(login, ssh_port=port)
    assert isinstance(error, HostUnreachable)
    assert "refused" in error.what
    assert f"port {port}" in error.what


def test_a_host_behind_a_cut_link_is_given_up_in_time(
    login: Login, hosts: list[LabHost], cluster: Cluster
) -> None:
    hosts[0].cut()
    begun = time.monotonic()
    error = refusal(login)
    assert isinstance(error, HostUnreachable)
    assert "no answer" in error.what
    assert time.monotonic() - begun < cluster.timeouts.connect_seconds + 1


def test_an_address_that_nobody_has_is_given_up_in_time(
    login: Login, home: Lab, cluster: Cluster
) -> None:
    begun = time.monotonic()
    error = refusal(login, address=home.subnet.replace(".0/24", ".99"))
    assert isinstance(error, HostUnreachable)
    assert time.monotonic() - begun < cluster.timeouts.connect_seconds + 1


def test_a_port_that_takes_connections_and_says_nothing_is_given_up_in_time(
    login: Login, hosts: list[LabHost], capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(hosts[0], 2200):
        error = refusal(login, ssh_port=2200, seconds=8)
    assert isinstance(error, HostUnreachable)
    assert "port 2200" in error.what
    # What paramiko says; it tells nobody anything.
    assert "No existing session" not in error.what
    assert error.fix


def test_a_port_that_speaks_another_protocol_is_said_to(
    login: Login, hosts: list[LabHost], capfd: pytest.CaptureFixture[str]
) -> None:
    serve = hosts[0].entered("--mount", "--pid", "--net", "python3", "-u", "-c")
    code = (
        "import socket\n"
        "listener = socket.create_server(('', 2200))\n"
        "print('up')\n"
        "talk = listener.accept()[0]\n"
        "talk.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n' * 200)\n"
        "talk.close()\n"
    )
    with subprocess.Popen([*serve, code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        error = refusal(login, ssh_port=2200, seconds=10)
    assert isinstance(error, HostUnreachable)
    assert "Traceback" not in capfd.readouterr().err


# ---- a connection that is lost and found ----


def test_after_a_restart_of_sshd_the_next_command_works(
    login: Login, hosts: list[LabHost]
) -> None:
    host = login()
    hello(host)
    hosts[0].stop_sshd(sessions=True)
    hosts[0].start_sshd()
    assert hello(host) == b"hello\n"


def test_after_a_reboot_the_next_command_works(
    login: Login, hosts: list[LabHost]
) -> None:
    host = login()
    hello(host)
    hosts[0].reboot()
    assert hello(host) == b"hello\n"


def test_after_a_cut_the_next_command_works(login: Login, hosts: list[LabHost]) -> None:
    host = login()
    hello(host)
    hosts[0].cut()
    begun = time.monotonic()
    with pytest.raises(HostUnreachable):
        host.run(["true"], timeout_seconds=1)
    # Its own limit and one more login; TCP tries for a minute and more.
    assert time.monotonic() - begun < 20
    hosts[0].mend()
    # It takes a moment until the network knows where the host is.
    hosts[0].ssh(["true"])
    assert hello(host) == b"hello\n"


def test_a_short_cut_is_not_noticed(login: Login, hosts: list[LabHost]) -> None:
    host = login()
    hello(host)
    hosts[0].cut()
    mender = threading.Timer(0.5, hosts[0].mend)
    mender.start()
    assert hello(host) == b"hello\n"
    mender.join()


def test_sshd_gone_in_the_middle_of_a_command_is_said(
    login: Login, hosts: list[LabHost]
) -> None:
    host = login()
    hello(host)
    killer = threading.Timer(0.3, lambda: hosts[0].stop_sshd(sessions=True))
    killer.start()
    error = error_of(lambda: host.run(["sh", "-c", "echo part; sleep 2; echo rest"]))
    killer.join()
    assert isinstance(error, HostUnreachable)
    assert "broke off" in error.what


# ---- jump hosts ----


@pytest.fixture(
    params=[
        "cluster file",
        "ssh configuration",
        "ssh configuration by name",
        "included",
    ]
)
def through(
    request: pytest.FixtureRequest, home: Lab, hosts: list[LabHost], login: Login
) -> Login:
    """A login to lab1 by way of lab0, told in different ways."""
    own = home.ssh_config.read_text("utf-8").splitlines()
    jump = f"root@{hosts[0].address}"
    entry = [f"Host {hosts[1].address}", f"    ProxyJump {jump}"]
    match request.param:
        case "cluster file":
            return lambda **changes: login(1, jump=jump, **changes)
        case "ssh configuration":
            ssh_config(home, *entry, *own)
        case "ssh configuration by name":
            name = ["Host bastion", f"    HostName {hosts[0].address}", "    User root"]
            ssh_config(home, *name, entry[0], "    ProxyJump bastion", *own)
        case "included":
            ssh_config(home, *entry, *own)
            home.ssh_config.rename(home.ssh_config.with_name("more"))
            ssh_config(home, "Include more")
    return lambda **changes: login(1, **changes)


def test_a_host_is_reached_through_its_jump_host(
    through: Login, hosts: list[LabHost]
) -> None:
    told = through().run(["sh", "-c", "echo $SSH_CONNECTION"]).decode().split()
    assert (told[0], told[2]) == (hosts[0].address, hosts[1].address)


def test_an_unknown_key_of_the_jump_host_is_refused(
    through: Login, home: Lab, hosts: list[LabHost]
) -> None:
    home.known_hosts.write_text(f"{hosts[1].address} {hosts[1].public_key}\n")
    error = error_of(lambda: hello(through()))
    assert isinstance(error, HostKeyUnknown)
    assert f"{hosts[0].address} shows" in error.what
    assert fingerprint(hosts[0]) in error.what


def test_an_unknown_key_behind_the_jump_host_is_refused(
    through: Login, home: Lab, hosts: list[LabHost]
) -> None:
    home.known_hosts.write_text(f"{hosts[0].address} {hosts[0].public_key}\n")
    error = error_of(lambda: hello(through()))
    assert isinstance(error, HostKeyUnknown)
    assert fingerprint(hosts[1]) in error.what


@pytest.mark.needs("rsync")
def test_files_go_through_the_jump_host_too(
    home: Lab, hosts: list[LabHost], login: Login, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("content")
    host = login(1, jump=f"root@{hosts[0].address}")
    Rsync(host).push(str(tmp_path / "file"), f"{hosts[1].home}/pushed")
    assert hosts[1].path("pushed").read_text() == "content"
    hosts[1].path("pushed").unlink()


@pytest.mark.parametrize("transport", ["paramiko"])
def test_a_closed_host_leaves_no_connection_to_its_jump_host(
    login: Login, hosts: list[LabHost]
) -> None:
    host = login(1, jump=f"root@{hosts[0].address}")
    assert isinstance(host, SshHost)
    assert name_of(host) == "lab1"
    assert isinstance(host.transport, ParamikoTransport)
    to_jump_host = host.transport.hops[0].connection
    assert to_jump_host.is_connected
    host.close()
    assert not to_jump_host.is_connected
    assert name_of(host) == "lab1"


def test_the_jump_host_is_named_when_it_refuses(
    login: Login, hosts: list[LabHost]
) -> None:
    error = refusal(login, 1, jump=f"root@{hosts[0].address}:2200")
    assert "refused" in error.what
    assert f"{hosts[0].address} port 2200" in error.what


def test_the_jump_host_is_named_when_its_name_is_unknown(login: Login) -> None:
    error = refusal(login, 1, jump="root@bastion.invalid")
    assert isinstance(error, HostUnreachable)
    assert "bastion.invalid" in error.what
    assert "resolved" in error.what


def test_the_jump_host_is_named_when_it_refuses_the_login(
    login: Login, hosts: list[LabHost]
) -> None:
    error = refusal(login, 1, jump=f"nobody@{hosts[0].address}")
    assert isinstance(error, LoginRefused)
    assert f"nobody@{hosts[0].address}" in error.text


def test_a_host_that_refuses_its_jump_host_is_said_to(
    login: Login, hosts: list[LabHost], capfd: pytest.CaptureFixture[str]
) -> None:
    hosts[1].stop_sshd()
    error = refusal(login, 1, jump=f"root@{hosts[0].address}")
    assert isinstance(error, HostUnreachable)
    assert "ChannelException" not in error.what
    assert error.fix


@pytest.mark.parametrize("cut", [0, 1], ids=["jump host", "host behind it"])
def test_with_a_jump_host_a_cut_link_is_given_up_in_time(
    login: Login, hosts: list[LabHost], cluster: Cluster, cut: int
) -> None:
    hosts[cut].cut()
    limit = 5 * cluster.timeouts.connect_seconds
    error = refusal(login, 1, jump=f"root@{hosts[0].address}", seconds=limit)
    assert isinstance(error, HostUnreachable)


# ---- the user's ssh configuration ----


@pytest.fixture
def special(home: Lab) -> str:
    """The user's only key has an unusual name."""
    key = home.home / ".ssh" / "id_ed25519"
    return str(key.rename(key.with_name("special")))


@pytest.mark.parametrize("included", [False, True], ids=["config", "included"])
def test_user_port_and_key_of_the_address_count(
    home: Lab, hosts: list[LabHost], login: Login, special: str, included: bool
) -> None:
    home.known_hosts.write_text(f"[{hosts[0].address}]:2222 {hosts[0].public_key}\n")
    entry = [
        f"Host {hosts[0].address}",
        "  User root",
        "  Port 2222",
        f"  IdentityFile {special}",
    ]
    configure(home, entry, included=included)
    with sshd_on(hosts[0], 2222):
        told = login(user=None, ssh_port=None).run(
            ["sh", "-c", "echo $USER $SSH_CONNECTION"]
        )
    assert told.decode().split()[0::4] == ["root", "2222"]


@pytest.mark.parametrize("included", [False, True], ids=["config", "included"])
def test_the_entry_of_the_nodes_name_counts(
    home: Lab, hosts: list[LabHost], login: Login, special: str, included: bool
) -> None:
    entry = [
        "Host lab0",
        f"  HostName {hosts[0].address}",
        "  User root",
        f"  IdentityFile {special}",
    ]
    configure(home, entry, included=included)
    assert hello(login(user=None)) == b"hello\n"


@pytest.mark.needs("rsync")
def test_rsync_honours_the_entry_of_the_nodes_name_too(
    home: Lab, hosts: list[LabHost], login: Login, special: str, tmp_path: Path
) -> None:
    entry = [
        "Host lab0",
        f"  HostName {hosts[0].address}",
        "  User root",
        f"  IdentityFile {special}",
    ]
    configure(home, entry, included=False)
    (tmp_path / "file").write_text("content")
    Rsync(login(user=None)).push(str(tmp_path / "file"), f"{hosts[0].home}/pushed")
    hosts[0].path("pushed").unlink()


def test_the_cluster_file_counts_before_the_ssh_configuration(
    home: Lab, hosts: list[LabHost], login: Login
) -> None:
    configure(
        home,
        [f"Host {hosts[0].address}", "  User nobody", "  Port 2200"],
        included=False,
    )
    assert hello(login(user="root", ssh_port=22)) == b"hello\n"


@pytest.mark.parametrize("path", ["more", "~/.ssh/more", "{home}/.ssh/more", "mo*"])
def test_an_include_needs_no_identity_file(home: Lab, login: Login, path: str) -> None:
    if path.startswith("~") and Path.home() != Path("~root").expanduser():
        # OpenSSH takes ~ from the password file, which is not the lab's home.
        path = str(home.home / ".ssh" / "more")
    (home.home / ".ssh" / "more").write_text("Host 10.*\n  User root\n")
    ssh_config(home, f"Include {path.format(home=home.home)}")
    assert hello(login(user=None)) == b"hello\n"


@pytest.mark.parametrize("line", ["Port twenty-two", "Colour green"])
def test_a_mistake_in_the_ssh_configuration_is_told_in_its_own_words(
    home: Lab, login: Login, line: str
) -> None:
    ssh_config(home, line)
    error = refusal(login, ssh_port=None)
    assert isinstance(error, HostUnreachable)
    assert ".ssh/config" in error.what
    assert line.split()[0].lower() in error.what.lower()
    assert "ssh -G" in error.fix


def configure(home: Lab, entry: list[str], *, included: bool) -> None:
    if included:
        home.ssh_config.with_name("more").write_text("\n".join([*entry, ""]))
        entry = ["Include more"]
    ssh_config(home, *entry)


def test_the_connect_seam_is_lazy(cluster: Cluster, hosts: list[LabHost]) -> None:
    hosts[0].cut()
    begun = time.monotonic()
    connect(cluster.nodes[0], 60).close()
    assert time.monotonic() - begun < 30
