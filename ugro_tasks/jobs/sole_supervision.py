"""The right to supervise a job: of all agents of a user on a machine, one has it.

Each experiments folder has one agent. But a folder may be copied, as for a backup, and in the copy the jobs are as
signed and as much under way. So an agent keeps `~/.local/state/ugro/supervised/<job id>.<nonce>` locked while it
supervises a job; in it stands the folder it does so from, and after the job that it has ended, so that no copy begins
it again. Where nothing can be locked there, each may supervise.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ..codec import UNREADABLE, decode
from ..errors import RecordError
from ..files import File, Folder, state_home

if TYPE_CHECKING:
    from .experiment import Experiment

T = TypeVar("T")

# For a command that looks, which holds the lock for a moment.
PATIENCE_SECONDS = 0.2
LOOK_SECONDS = 0.01
# For which the end of a job is remembered.
REMEMBERED_SECONDS = 365 * 86400.0


class _Note(msgspec.Struct, frozen=True):
    """A job's folder, what it is known by wherever it is moved to, and whether the record there is whole."""

    folder: str
    device: int
    inode: int
    ended: bool = False

    @classmethod
    def of(cls, job: Experiment) -> _Note:
        with job.files.opened() as at:
            facts = os.fstat(at)
        folder = os.fsencode(job.folder.absolute()).decode("utf-8", "replace")
        return cls(folder=folder, device=facts.st_dev, inode=facts.st_ino)

    def is_same(self, other: _Note) -> bool:
        # A server may give other numbers after it was mounted again.
        known_by = (self.device, self.inode) == (other.device, other.inode)
        return known_by or self.folder == other.folder


class SoleSupervision:
    """The right of this process to supervise a job, until it ends or gives the right back."""

    def __init__(self, file: File, note: _Note, lock: io.FileIO | None) -> None:
        self._file = file
        self._note = note
        self._lock = lock
        # The agent offers it while the job's thread may give it back.
        self._one_at_a_time = threading.Lock()

    @classmethod
    def take(cls, job: Experiment) -> SoleSupervision | None:
        """Take the right; return None if another process has it.

        Raises OSError or RecordError if the job cannot be read.
        """
        file = _file_of(job)
        note = _Note.of(job)
        try:
            file.parent.make()
            lock = _within(PATIENCE_SECONDS, lambda: _locked(file))
        except OSError:
            return cls(file, note, None)
        if lock is None:
            return None
        _write(lock, note)
        return cls(file, note, lock)

    def offer(self) -> bool:
        """Let another process take the right, because this one's folder is lost; return whether one has it now."""
        with self._one_at_a_time:
            if self._lock is None:
                return False
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            # Commands that look take the same sort.
            is_free = _lock_at_once(self._lock, fcntl.LOCK_SH)
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            return not is_free

    def claim(self) -> bool:
        """Take the right again that was offered; return False if another process has it."""
        with self._one_at_a_time:
            lock = self._lock
            return lock is None or bool(
                _within(
                    PATIENCE_SECONDS, lambda: _lock_at_once(lock, fcntl.LOCK_EX) or None
                )
            )

    def end(self, *, ended: bool) -> None:
        """Give the right back for good, with `ended` after the job: then the record in its folder is whole."""
        with self._one_at_a_time:
            if self._lock is None:
                return
            with contextlib.suppress(OSError):
                if not ended:
                    self._file.remove()
                elif _lock_at_once(self._lock, fcntl.LOCK_EX):
                    _write(self._lock, msgspec.structs.replace(self._note, ended=True))
            self._lock.close()
            self._lock = None


def why_not_here(job: Experiment) -> str | None:
    """Return why a job's folder is not the one it is supervised in, None if it is or nobody knows."""
    try:
        with _file_of(job).open() as opened:
            is_free = _lock_at_once(opened, fcntl.LOCK_SH)
            there = decode(_Note, opened.read())
        if there.is_same(_Note.of(job)) or (is_free and not there.ended):
            return None
    except (OSError, RecordError, *UNREADABLE):
        return None
    what = "has ended" if is_free else "is supervised"
    return f"it {what} in {there.folder}, of which this folder is a copy"


def forget_long_ended() -> None:
    """Remove what is remembered of jobs that ended long ago."""
    folder = Folder(state_home(), "ugro/supervised")
    oldest = time.time() - REMEMBERED_SECONDS
    with contextlib.suppress(OSError), folder.opened() as at, os.scandir(at) as notes:
        for note in notes:
            if note.stat(follow_symlinks=False).st_mtime < oldest:
                os.unlink(note.name, dir_fd=at)


def _file_of(job: Experiment) -> File:
    # Another folder may have a job with the same id.
    name = f"{job.job_id}.{job.record().nonce}"
    return Folder(state_home(), "ugro/supervised").file(name)


def _write(lock: io.FileIO, note: _Note) -> None:
    # On a full disk the lock has to do.
    with contextlib.suppress(OSError):
        lock.seek(0)
        lock.truncate()
        lock.write(msgspec.json.encode(note))


def _within(seconds: float, attempt: Callable[[], T | None]) -> T | None:
    """Attempt something again and again until it gives something; return None after this time."""
    deadline = time.monotonic() + seconds
    while True:
        found = attempt()
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_SECONDS)


def _locked(file: File) -> io.FileIO | None:
    """Open and lock a file; return None if another process has it, or has just removed it. Raises OSError."""
    lock = file.open_to_change()
    with contextlib.ExitStack() as after:
        after.enter_context(lock)
        if not _lock_at_once(lock, fcntl.LOCK_EX):
            return None
        with contextlib.suppress(FileNotFoundError), file.open() as there:
            if os.path.samestat(os.fstat(there.fileno()), os.fstat(lock.fileno())):
                after.pop_all()
                return lock
    return None


def _lock_at_once(opened: io.IOBase, how: int) -> bool:
    """Lock an open file; return False if another process has it. Raises OSError where nothing can be locked."""
    try:
        fcntl.flock(opened.fileno(), how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
