"""Who uses a training environment: jobs, on any machine that shares its folder, as over NFS; and builds.

WORK is the work folder beside the environment, see `build`. A build keeps WORK/lock locked. A job keeps a file in
WORK/users, named after its token and with its holder's words, for as long as its supervisor lives. The file system
frees both with their process. Where it has no locks, the leases of each machine have to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import IO, Iterator, Optional

from .files import NO_LOCKS, Json, read_json, write_json
from .protocol import Refusal

# A build that finds nothing to do keeps the lock for a moment.
PATIENCE_SECONDS = 2.0
LOOK_SECONDS = 0.05


@contextlib.contextmanager
def using(work: Optional[str], holder: Json) -> Iterator[None]:
    """Be a user of an environment for a context; refuses with "busy" while it is being made.

    Without WORK there is nothing to keep: the environment is not made by UGRO.
    """
    kept = take_use(work, holder) if work else None
    if kept is None:
        yield
        return
    with kept:
        yield
        with contextlib.suppress(OSError):
            os.unlink(kept.name)


def take_use(work: str, holder: Json) -> Optional[IO[bytes]]:
    """Return the locked file of a new user; None where none can be had."""
    users = os.path.join(work, "users")
    try:
        with open(os.path.join(work, "lock"), "rb") as lock:
            if not locked_within(lock, fcntl.LOCK_SH, PATIENCE_SECONDS):
                words = "its environment is being made"
                builder = read_json(os.path.join(work, "builder.json")) or {}
                raise Refusal("busy", words, holder=builder)
            os.makedirs(users, mode=0o700, exist_ok=True)
            path = os.path.join(users, holder["token"])
            write_json(path, holder)
            kept = open(path, "ab")  # noqa: SIM115  (for as long as the job runs)
            locked_within(kept, fcntl.LOCK_EX, 0.0)
            return kept
    except OSError:
        # Another account's, or on a full disk.
        return None


def locked_within(file: IO[bytes], kind: int, seconds: float) -> bool:
    """Lock a file, trying for so long; return False if somebody else has it, True where nothing can be locked."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        except OSError as error:
            if error.errno in NO_LOCKS:
                return True
            raise
        time.sleep(LOOK_SECONDS)


def user_of_environment(work: str) -> Optional[Json]:
    """Return the holder's words of a living user, None without one; what dead ones have left is removed.

    For the build, which keeps the lock.
    """
    users = os.path.join(work, "users")
    names = os.listdir(users) if os.path.isdir(users) else []
    for name in sorted(names):
        path = os.path.join(users, name)
        with open(path, "ab") as kept:
            if not locked_within(kept, fcntl.LOCK_EX, 0.0):
                return read_json(path) or {}
            # Unless it has just ended.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    return None
