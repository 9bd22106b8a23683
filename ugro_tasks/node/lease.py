"""The lease of a slot: an flock that its holder keeps for as long as it lives."""

from __future__ import annotations

import fcntl
import io
import json
import os
from typing import Optional

from .files import Json, read_json, state_folder

# ---- the lease ----


def lease_path(slot: str) -> str:
    """One lease a slot; a machine has one slot, the built-in local cluster one for each of its nodes."""
    return os.path.join(state_folder(), "lease-%s.json" % slot)


def take_lease(slot: str, holder: Json) -> Optional[io.TextIOWrapper]:
    """The locked lease file, which is the lease for as long as it is open; None where another process has it."""
    lease = open(os.open(lease_path(slot), os.O_RDWR | os.O_CREAT, 0o600), "r+")  # noqa: SIM115
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lease.close()
        return None
    lease.truncate(0)
    json.dump(holder, lease)
    lease.flush()
    return lease


def lease_holder(slot: str) -> Optional[Json]:
    """What the holder of the lease wrote into it; None where it is free."""
    try:
        with open(lease_path(slot)) as lease:
            fcntl.flock(lease, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return read_json(lease_path(slot)) or {}
    return None
