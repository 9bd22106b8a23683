"""The user's ssh configuration, for Fabric and for the OpenSSH beneath rsync."""

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

# The depth at which OpenSSH stops.
INCLUDES_AT_MOST = 16
# Of the OpenSSH beneath rsync.
SETTINGS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
)


@contextlib.contextmanager
def ssh_config_faults() -> Iterator[None]:
    """Turn errors in the user's ssh configuration into a UsageError."""
    try:
        yield
    except (paramiko.ConfigParseError, ValueError) as error:
        raise UsageError(
            f"~/.ssh/config or /etc/ssh/ssh_config: {error}; `ssh -G HOST` shows how ssh reads it"
        ) from error


def user_ssh_config() -> paramiko.SSHConfig:
    """Read the user's and the system's configuration, with their Includes.

    paramiko does not know Include, so the files are put together here.
    """
    files = [known_hosts().with_name("config"), Path("/etc/ssh/ssh_config")]
    texts = [_with_includes(file, file.parent) for file in files]
    return paramiko.SSHConfig.from_text("\nHost *\n".join(texts))


def _with_includes(path: Path, folder: Path, depth: int = 0) -> str:
    """Return the text of a configuration file, with each Include replaced by its files."""
    if depth > INCLUDES_AT_MOST or not path.is_file():
        return ""
    lines: list[str] = []
    block = "Host *"
    for line in path.read_text(errors="replace").splitlines():
        # "Keyword words" or "Keyword=words".
        setting = line.strip().replace("=", " ", 1)
        keyword, _, words = setting.partition(" ")
        keyword = keyword.lower()
        if keyword in {"host", "match"}:
            block = line
        if keyword != "include":
            lines.append(line)
            continue
        for word in shlex.split(words):
            # A relative name belongs to the folder of the top file.
            pattern = str(folder / Path(word).expanduser())
            for found in sorted(glob.glob(pattern)):  # noqa: PTH207
                lines.append(_with_includes(Path(found), folder, depth + 1))
        # The next lines belong to the block around the Include, not to the included file's last one.
        lines.append(block)
    return "\n".join(lines)


def alias_of(config: paramiko.SSHConfig, node: Node) -> str | None:
    """Return the Host entry for the node's address in the user's ssh configuration, else None."""
    for name in (node.name, node.hostname):
        if not name:
            continue
        address = config.lookup(name).get("hostname")
        if address == node.address:
            return name
    return None


def openssh_options(node: Node) -> list[str]:
    """Return OpenSSH's options (for rsync) to reach a node just as `SshHost` does."""
    options = []
    for setting in SETTINGS:
        options += ["-o", setting]
    home_of_openssh = Path(pwd.getpwuid(os.getuid()).pw_dir)
    if Path.home() != home_of_openssh:
        options += _options_of_this_home()
    if node.ssh_port:
        options += ["-p", str(node.ssh_port)]
    if node.jump:
        options += ["-J", node.jump]
    return options


def _options_of_this_home() -> list[str]:
    """Return options for the files in HOME, since OpenSSH takes the home of the password file."""
    options = ["-o", f"UserKnownHostsFile={known_hosts()}"]
    config = known_hosts().with_name("config")
    if config.exists():
        options += ["-F", str(config)]
    for key in sorted(known_hosts().parent.glob("id_*")):
        if key.suffix != ".pub":
            options += ["-i", str(key)]
    return options
