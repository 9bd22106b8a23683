"""The lease of a slot: an flock kept by its holder for as long as it lives."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
from typing import Optional

from .files import Json, read_json, state_folder
from .protocol import Refusal

# What flock says of a lock that another has, by NFS too; a lease of root's cannot be opened.
TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EPERM)


def lease_path(slot: str) -> str:
    """Return the path of a slot's lease.

    A machine has one slot; with the built-in local cluster, one for each node.
    """
    return os.path.join(state_folder(), "lease-%s.json" % slot)


def take_lease(slot: str, holder: Json) -> Optional[io.TextIOWrapper]:
    """Lock a slot's lease and write the holder into it; return None if another process has it.

    The lease lasts until the returned file is closed.
    """
    descriptor = os.open(lease_path(slot), os.O_RDWR | os.O_CREAT, 0o600)
    lease = open(descriptor, "r+")  # noqa: SIM115
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lease.close()
        if error.errno in TAKEN:
            return None
        raise unlockable(error) from error
    lease.truncate(0)
    json.dump(holder, lease)
    lease.flush()
    return lease


def lease_holder(slot: str) -> Optional[Json]:
    """Return the data written by the lease's holder; None if the lease is free."""
    path = lease_path(slot)
    try:
        with open(path) as lease:
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in TAKEN:
            raise unlockable(error) from error
        # The holder may not have written yet.
        return read_json(path) or {}
    return None


def unlockable(error: OSError) -> Refusal:
    """Make the refusal for a home whose file system cannot lock; it says nothing of a holder."""
    words = "%s: a lease cannot be locked there: %s" % (state_folder(), error.strerror)
    return Refusal("unlockable", words)
