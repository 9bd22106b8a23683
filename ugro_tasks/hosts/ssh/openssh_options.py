"""OpenSSH's options for a connection of ours, the same on each jump host as at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from .config import SshConfig, own_known_hosts

# How OpenSSH is made to do nothing but what it was started for, whatever the configuration says.
HARDENED = (
    "BatchMode=yes",
    # Without the host's banner.
    "LogLevel=ERROR",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "ControlPath=none",
)
# The same; OpenSSH before 8.7 has no such settings.
HARDENED_SINCE_8_7 = (
    "SessionType=default",
    "StdinNull=no",
    "ForkAfterAuthentication=no",
)


def openssh_options(
    way: Sequence[SshConfig], connect_seconds: float, through: str = ""
) -> list[str]:
    """Return OpenSSH's options for a way, without the host's name.

    `through` is the ProxyCommand for its jump hosts. Without it they are logged in to by the way:
    OpenSSH gives its jump hosts none of its own options, so each gets them here.
    """
    *jump_hosts, config = way
    # Behind something else it is the time for the login there, too.
    is_behind = bool(jump_hosts or config.proxy_command)
    limit = connect_seconds * (2 + len(way) if is_behind else 1)
    options = _settings(config, limit)
    words = list(config.words[:-1])
    if jump_hosts:
        if "-J" in words:
            at = words.index("-J")
            del words[at : at + 2]
        proxy_command = through or _proxy_command(jump_hosts, connect_seconds)
        options += ["-o", f"ProxyCommand={proxy_command}"]
    return [*options, *words]


def _proxy_command(way: Sequence[SshConfig], connect_seconds: float) -> str:
    """Return the command that leads through these hosts to %h and %p, which OpenSSH fills in."""
    ssh = shlex.join(["ssh", *openssh_options(way, connect_seconds)]).replace("%", "%%")
    host = shlex.quote(way[-1].words[-1]).replace("%", "%%")
    return f"{ssh} -W '[%h]:%p' {host}"


def _settings(config: SshConfig, connect_seconds: float) -> list[str]:
    """Return the options for a connection that asks, forwards and starts nothing."""
    settings = [*HARDENED, f"ConnectTimeout={max(1, round(connect_seconds))}"]
    if "sessiontype" in config.settings:
        settings += HARDENED_SINCE_8_7
    if not config.keeps_known_hosts:
        settings.append(f'UserKnownHostsFile="{own_known_hosts()}"')
    return as_options(settings)


def as_options(settings: Iterable[str]) -> list[str]:
    """Return settings of ssh_config as OpenSSH's options."""
    options = []
    for setting in settings:
        options += ["-o", setting]
    return options
