"""What `ssh -o BatchMode=yes` reaches, UGRO and its rsync reach, and nothing else: all are asked each time."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.lab import LOGIN_PATH
from lab.ssh_agent import ssh_agent
from lab.tools import checked
from tests.hosts.helpers import error_of, ssh_config, sshd_on
from ugro_tasks.errors import HostError, HostKeyUnknown, LoginRefused
from ugro_tasks.hosts.host import Host
from ugro_tasks.hosts.rsync import Rsync
from ugro_tasks.hosts.ssh.config import own_known_hosts
from ugro_tasks.hosts.trust import new_key_of

Login = Callable[..., Host]

# {what is tried: (lines of ~/.ssh/config, whether ssh reaches `gpu0` by them)}
# In the lines, A and B are the addresses of lab0 and lab1, K is lab0's key in a file, and ~ is HOME.
CONFIGURATIONS = {
    "an alias": (["Host gpu0", "HostName A", "User root"], True),
    "an alias without a user": (["Host gpu0", "HostName A"], True),
    "an alias in upper case": (["Host GPU0", "HostName A", "Host gpu0", "HostName A"], True),
    "a pattern": (["Host gpu?", "HostName A"], True),
    "a pattern that leaves it out": (["Host !gpu0 gpu*", "User nobody", "Host gpu0", "HostName A"], True),
    "another spelling of the address": (["Host gpu0", "HostName SHORT"], True),
    "the first value counts": (["Host gpu0", "HostName A", "Host *", "HostName B", "User nobody"], False),
    "the first user counts": (["Host gpu0", "HostName A", "User root", "Host *", "User nobody"], True),
    "Match exec that holds": (["Match host gpu0 exec true", "HostName A"], True),
    "Match exec that does not": (["Host gpu0", "HostName A", "Match exec false", "User nobody"], True),
    "Match final": (["Host gpu0", "HostName A", "Match final all", "User root"], True),
    "Match of another user": (["Host gpu0", "HostName A", "Match user nobody", "Port 2299"], True),
    "Match originalhost": (["Match originalhost gpu0", "HostName A"], True),
    "Match of the address": (["Host gpu0", "HostName A", "Match host A", "Port 2299"], False),
    "another port": (["Host gpu0", "HostName A", "Port 2222"], True),
    "a port of nobody": (["Host gpu0", "HostName A", "Port 2299"], False),
    "a user that is not there": (["Host gpu0", "HostName A", "User nobody-here"], False),
    "a jump host": (["Host gpu0", "HostName A", "ProxyJump root@B"], True),
    "a jump host by name": (["Host gpu0", "HostName A", "ProxyJump way", "Host way", "HostName B"], True),
    "a chain of jump hosts": (["Host gpu0", "HostName A", "ProxyJump root@C:22,root@B"], True),
    "a jump host with a jump host": (
        ["Host gpu0", "HostName A", "ProxyJump way", "Host way", "HostName B", "ProxyJump root@A"],
        True,
    ),
    "a jump host with a token": (["Host gpu0", "HostName A", "User root", "ProxyJump %r@B"], True),
    "ProxyJump none": (["Host gpu0", "HostName A", "ProxyJump none", "Host *", "ProxyJump nobody.invalid"], True),
    "a jump host that is not there": (["Host gpu0", "HostName A", "ProxyJump nobody.invalid"], False),
    "ProxyCommand": (["Host gpu0", "HostName A", "ProxyCommand ssh -W %h:%p root@B"], True),
    "ProxyCommand to another port": (
        ["Host gpu0", "HostName A", "Port 2222", "ProxyCommand ssh -W %h:%p root@B 2>/dev/null"],
        True,
    ),
    "ProxyCommand that ends": (["Host gpu0", "HostName A", "ProxyCommand echo no way >&2; false"], False),
    "a key of another name": (["Host gpu0", "HostName A", "IdentityFile K", "IdentitiesOnly yes"], True),
    "a key named by tokens": (["Host gpu0", "HostName A", "IdentityFile ~/.ssh/%r-%h", "IdentitiesOnly yes"], True),
    "a key that is not there": (["Host gpu0", "HostName A", "IdentityFile ~/.ssh/none"], False),
    "a key that is not there, and one that is": (
        ["Host gpu0", "HostName A", "IdentityFile ~/.ssh/none", "IdentityFile K"],
        True,
    ),
    "no key": (["Host gpu0", "HostName A", "IdentityFile none"], False),
    "no login by keys": (["Host gpu0", "HostName A", "PubkeyAuthentication no"], False),
    "a known_hosts elsewhere": (["Host gpu0", "HostName A", "UserKnownHostsFile ~/.ssh/elsewhere"], True),
    "a known_hosts of strangers": (["Host gpu0", "HostName A", "UserKnownHostsFile ~/.ssh/strangers"], False),
    "HostKeyAlias": (["Host gpu0", "HostName A", "HostKeyAlias cluster-key"], True),
    "HostKeyAlias of nobody": (["Host gpu0", "HostName A", "HostKeyAlias nobody"], False),
    "its key is in a list of revoked ones": (["Host gpu0", "HostName A", "RevokedHostKeys LIST-A"], False),
    "another key is in a list of revoked ones": (["Host gpu0", "HostName A", "RevokedHostKeys LIST-B"], True),
    "its key is in a revocation list": (["Host gpu0", "HostName A", "RevokedHostKeys KRL-A"], False),
    "another key is in a revocation list": (["Host gpu0", "HostName A", "RevokedHostKeys KRL-B"], True),
    "no list of revoked keys": (["Host gpu0", "HostName A", "RevokedHostKeys ~/.ssh/list-of-nobody"], False),
    "one cipher": (["Host gpu0", "HostName A", "Ciphers aes256-ctr", "MACs hmac-sha2-256"], True),
    "one key exchange": (["Host gpu0", "HostName A", "KexAlgorithms ecdh-sha2-nistp256"], True),
    "a type of host key that it has not": (["Host gpu0", "HostName A", "HostKeyAlgorithms ecdsa-sha2-nistp256"], False),
    "compression": (["Host gpu0", "HostName A", "Compression yes"], True),
    "forwards and a terminal": (
        ["Host gpu0", "HostName A", "ForwardAgent yes", "RequestTTY force", "LocalForward 127.0.0.1:22 B:22"],
        True,
    ),
    "an included file": (["Include more*"], True),
    "sent variables": (["Host gpu0", "HostName A", "SendEnv *", "SetEnv LC_UGRO=1"], True),
}  # fmt: skip


@pytest.fixture(params=["ssh", "openssh"])
def transport(request: pytest.FixtureRequest) -> str:
    """UGRO's choice, and OpenSSH in any case."""
    return str(request.param)


@pytest.fixture
def configure(
    home: Lab,
    hosts: list[LabHost],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[[list[str]], None]:
    """Write the user's configuration; nothing but these lines says how lab0 is reached."""
    ssh = home.home / ".ssh"
    known = f"{hosts[0].address} {hosts[0].public_key}\n"
    (ssh / "elsewhere").write_text(known)
    (ssh / "strangers").write_text(f"nobody.example.org {hosts[0].public_key}\n")
    with home.known_hosts.open("a") as file:
        file.write(f"cluster-key {hosts[0].public_key}\n")
        file.write(f"[{hosts[0].address}]:2222 {hosts[0].public_key}\n")
    shutil.copy(ssh / "id_ed25519", ssh / "special")
    for name, host in zip("AB", hosts, strict=False):
        (ssh / f"list-{name}").write_text(f"{host.public_key}\n")
        krl = ["ssh-keygen", "-q", "-k", "-f", f"{ssh}/krl-{name}"]
        checked([*krl, f"{ssh}/list-{name}"])
    shutil.copy(ssh / "id_ed25519", ssh / f"root-{hosts[0].address}")
    (ssh / "more_of_it").write_text(f"Host gpu0\n  HostName {hosts[0].address}\n")
    first, second, third, fourth = hosts[0].address.split(".")
    words = {
        "A": hosts[0].address,
        "B": hosts[1].address,
        "C": hosts[2].address,
        "K": f"{ssh}/special",
        "LIST-A": f"{ssh}/list-A",
        "LIST-B": f"{ssh}/list-B",
        "KRL-A": f"{ssh}/krl-A",
        "KRL-B": f"{ssh}/krl-B",
        # 10.87.0.10 without its zeros.
        "SHORT": f"{first}.{second}.{int(third) * 256 + int(fourth)}",
    }
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def write(lines: list[str]) -> None:
        ssh_config(home, *(_filled(line, words) for line in lines))

    return write


def _filled(line: str, words: dict[str, str]) -> str:
    filled = [words.get(word, word) for word in line.split()]
    for name in ("A", "B", "C"):
        filled = [word.replace(f"@{name}", f"@{words[name]}") for word in filled]
    return " ".join(filled)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ugro_and_rsync_reach_what_ssh_reaches(
    name: str,
    configure: Callable[[list[str]], None],
    hosts: list[LabHost],
    login: Login,
    tmp_path: Path,
) -> None:
    lines, is_reached = CONFIGURATIONS[name]
    configure(lines)
    (tmp_path / "file").write_text("content")
    with sshd_on(hosts[0], 2222):
        assert ssh_reaches("gpu0") is is_reached
        host = login(hostname="gpu0", user=None, ssh_port=None)
        assert reaches(host) is is_reached
        if shutil.which("rsync"):
            assert rsync_reaches(host, tmp_path) is is_reached


def ssh_reaches(word: str) -> bool:
    """Whether OpenSSH itself does."""
    done = subprocess.run(
        ["ssh", "-o", "BatchMode=yes", word, "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode == 0


def reaches(host: Host) -> bool:
    """Whether UGRO does; else its error names the node and a remedy."""
    try:
        return host.run(["echo", "hello"]) == b"hello\n"
    except HostError as error:
        if error.host != host.node.name or not error.fix:
            raise
        return False


def rsync_reaches(host: Host, folder: Path) -> bool:
    try:
        Rsync(host).push(f"{folder}/", "/tmp/of-rsync")
    except HostError:
        return False
    return True


# ---- keys in an ssh-agent ----


@pytest.fixture
def key_in_agent(home: Lab, tmp_path: Path) -> Iterator[Path]:
    """The user's only key is in an ssh-agent, and no file has it."""
    key = home.home / ".ssh" / "id_ed25519"
    socket = tmp_path / "agent.sock"
    with ssh_agent(socket, key):
        key.unlink()
        yield socket


def test_the_agent_of_the_environment_is_asked(
    configure: Callable[[list[str]], None],
    key_in_agent: Path,
    login: Login,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(["Host gpu0", "HostName A"])
    host = login(hostname="gpu0", user=None)
    assert not ssh_reaches("gpu0")
    assert not reaches(host)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(key_in_agent))
    assert ssh_reaches("gpu0")
    assert reaches(host)


@pytest.mark.parametrize(
    ("lines", "is_reached"),
    [
        (["IdentityAgent SOCKET"], True),
        (["IdentityAgent SOCKET", "IdentitiesOnly yes"], True),
        (["IdentityAgent SOCKET", "IdentitiesOnly yes", "IdentityFile ~/.ssh/other"], False),
        (["IdentityAgent SOCKET", "IdentitiesOnly yes", "IdentityFile ~/.ssh/id_ed25519.pub"], True),
        (["IdentityAgent none"], False),
        (["IdentityAgent SSH_AUTH_SOCK"], False),
        (["IdentityAgent ~/.ssh/no-agent"], False),
    ],
)  # fmt: skip
def test_the_agent_of_the_configuration_is_asked(
    configure: Callable[[list[str]], None],
    key_in_agent: Path,
    login: Login,
    lines: list[str],
    is_reached: bool,
) -> None:
    told = [line.replace("SOCKET", str(key_in_agent)) for line in lines]
    configure(["Host gpu0", "HostName A", *told])
    assert ssh_reaches("gpu0") is is_reached
    assert reaches(login(hostname="gpu0", user=None)) is is_reached


def test_many_keys_in_an_agent_do_not_shut_out_the_one_that_is_named(
    configure: Callable[[list[str]], None],
    home: Lab,
    login: Login,
    tmp_path: Path,
) -> None:
    """An sshd ends a login after six keys."""
    keys = []
    for number in range(8):
        keys.append(tmp_path / f"key{number}")
        make_key(keys[-1])
    socket = tmp_path / "agent.sock"
    with ssh_agent(socket, *keys):
        for more, is_reached in (([], False), (["IdentitiesOnly yes"], True)):
            lines = ["Host gpu0", "HostName A", f"IdentityAgent {socket}"]
            configure([*lines, "IdentityFile K", *more])
            assert ssh_reaches("gpu0") is is_reached
            host = login(hostname="gpu0", user=None)
            assert reaches(host) is is_reached
            if not is_reached:
                error = error_of(partial(host.run, ["true"]))
                assert "ended the login after" in error.what


def test_a_locked_key_in_the_agent_needs_no_public_file(
    configure: Callable[[list[str]], None],
    home: Lab,
    login: Login,
    tmp_path: Path,
) -> None:
    key = home.home / ".ssh" / "special"
    socket = tmp_path / "agent.sock"
    with ssh_agent(socket, key):
        lock = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)]
        checked(lock)
        (home.home / ".ssh" / "id_ed25519").unlink()
        lines = ["Host gpu0", "HostName A", f"IdentityAgent {socket}"]
        configure([*lines, "IdentityFile K", "IdentitiesOnly yes"])
        assert ssh_reaches("gpu0")
        assert reaches(login(hostname="gpu0", user=None))


def test_a_key_that_paramiko_does_not_know_is_passed_over(
    configure: Callable[[list[str]], None], home: Lab, login: Login
) -> None:
    old = home.home / ".ssh" / "old"
    checked(["openssl", "genpkey", "-algorithm", "ed448", "-out", str(old)])
    old.chmod(0o600)
    lines = ["IdentityFile ~/.ssh/old", "IdentityFile K"]
    configure(["Host gpu0", "HostName A", *lines])
    assert ssh_reaches("gpu0")
    assert reaches(login(hostname="gpu0", user=None))


def test_a_key_with_a_passphrase_is_said_to_have_one(
    configure: Callable[[list[str]], None], home: Lab, login: Login, tmp_path: Path
) -> None:
    key = home.home / ".ssh" / "special"
    configure(["Host gpu0", "HostName A", "IdentityFile K"])
    checked(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)])
    assert not ssh_reaches("gpu0")
    error = error_of(lambda: login(hostname="gpu0", user=None).run(["true"]))
    assert "has a passphrase" in error.what
    assert f"ssh-add {key}" in error.fix


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_keys_of_each_type_and_form(
    configure: Callable[[list[str]], None],
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    kind: str,
    form: str,
) -> None:
    key = home.home / ".ssh" / "special"
    configure(["Host gpu0", "HostName A", "IdentityFile K", "IdentitiesOnly yes"])
    key.unlink()
    make_key(key, kind, "-m", form)
    public = key.with_name("special.pub").read_text()
    with let_in(hosts[0], public):
        assert ssh_reaches("gpu0")
        assert reaches(login(hostname="gpu0", user=None))


def make_key(path: Path, kind: str = "ed25519", *more: str) -> None:
    checked(["ssh-keygen", "-q", "-t", kind, "-N", "", *more, "-f", str(path)])


@contextmanager
def let_in(host: LabHost, public_key: str) -> Iterator[None]:
    """The host accepts one more key."""
    path = host.path(".ssh/authorized_keys")
    before = path.read_text()
    path.write_text(f"{before}{public_key}")
    try:
        yield
    finally:
        path.write_text(before)


# ---- what a host wants besides a key ----


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("AuthenticationMethods publickey,password", "wants more: password"),
        ("PubkeyAuthentication no", "takes no keys"),
        ("DenyUsers root", "accepts none of your keys"),
    ],
)
def test_a_host_that_wants_more_than_a_key_is_told_as_such(
    configure: Callable[[list[str]], None],
    hosts: list[LabHost],
    login: Login,
    capfd: pytest.CaptureFixture[str],
    line: str,
    words: str,
) -> None:
    configure(["Host gpu0", "HostName A", "Port 2222"])
    settings = (line, "PasswordAuthentication yes", "PermitRootLogin yes")
    with sshd_on(hosts[0], 2222, LOGIN_PATH, *settings):
        assert not ssh_reaches("gpu0")
        host = login(hostname="gpu0", user=None, ssh_port=None)
        error = error_of(lambda: host.run(["true"]))
    assert isinstance(error, LoginRefused)
    assert words in error.what
    # Nobody is asked anything, which a thread could not do.
    assert capfd.readouterr() == ("", "")


# ---- host keys ----


def know(home: Lab, line: str) -> None:
    """Make these lines the user's known_hosts."""
    first, second, *_ = home.hosts
    told = line.format(
        address=first.address, key=first.public_key, other=second.public_key
    )
    home.known_hosts.write_text(f"{told}\n")


@pytest.mark.parametrize(
    ("line", "is_reached"),
    [
        ("10.* {key}", True),
        ("10.*,!{address} {key}", False),
        ("? {key}", False),
        ("gpu0,{address} {key}", True),
        ("gpu0 {key}", False),
        ("@revoked {address} {key}", False),
        ("@revoked * {key}\n{address} {key}", False),
        ("@revoked nobody {key}\n{address} {key}", True),
        ("{address} {other}\n{address} {key}", True),
        ("{address} {other}", False),
        ("{address} ssh-ed25519 rubbish", False),
        ("{address} ssh-ed25519 rubbish\n{address} {key}", True),
        ("{address}", False),
    ],
)
def test_known_hosts_means_the_same_to_both(
    configure: Callable[[list[str]], None],
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    line: str,
    is_reached: bool,
) -> None:
    configure(["Host gpu0", "HostName A"])
    know(home, line)
    assert ssh_reaches("gpu0") is is_reached
    assert reaches(login(hostname="gpu0", user=None)) is is_reached


@pytest.mark.parametrize(
    ("line", "is_reached"),
    [
        ("{address} {key}", True),
        ("[{address}]:2222 {key}", True),
        ("[{address}]:2299 {key}", False),
        ("[{address}]:2222 {other}\n{address} {key}", False),
        ("{address} {other}", False),
    ],
)
def test_a_key_at_another_port_may_be_known_without_it(
    configure: Callable[[list[str]], None],
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    line: str,
    is_reached: bool,
) -> None:
    configure(["Host gpu0", "HostName A", "Port 2222"])
    know(home, line)
    with sshd_on(hosts[0], 2222):
        assert ssh_reaches("gpu0") is is_reached
        host = login(hostname="gpu0", user=None, ssh_port=None)
        assert reaches(host) is is_reached


@pytest.mark.parametrize(
    "lines",
    [
        ["StrictHostKeyChecking no", "UserKnownHostsFile /dev/null"],
        ["StrictHostKeyChecking accept-new", "UserKnownHostsFile /dev/null"],
    ],
)
def test_a_key_that_nobody_keeps_is_kept_by_ugro(
    configure: Callable[[list[str]], None],
    home: Lab,
    hosts: list[LabHost],
    login: Login,
    lines: list[str],
    tmp_path: Path,
) -> None:
    """The one case in which ssh goes where UGRO does not: nobody has looked at the key."""
    configure(["Host gpu0", "HostName A", *lines])
    before = home.known_hosts.read_text()
    assert ssh_reaches("gpu0")
    host = login(hostname="gpu0", user=None)
    error = error_of(lambda: host.run(["true"]))
    assert isinstance(error, HostKeyUnknown)
    assert "inv init" in error.fix
    key = new_key_of(host.node, 5)
    assert key
    key.trust()
    assert (
        own_known_hosts().read_text() == f"{hosts[0].address} {hosts[0].public_key}\n"
    )
    assert own_known_hosts().stat().st_mode & 0o777 == 0o600
    assert home.known_hosts.read_text() == before
    assert reaches(host)
    (tmp_path / "file").touch()
    if shutil.which("rsync"):
        assert rsync_reaches(host, tmp_path)
