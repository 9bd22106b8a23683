"""Files between this machine and a host: by rsync, which is faster, or over the connection that there is.

A node on this machine needs no rsync. Elsewhere either side may lack one that serves, or the ssh beneath it may stumble
over what UGRO's own connection does not: a RemoteCommand, a forwarded port that is taken, a shell that talks. The two
ways have the same calls and leave the same files, so one goes on with what the other began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict, TypeVar, Unpack

from ..errors import HostUnreachable
from .copy import Copy
from .host import Host
from .rsync import Rsync, RsyncUnusable, rsync_fault_here

T = TypeVar("T")


class PushOptions(TypedDict, total=False):
    """See `Rsync.push`."""

    exclude: Sequence[str]
    delete: bool
    files: Sequence[str] | None
    link_from: Sequence[str]
    progress: Callable[[int], None] | None


class PullOptions(TypedDict, total=False):
    """See `Rsync.pull`."""

    exclude: Sequence[str]
    only: Sequence[str]
    files: Sequence[str] | None
    gently: bool
    verify: bool
    progress: Callable[[int], None] | None


class Transfer:
    """Files between this machine and a host; see `Rsync` for what its calls take and raise."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._by_rsync = host.rsync_remote() is not None and rsync_fault_here() is None

    def push(self, source: str, target: str, **options: Unpack[PushOptions]) -> None:
        """Make the folder `target` on the host like `source` here."""
        self._do(lambda way: way.push(source, target, **options))

    def pull(self, source: str, target: str, **options: Unpack[PullOptions]) -> None:
        """Make the folder `target` here like `source` on the host."""
        self._do(lambda way: way.pull(source, target, **options))

    def bytes_to_come(
        self, source: str, target: str, *, exclude: Sequence[str] = ()
    ) -> int | None:
        """Say how much a pull would bring, None where that is not known."""
        return self._do(lambda way: way.bytes_to_come(source, target, exclude=exclude))

    def _do(self, work: Callable[[Rsync | Copy], T]) -> T:
        if self._by_rsync:
            try:
                return work(Rsync(self.host))
            except (RsyncUnusable, HostUnreachable):
                # Whether the host can be reached at all, the other way tells.
                self._by_rsync = False
        return work(Copy(self.host))
