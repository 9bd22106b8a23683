"""The key that a host shows, asked of OpenSSH, which trusts it for this one question alone."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .config import SshConfig
from .known_hosts import HostKey
from .openssh_client import LOGIN_TIMES
from .openssh_options import as_options, openssh_options

# These come first, so they count. No key is offered to a host that is not known.
TO_BE_SHOWN = (
    "StrictHostKeyChecking=accept-new",
    "GlobalKnownHostsFile=none",
    "RevokedHostKeys=none",
    "VerifyHostKeyDNS=no",
    "HashKnownHosts=no",
    "UpdateHostKeys=no",
    "PreferredAuthentications=none",
)


def shown_key(way: Sequence[SshConfig], connect_seconds: float) -> HostKey | None:
    """Return the key of the last host of a way; None if it shows none.

    The hosts before it must be known and let the user in.
    """
    settings = [*TO_BE_SHOWN]
    # OpenSSH before 8.5 has no such setting.
    if "knownhostscommand" in way[-1].settings:
        settings.append("KnownHostsCommand=none")
    with tempfile.TemporaryDirectory(prefix="ugro-") as folder:
        noted = Path(folder, "known_hosts")
        # No session either: one that lets anybody in gets none of the user's variables.
        settings.append(f'UserKnownHostsFile="{noted}"')
        argv = ["ssh", "-N", *as_options(settings)]
        argv += [*openssh_options(way, connect_seconds), "--", way[-1].words[-1]]
        # Without a session it may stay, so only the file counts.
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=LOGIN_TIMES * len(way) * connect_seconds,
                check=False,
            )
        if not noted.exists():
            return None
        # The names, and the key.
        return HostKey.in_words(noted.read_text("utf-8", "replace").split()[1:])
