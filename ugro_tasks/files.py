"""Atomic writes, whole-line appends and free disk space on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

# Disk space that data from nodes cannot fill; a small disk reserves 2 % instead.
RESERVE_BYTES = 64 << 20
_appending = threading.Lock()


def append_lines(path: Path, lines: bytes) -> None:
    """Append lines in one write, so that no reader sees half a line, not even after a kill.

    Raises OSError if the disk is full; nothing is written then.
    """
    with _appending:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            written = file.write(lines)
            if written != len(lines):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically: raises OSError and keeps the old content if the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        # The disk is full: a partial file must not stay.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def tail_of(path: Path, offset: int) -> bytes:
    """Return the bytes of a file from an offset on, b"" if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def leave_room(folder: Path) -> None:
    """Raise OSError if the disk is nearly full: UGRO's own records need the rest."""
    disk = os.statvfs(folder)
    total_bytes = disk.f_blocks * disk.f_frsize
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < min(RESERVE_BYTES, total_bytes // 50):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links count as 0."""
    total = 0
    files = [path] if path.is_file() else path.rglob("*")
    for file in files:
        # A file may vanish between the listing and its lstat.
        with contextlib.suppress(OSError):
            facts = file.lstat()
            if stat.S_ISREG(facts.st_mode):
                total += facts.st_size
    return total
