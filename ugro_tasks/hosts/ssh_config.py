"""What the user's own ssh configuration says, for Fabric and for the OpenSSH beneath rsync."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shlex
from collections.abc import Iterator
from pathlib import Path

import paramiko

from ..cluster.model import Node
from ..errors import UsageError
from .known_hosts import known_hosts

INCLUDES_AT_MOST = 16  # as deep as OpenSSH follows them


@contextlib.contextmanager
def ssh_config_faults() -> Iterator[None]:
    """Turn what is wrong in the user's ssh configuration into a UsageError."""
    try:
        yield
    except (paramiko.ConfigParseError, ValueError) as error:
        raise UsageError(
            f"~/.ssh/config or /etc/ssh/ssh_config: {error}; `ssh -G HOST` shows how ssh reads it"
        ) from error


def user_ssh_config() -> paramiko.SSHConfig:
    """Read the user's file, then the system's. paramiko knows no Include, so the files are put together here."""
    files = [known_hosts().with_name("config"), Path("/etc/ssh/ssh_config")]
    texts = [_with_includes(file, file.parent) for file in files]
    return paramiko.SSHConfig.from_text("\nHost *\n".join(texts))


def _with_includes(path: Path, folder: Path, depth: int = 0) -> str:
    if depth > INCLUDES_AT_MOST or not path.is_file():
        return ""
    lines: list[str] = []
    block = "Host *"
    for line in path.read_text(errors="replace").splitlines():
        keyword, _, words = line.strip().replace("=", " ", 1).partition(" ")
        if keyword.lower() in {"host", "match"}:
            block = line
        if keyword.lower() != "include":
            lines.append(line)
            continue
        for word in shlex.split(words):
            # A relative name is looked up beside the file of the first level.
            pattern = str(folder / Path(word).expanduser())
            for found in sorted(glob.glob(pattern)):  # noqa: PTH207
                lines.append(_with_includes(Path(found), folder, depth + 1))
        # What follows belongs to the block that the Include stands in, not to the last one of the included file.
        lines.append(block)
    return "\n".join(lines)


def alias_of(config: paramiko.SSHConfig, node: Node) -> str | None:
    """Find the Host entry under which the user's ssh configuration knows the node's address."""
    for name in (node.name, node.hostname):
        if name and config.lookup(name).get("hostname") == node.address:
            return name
    return None


def openssh_options(node: Node) -> list[str]:
    """Give the options with which OpenSSH (under rsync) reaches a node just as `SshHost` does."""
    options = [
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "ConnectTimeout=10",
    ]
    options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    if Path.home() != Path(pwd.getpwuid(os.getuid()).pw_dir):
        options += _options_of_this_home()
    if node.ssh_port:
        options += ["-p", str(node.ssh_port)]
    if node.jump:
        options += ["-J", node.jump]
    return options


def _options_of_this_home() -> list[str]:
    """Name the files of the home that this program takes from HOME, and OpenSSH from the password file."""
    options = ["-o", f"UserKnownHostsFile={known_hosts()}"]
    config = known_hosts().with_name("config")
    if config.exists():
        options += ["-F", str(config)]
    for key in sorted(known_hosts().parent.glob("id_*")):
        if key.suffix != ".pub":
            options += ["-i", str(key)]
    return options
