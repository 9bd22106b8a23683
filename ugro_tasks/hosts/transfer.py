"""File transfer between this machine and a host: by rsync if possible, else over UGRO's connection.

rsync is faster. A node on this machine needs none. Elsewhere a side may lack a usable one, or its
ssh may fail at something UGRO's own connection does not mind: a RemoteCommand, an occupied
forwarded port, a talkative shell. Both ways have the same methods and leave the same files, so one
can continue the other's work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from ..errors import HostUnreachable
from ..files import has_many_names
from .copy import Copy, NotCome
from .host import Host
from .rsync import Rsync, RsyncUnusable, rsync_fault_here

T = TypeVar("T")


class PushOptions(TypedDict, total=False):
    """The keyword arguments of `Rsync.push`."""

    exclude: Sequence[str]
    delete: bool
    files: Sequence[str] | None
    link_from: Sequence[str]
    progress: Callable[[int], None] | None


class PullOptions(TypedDict, total=False):
    """The keyword arguments of `Rsync.pull`."""

    exclude: Sequence[str]
    never_links: Sequence[str]
    only: Sequence[str]
    files: Sequence[str] | None
    follow_links: bool
    gently: bool
    verify: bool
    progress: Callable[[int], None] | None


class OutputOptions(TypedDict, total=False):
    """The keyword arguments of `Copy.complete` that `Rsync.pull` has as well."""

    exclude: Sequence[str]
    never_links: Sequence[str]
    only_new: bool
    progress: Callable[[int], None] | None


class Transfer:
    """File transfer between this machine and a host; `Rsync` documents the arguments and errors."""

    def __init__(self, host: Host) -> None:
        self.host = host
        needs_rsync = host.rsync_remote() is not None
        self._by_rsync = needs_rsync and rsync_fault_here() is None

    def push(self, source: str, target: str, **options: Unpack[PushOptions]) -> None:
        """Make the folder `target` on the host like `source` here."""
        self._do(lambda way: way.push(source, target, **options))

    def pull(self, source: str, target: str, **options: Unpack[PullOptions]) -> None:
        """Make the folder `target` here like `source` on the host."""
        self._do(lambda way: way.pull(source, target, **options))

    def pull_outputs(
        self,
        source: str,
        target: str,
        *,
        verify: bool = False,
        leave_links: bool = False,
        announce: Callable[[str, str, int], None] | None = None,
        **options: Unpack[OutputOptions],
    ) -> NotCome:
        """Make the folder `target` here like a rank's outputs on the host; return what has not come.

        rsync brings most of it; what it does not tell of is found, fetched or named by `Copy.complete`.
        """
        # rsync would take the last names of a small disk before anybody looks.
        if self._by_rsync and has_many_names(Path(target)):
            try:
                Rsync(self.host).pull(
                    source, target, partly=True, verify=verify, **options
                )
            except (RsyncUnusable, HostUnreachable):
                self._by_rsync = False
            verify = False
        copy = Copy(self.host)
        return copy.complete(
            source,
            target,
            verify=verify,
            leave_links=leave_links,
            announce=announce,
            **options,
        )

    def bytes_to_come(
        self, source: str, target: str, *, exclude: Sequence[str] = ()
    ) -> int | None:
        """Return the bytes a pull would transfer, None if unknown."""
        return self._do(lambda way: way.bytes_to_come(source, target, exclude=exclude))

    def _do(self, work: Callable[[Rsync | Copy], T]) -> T:
        """Do the work by rsync, and from its first failure on over UGRO's connection."""
        if self._by_rsync:
            try:
                return work(Rsync(self.host))
            except (RsyncUnusable, HostUnreachable):
                # If the host is down, the other way will report it.
                self._by_rsync = False
        return work(Copy(self.host))
