"""The right to supervise a job: of all agents of a user on a machine, one has it.

Each experiments folder has one agent. But a folder may be copied, as for a backup, and in the copy the jobs are as
signed and as much under way. So an agent keeps `~/.local/state/ugro/supervised/<job id>` locked while it supervises a
job; in it stands the folder it does so from. Where nothing can be locked there, each may supervise.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from typing import TYPE_CHECKING

import msgspec

from ..codec import UNREADABLE, decode
from ..files import File, Folder
from .signature import state_home

if TYPE_CHECKING:
    from .experiment import Experiment

# For a command that looks, which holds the lock for a moment.
PATIENCE_SECONDS = 0.2
LOOK_SECONDS = 0.01


class _Place(msgspec.Struct, frozen=True):
    """A job's folder, and what it is known by wherever it is moved to."""

    folder: str
    device: int
    inode: int

    @classmethod
    def of(cls, job: Experiment) -> _Place:
        with job.files.opened() as at:
            facts = os.fstat(at)
        folder = str(job.folder.absolute())
        return cls(folder=folder, device=facts.st_dev, inode=facts.st_ino)

    def is_same(self, other: _Place) -> bool:
        # A server may give other numbers after it was mounted again.
        known_by = (self.device, self.inode) == (other.device, other.inode)
        return known_by or self.folder == other.folder


class SoleSupervision:
    """The right of this process to supervise a job, until it ends or gives the right back."""

    def __init__(self, file: File, place: _Place, lock: io.FileIO | None) -> None:
        self._file = file
        self._place = place
        self._lock = lock

    @classmethod
    def take(cls, job: Experiment) -> SoleSupervision | None:
        """Take the right; return None if another process has it. Raises OSError if the job's folder cannot be read."""
        file = _file_of(job)
        place = _Place.of(job)
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            file.parent.make()
            while not (lock := _locked(file)):
                if time.monotonic() > deadline:
                    return None
                time.sleep(LOOK_SECONDS)
        except OSError:
            return cls(file, place, None)
        # On a full disk the lock has to do.
        with contextlib.suppress(OSError):
            lock.truncate(0)
            lock.write(msgspec.json.encode(place))
        return cls(file, place, lock)

    def offer(self) -> bool:
        """Let another process take the right, because this one's folder is lost; return whether one has it now."""
        if self._lock:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        return _other_place(self._file, self._place) is not None

    def claim(self) -> bool:
        """Take the right again that was offered; return False if another process has it."""
        return self._lock is None or _lock_at_once(self._lock, fcntl.LOCK_EX)

    def end(self) -> None:
        """Give the right back for good."""
        if self._lock:
            with contextlib.suppress(OSError):
                self._file.remove()
            self._lock.close()


def supervised_elsewhere(job: Experiment) -> str | None:
    """Return the job's folder from which another agent supervises it, None if it is this one or nobody does."""
    try:
        place = _Place.of(job)
    except OSError:
        return None
    return _other_place(_file_of(job), place)


def _other_place(file: File, place: _Place) -> str | None:
    try:
        with file.open() as opened:
            if _lock_at_once(opened, fcntl.LOCK_SH):
                return None
            there = decode(_Place, opened.read())
    except (OSError, *UNREADABLE):
        return None
    return None if there.is_same(place) else there.folder


def _file_of(job: Experiment) -> File:
    return Folder(state_home(), "ugro/supervised").file(job.job_id)


def _locked(file: File) -> io.FileIO | None:
    """Open and lock a file; return None if another process has it, or has just removed it. Raises OSError."""
    lock = file.open_to_change()
    with contextlib.ExitStack() as after:
        after.enter_context(lock)
        if not _lock_at_once(lock, fcntl.LOCK_EX):
            return None
        with file.open() as there:
            if not os.path.samestat(os.fstat(there.fileno()), os.fstat(lock.fileno())):
                return None
        after.pop_all()
    return lock


def _lock_at_once(opened: io.IOBase, how: int) -> bool:
    """Lock an open file; return False if another process has it. Raises OSError where nothing can be locked."""
    try:
        fcntl.flock(opened.fileno(), how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
