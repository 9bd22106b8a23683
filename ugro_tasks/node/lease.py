"""The lease of a slot: a name of this machine's, kept by its holder for as long as it lives.

It is an abstract Unix socket, see unix(7): the machine has one of a name, whoever takes it and wherever his home is, no
clean-up can remove it under its holder, and no file system has to lock anything. The kernel frees it with the holder,
and says who that is. What the holder tells of itself besides is in a file, and counts only as that process's words.

Containers with a network of their own have leases of their own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Optional

from .files import Json, own_folder, read_json, state_folder, write_json
from .processes import (
    folder_of_supervisor,
    identity,
    job_of,
    job_part,
    start_time,
    user_name,
)
from .protocol import Refusal

# Of connections by those who look, until the holder clears them.
BACKLOG = 4096
# The credentials of a Unix socket, see socket(7): pid, user, group.
UCRED = struct.Struct("3i")
# What flock says of a lock that another has, by NFS too; a lease of root's cannot be opened.
LOCKED = (errno.EWOULDBLOCK, errno.EACCES, errno.EPERM)


class Lease:
    """A slot that this process holds: for a context, or until its end."""

    def __init__(self, kept: socket.socket) -> None:
        self._kept = kept

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    def clear(self) -> None:
        """Drop the connections of those who looked: a queue that is full would not say whose it is."""
        with contextlib.suppress(OSError):
            while True:
                self._kept.accept()[0].close()


def take_lease(slot: str, holder: Json) -> Optional[Lease]:
    """Take a slot, and write down what its holder tells of itself; return None if another process has it."""
    if first_version_holder(slot) is not None:
        return None
    kept = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        kept.bind(name_of(slot))
    except OSError as error:
        kept.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise Refusal("broken", "no lease can be taken: %s" % error.strerror) from error
    kept.listen(BACKLOG)
    kept.setblocking(False)
    words = {"holder": holder, "process": identity(os.getpid())}
    # On a full disk its pid has to do.
    with contextlib.suppress(OSError):
        write_json(words_path(slot), words)
    return Lease(kept)


def lease_holder(slot: str) -> Optional[Json]:
    """Return what is known of a lease's holder; None if the lease is free."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.setblocking(False)
        try:
            visitor.connect(name_of(slot))
        except ConnectionRefusedError:
            return first_version_holder(slot)
        except BlockingIOError:
            return {}
        raw = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid, user, _ = UCRED.unpack(raw)
    # 0: of another container, that shares the network.
    known: Json = {"pid": pid or None}
    if user != os.geteuid():
        return dict(known, user=user_name(user), job=job_of_stranger(pid))
    words = read_json(words_path(slot)) or {}
    holder = words.get("holder")
    if words.get("process") == identity(pid) and isinstance(holder, dict):
        known.update(holder)
    return known


def name_of(slot: str) -> str:
    """Return the abstract name of a slot's lease.

    A machine has one slot; with the built-in local cluster, one for each node.
    """
    return "\0ugro/lease/" + slot


def words_path(slot: str) -> str:
    """Return the path of what a lease's holder tells of itself."""
    return os.path.join(state_folder(), "lease-%s.json" % slot)


def job_of_stranger(pid: int) -> Optional[str]:
    """Return the job that another user's supervisor was started for, as far as its command shows it."""
    folder = folder_of_supervisor(pid) or ""
    return job_of(job_part(os.path.basename(folder))) or None


# ---- leases of UGRO's first version ----


def first_version_holder(slot: str) -> Optional[Json]:
    """Return the holder of a lease that was a locked file in the home; None if it is free."""
    path = os.path.join(own_folder(), "lease-%s.json" % slot)
    try:
        with open(path) as lease:
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        # Where nothing can be locked, nothing was.
        if error.errno not in LOCKED:
            return None
        # It may not have written yet.
        told = read_json(path) or {}
        pid = told.get("pid")
        # A shared home has the locks of other machines as well.
        is_elsewhere = isinstance(pid, int) and start_time(pid) is None
        return None if is_elsewhere else told
    return None
