"""Files on this machine: written whole, or in whole lines, and never the last room of a disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

RESERVE_BYTES = 64 << 20  # of the disk, that nodes cannot fill; of a small disk, less
_appending = threading.Lock()


def append_lines(path: Path, lines: bytes) -> None:
    """Append in one write: no reader and no kill sees half of it. Where OSError is raised, nothing was written."""
    with (
        _appending,
        open(
            os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
            "wb",
            buffering=0,
        ) as file,
    ):
        size = os.fstat(file.fileno()).st_size
        if file.write(lines) != len(lines):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def replace_file(path: Path, content: bytes) -> None:
    """The whole content or, where OSError is raised, what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
        ) as file:
            file.write(content)
        temporary.replace(path)
    except OSError:  # the disk is full: no half of it may stay
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def tail_of(path: Path, offset: int) -> bytes:
    """What a file has from an offset on, b"" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def leave_room(folder: Path) -> None:
    """Raise OSError where what a node sends would take the last room of the disk: UGRO's own records need it."""
    disk = os.statvfs(folder)
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    if free < min(RESERVE_BYTES, total // 50):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count for nothing, nor does what goes away meanwhile."""
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with contextlib.suppress(OSError):
            facts = file.lstat()
            total += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return total
