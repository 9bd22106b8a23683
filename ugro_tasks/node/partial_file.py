"""The partial file of a file being received: opened, locked, written, and moved into place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from typing import Any, Callable, Optional

from .files import NO_LOCKS, write_all
from .protocol import CHUNK_BYTES
from .tree import PARTIAL_FOLDER, open_beneath, opened_folder, partial_of

TAKEN = "another transfer is bringing it"


class PartialFile:
    """A partial file, open and locked; `digest` is the SHA-256 of its first `size` bytes.

    A new one, at `offset` 0, is emptied. Otherwise `digest` is of the bytes before `offset`. `alive` is
    called during long work. Raises OSError.
    """

    def __init__(
        self,
        folder: str,
        path: str,
        *,
        offset: int,
        digest: Any,
        alive: Callable[[], None],
    ) -> None:
        self.path = path
        self.digest = digest
        self._folder = folder
        self._alive = alive
        self._descriptor = _opened(folder, partial_of(path))
        try:
            if not _is_locked(self._descriptor):
                self._take_over(offset)
            if offset == 0:
                os.ftruncate(self._descriptor, 0)
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:
            self.close()
            raise

    def write(self, payload: bytes) -> None:
        """Append bytes; raises OSError with the file's path if the disk is full."""
        try:
            write_all(self._descriptor, payload)
        except OSError as error:
            path = os.path.join(self._folder, self.path)
            raise OSError(error.errno, error.strerror, path) from error
        self.digest.update(payload)
        self.size += len(payload)

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._descriptor)

    def check_is_ours(self, parent: int) -> None:
        """Raise OSError if another transfer has replaced the file in the folder `parent`."""
        name = os.path.basename(self.path)
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if there.st_ino != os.fstat(self._descriptor).st_ino:
            raise OSError(errno.EAGAIN, TAKEN)

    def _take_over(self, offset: int) -> None:
        """Replace the file, locked by another transfer, by a copy of its first bytes.

        Two writers of one file would each verify their own bytes, but not the file's. The other one
        may be alive, or its connection dead: in both cases it finds at its end that the file is no
        longer its own.
        """
        name = os.path.basename(self.path)
        aside = ".ugro-%s" % os.urandom(8).hex()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        partial_folder = os.path.dirname(partial_of(self.path))
        with opened_folder(self._folder, partial_folder) as parent:
            copy = os.open(aside, flags, 0o600, dir_fd=parent)
            try:
                digest = self._copy_to(copy, offset)
                if offset and digest != self.digest.digest():
                    raise OSError(errno.EAGAIN, TAKEN)
                _is_locked(copy)
                os.replace(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError:
                os.close(copy)
                os.unlink(aside, dir_fd=parent)
                raise
        os.close(self._descriptor)
        self._descriptor = copy

    def _copy_to(self, target: int, size: int) -> bytes:
        """Copy the first bytes, fewer if the file is shorter; return their SHA-256."""
        digest = hashlib.sha256()
        at = 0
        while at < size:
            piece = os.pread(self._descriptor, min(CHUNK_BYTES, size - at), at)
            if not piece:
                break
            write_all(target, piece)
            digest.update(piece)
            at += len(piece)
            self._alive()
        return digest.digest()


def _opened(folder: str, path: str) -> int:
    """Open a partial file, made if missing."""
    flags = os.O_RDWR | os.O_CREAT
    try:
        return open_beneath(folder, path, flags, create=True)
    except FileNotFoundError:
        # Another transfer has removed the folder, which was still empty.
        return open_beneath(folder, path, flags, create=True)


def _is_locked(descriptor: int) -> bool:
    """Lock a file; return False if another transfer has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def move_into_place(folder: str, path: str, ours: Optional[PartialFile]) -> None:
    """Give a complete partial file its own name.

    Raises OSError, also if another transfer has replaced the open file `ours`.
    """
    name = os.path.basename(path)
    partial_folder = os.path.dirname(partial_of(path))
    with opened_folder(folder, os.path.dirname(path)) as parent:
        with opened_folder(folder, partial_folder) as partial:
            if ours is not None:
                ours.check_is_ours(partial)
            os.replace(name, name, src_dir_fd=partial, dst_dir_fd=parent)
        # It stays if it has another partial file.
        with contextlib.suppress(OSError):
            os.rmdir(PARTIAL_FOLDER, dir_fd=parent)
