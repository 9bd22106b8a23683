"""A trial of rsync's own connection to a host, before there is anything to bring home."""

from __future__ import annotations

from ..errors import HostError
from .host import Host
from .remembered import Remembered
from .rsync import Rsync, RsyncUnusable
from .ssh.host import SshHost


def rsync_trouble(host: Host, *, anew: bool) -> str | None:
    """Return why rsync does not get to a host; None if it does, or if it needs no connection of its own.

    What worked is not tried again until the answer of `ssh -G`, the host's key or the rsync here
    changes, except `anew`. Raises HostError if the host itself cannot be reached.
    """
    way = host.rsync_way() if isinstance(host, SshHost) else None
    if way is None:
        return None
    works = Remembered("rsync-works", way)
    if works.holds and not anew:
        return None
    try:
        Rsync(host).reach()
    except RsyncUnusable:
        # Of the programs, not of the connection: other checks tell.
        return None
    except HostError as error:
        works.forget()
        return error.what
    works.note()
    return None
