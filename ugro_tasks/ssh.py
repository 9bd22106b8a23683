"""A host over SSH: a Fabric Connection that verifies host keys, has a limit on every wait, and carries raw bytes.

Whatever goes wrong on the way becomes a `HostError` that says which host, what was tried and what to do. An argv is
quoted here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import paramiko
from fabric import Config, Connection

from .cluster import Node
from .errors import (
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    NodeFault,
)

T = TypeVar("T")
READ_BYTES = 1 << 18
# More than any answer needs: a node must not fill the controller's memory.
ANSWER_LIMIT_BYTES = 16 << 20
KEEPALIVE_SECONDS = 15


class SshHost(Connection):  # type: ignore[misc]
    """A Fabric Connection that verifies host keys, has a limit on every wait, and carries raw bytes."""

    # Declared on the class: Fabric's Connection would otherwise take them for configuration.
    node: Node
    round_trip_seconds: float = 0.0
    _opening: Any = None

    def __init__(self, node: Node, connect_seconds: float) -> None:
        config = Config(**_ssh_config_arguments(node.address))
        host = _alias(config, node) or node.address
        super().__init__(
            host,
            user=node.user,
            port=node.ssh_port,
            gateway=_gateway(node.jump, config),
            config=config,
            connect_timeout=max(1, round(connect_seconds)),
            # A dict of its own: Fabric changes it.
            connect_kwargs=dict.fromkeys(
                ("banner_timeout", "auth_timeout", "channel_timeout"), 3 * connect_seconds
            ),
        )
        object.__setattr__(self, "node", node)
        object.__setattr__(self, "_opening", threading.Lock())
        _verify_host_keys(self)

    def open(self) -> None:
        """Log in where not yet done; raises HostError."""
        with self._opening:
            if self.is_connected:
                return
            try:
                if not self.gateway:
                    self.connect_kwargs["sock"] = _PromptSocket.to(self.host, self.port, self.connect_timeout)
                super().open()
            except (paramiko.SSHException, OSError, EOFError) as error:
                self.close()
                raise _explained(self, error) from error
            self.transport.set_keepalive(KEEPALIVE_SECONDS)

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0) -> bytes:
        """See Host."""
        deadline = time.monotonic() + timeout_seconds
        with contextlib.closing(self._execute(argv, stdin, timeout_seconds)) as channel:
            output = bytearray()
            try:
                while chunk := _receive(channel, deadline):
                    output += chunk
                    if len(output) > ANSWER_LIMIT_BYTES:
                        raise NodeFault(
                            self.node.name, f"{argv[0]} sent more than {ANSWER_LIMIT_BYTES >> 20} MiB"
                        )
                complaint = channel.recv_stderr(READ_BYTES) if channel.recv_stderr_ready() else b""
                # Without a status the connection broke: the output may be cut short.
                if (
                    not channel.status_event.wait(max(0.1, deadline - time.monotonic()))
                    or channel.exit_status < 0
                ):
                    raise EOFError
            except (paramiko.SSHException, OSError, EOFError) as error:
                self.close()
                raise _explained(self, error) from error
        return stdout_of(self.node, argv, channel.exit_status, bytes(output), complaint)

    def stream(self, argv: Sequence[str], stdin: bytes = b"") -> _SshStream:
        """See Host."""
        return _SshStream(self, self._execute(argv, stdin, timeout_seconds=30.0))

    def rsync_remote(self) -> tuple[list[str], str]:
        """See Host."""
        shell = shlex.join(["ssh", *openssh_options(self.node)])
        user = f"{self.node.user}@" if self.node.user else ""
        address = f"[{self.node.address}]" if ":" in self.node.address else self.node.address
        return ["-e", shell], f"{user}{address}:"

    def call(self, function: Callable[[Self], T]) -> T:
        """See Host."""
        return function(self)

    def _execute(self, argv: Sequence[str], stdin: bytes, timeout_seconds: float) -> paramiko.Channel:
        """The channel of the started command. A connection found dead is opened anew, once."""
        warm = self.is_connected
        self.open()
        try:
            begun = time.monotonic()
            channel: paramiko.Channel = self.transport.open_session(timeout=timeout_seconds)
            object.__setattr__(self, "round_trip_seconds", time.monotonic() - begun)
            if isinstance(self.transport.sock, _PromptSocket):
                self.transport.sock.prompt = False
            channel.settimeout(timeout_seconds)
            channel.exec_command(shlex.join(argv))
            channel.sendall(stdin)
            channel.shutdown_write()
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            if warm:
                return self._execute(argv, stdin, timeout_seconds)
            raise _explained(self, error) from error
        return channel


class _PromptSocket(socket.socket):
    """A socket that never waits to fill a packet, nor, while logging in, to acknowledge one.

    sshd sends the end of the login in several small packets and waits for our word on the first: 40 ms.
    """

    prompt = hasattr(socket, "TCP_QUICKACK")

    @classmethod
    def to(cls, host: str, port: int, timeout_seconds: float) -> _PromptSocket:
        made = socket.create_connection((host, port), timeout_seconds)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(fileno=made.detach())

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.prompt:
            # The kernel takes it back at each chance.
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().recv(size, flags)


class _SshStream:
    def __init__(self, host: SshHost, channel: paramiko.Channel) -> None:
        self.host, self.channel = host, channel

    def read(self, silence_seconds: float) -> bytes:
        try:
            return _receive(self.channel, time.monotonic() + silence_seconds)
        except (paramiko.SSHException, OSError) as error:
            raise _explained(self.host, error) from error

    def close(self) -> None:
        self.channel.close()


def _receive(channel: paramiko.Channel, deadline: float) -> bytes:
    channel.settimeout(max(0.01, deadline - time.monotonic()))
    received: bytes = channel.recv(READ_BYTES)
    return received


def stdout_of(node: Node, argv: Sequence[str], code: int, out: bytes, err: bytes) -> bytes:
    """The output of a command that has ended; raises NodeFault with its last words where it failed."""
    if code == 0:
        return out
    last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {code}"]
    if code == 127:
        last = [f"{argv[0]} was not found (a non-interactive login reads no profile)"]
        raise NodeFault(node.name, last[0], f"give its path as `python` of {node.name} in the cluster file")
    raise NodeFault(node.name, last[0])


# ---- the user's ssh configuration ----


def _ssh_config_arguments(address: str) -> dict[str, Any]:
    """Fabric reads the user's files itself, but knows no Include; OpenSSH then says what they amount to."""
    path = Path("~/.ssh/config").expanduser()
    text = path.read_text(errors="replace") if path.exists() else ""
    if not re.search(r"(?im)^\s*include\s", text) or not shutil.which("ssh"):
        return {}
    resolved = subprocess.run(
        ["ssh", "-F", str(path), "-G", "--", address], capture_output=True, text=True, timeout=10, check=False
    )
    return {"ssh_config": paramiko.SSHConfig.from_text(resolved.stdout)} if resolved.returncode == 0 else {}


def _alias(config: Config, node: Node) -> str | None:
    """The Host entry under which the user's ssh configuration knows the node's address."""
    for name in filter(None, (node.name, node.hostname)):
        if config.base_ssh_config.lookup(name).get("hostname") == node.address:
            return name
    return None


def _gateway(jump: str | None, config: Config) -> Connection | None:
    return Connection(jump, config=config.clone()) if jump else None


def _verify_host_keys(connection: Connection | None) -> None:
    """Fabric trusts every key; this trusts known_hosts only, for the host and for every hop on the way to it."""
    while isinstance(connection, Connection):
        system = Path("/etc/ssh/ssh_known_hosts")
        if system.exists():
            connection.client.load_system_host_keys(str(system))
        if known_hosts().exists():
            connection.client.load_system_host_keys(str(known_hosts()))
        connection.client.set_missing_host_key_policy(_Refuse())
        connection = connection.gateway


def known_hosts() -> Path:
    """The user's own file of host keys."""
    return Path("~/.ssh/known_hosts").expanduser()


def openssh_options(node: Node) -> list[str]:
    """What OpenSSH (under rsync) needs to reach a node just as `SshHost` does."""
    options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10"]
    options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    if Path.home() != Path(pwd.getpwuid(os.getuid()).pw_dir):
        # OpenSSH takes the home from the password file, this program from HOME.
        options += ["-o", f"UserKnownHostsFile={known_hosts()}"]
        config = known_hosts().with_name("config")
        options += ["-F", str(config)] if config.exists() else []
        for key in sorted(known_hosts().parent.glob("id_*")):
            options += ["-i", str(key)] if key.suffix != ".pub" else []
    options += ["-p", str(node.ssh_port)] if node.ssh_port else []
    options += ["-J", node.jump] if node.jump else []
    return options


# ---- host keys ----


class _UnknownKey(paramiko.SSHException):
    def __init__(self, name: str, key: paramiko.PKey) -> None:
        super().__init__(name)
        self.name, self.key = name, key


class _Refuse(paramiko.MissingHostKeyPolicy):
    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        raise _UnknownKey(hostname, key)


def fingerprint(key: paramiko.PKey) -> str:
    """As `ssh-keygen -l` shows it."""
    digest = b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


class NewKey:
    """A host's key that known_hosts does not hold yet."""

    def __init__(self, name: str, key: paramiko.PKey) -> None:
        self.name = name
        self.fingerprint = fingerprint(key)
        self._line = f"{name} {key.get_name()} {key.get_base64()}\n"

    def trust(self) -> None:
        """Record it in the user's known_hosts."""
        known_hosts().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(known_hosts(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
            file.write(self._line)


def new_key_of(node: Node, connect_seconds: float) -> NewKey | None:
    """The key that has to be trusted before the node can be reached, its jump host's first; None where none has.

    Raises HostError for anything else that is in the way.
    """
    if node.transport == "local":
        return None
    host = SshHost(node, connect_seconds)
    try:
        host.open()
    except HostKeyUnknown as error:
        unknown = error.__cause__
        if isinstance(unknown, _UnknownKey):
            return NewKey(unknown.name, unknown.key)
        raise
    finally:
        host.close()
    return None


# ---- what went wrong, in words ----

_BY_ERRNO = {
    errno.ECONNREFUSED: ("the connection was refused", "is sshd running there, and on this port?"),
    errno.EHOSTUNREACH: ("no route to it", "is the machine on, and in this network?"),
    errno.ENETUNREACH: ("no route to its network", "is this machine online?"),
    errno.ETIMEDOUT: ("no answer", "is the machine on, and does its firewall let SSH through?"),
    errno.ECONNRESET: ("the connection was reset", "see the log of sshd there: journalctl -u ssh"),
}


def _explained(host: SshHost, error: Exception) -> HostError:
    """The HostError for an exception of paramiko or the socket layer."""
    name, where = host.node.name, f"{host.user}@{host.host} port {host.port}"
    if isinstance(error, paramiko.BadHostKeyException):
        return HostKeyChanged(
            name,
            f"its host key has changed ({where}): it shows {fingerprint(error.key)}, "
            f"known_hosts has {fingerprint(error.expected_key)}",
            f"if the machine was set up anew: ssh-keygen -R {_known_name(host)}, then: inv init; "
            "if not, somebody may be in between",
        )
    if isinstance(error, _UnknownKey):
        return HostKeyUnknown(
            name,
            f"its host key is not in known_hosts: {error.name} shows {fingerprint(error.key)}",
            "compare it on the machine (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: inv init",
        )
    if isinstance(error, paramiko.PasswordRequiredException):
        return LoginRefused(name, f"the key for {where} has a passphrase", "load it once: ssh-add")
    if isinstance(error, paramiko.AuthenticationException):
        return LoginRefused(name, f"{where} accepts none of your keys", f"put one there: {_copy_id(host)}")
    if isinstance(error, socket.gaierror):
        return HostUnreachable(
            name, f"the name {host.host} cannot be resolved", "check the cluster file and DNS"
        )
    number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else getattr(error, "errno", None)
    if number is None:
        # paramiko's NoValidConnectionsError holds one error for each address that it tried
        number = next((e.errno for e in getattr(error, "errors", {}).values()), None)
    if number in _BY_ERRNO:
        what, fix = _BY_ERRNO[number]
        return HostUnreachable(name, f"{where}: {what}", fix)
    return HostUnreachable(name, f"{where}: {error or 'the connection broke off'}")


def _known_name(host: SshHost) -> str:
    return shlex.quote(host.host if host.port == 22 else f"[{host.host}]:{host.port}")


def _copy_id(host: SshHost) -> str:
    port = [] if host.port == 22 else ["-p", str(host.port)]
    return shlex.join(["ssh-copy-id", *port, f"{host.user}@{host.host}"])
