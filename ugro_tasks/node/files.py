"""Reading and writing of small files, and the folder ~/.ugro."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from typing import Any, BinaryIO, Dict, Optional

Json = Dict[str, Any]
# Of file systems without locks, as NFS and some FUSE ones are: nobody can have a lock there.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Read at once from the end of a file.
TAIL_BYTES = 1 << 16


def expand(path: str) -> str:
    """Return a path with a leading ~/ replaced by this node's home."""
    if path.startswith("~/"):
        return os.path.expanduser(path)
    return path


def open_plain(path: str) -> BinaryIO:
    """Open a regular file for reading; raises FileNotFoundError for anything else, or OSError.

    A script may put a named pipe in its place, whose opening would block, or a link to a device
    without an end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):
            # A socket, or a link to itself.
            raise FileNotFoundError(errno.ENOENT, "no regular file", path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return open(descriptor, "rb")


def read_text(path: str) -> str:
    """Read a file as UTF-8, with invalid bytes replaced; return "" if it cannot be read."""
    try:
        with open_plain(path) as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def read_end(path: str, size: int) -> str:
    """Read the last `size` bytes of a file as UTF-8, with invalid ones replaced; return "" if it cannot be read."""
    try:
        with open_plain(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def read_json(path: str) -> Optional[Json]:
    """Read a JSON object; return None for anything else: no file, or one that a power cut has torn."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: str, value: Json) -> None:
    """Write a file atomically, readable by this user only; raises OSError if the disk is full."""
    temporary = "%s.%d" % (path, os.getpid())
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            json.dump(value, file)
        os.replace(temporary, path)
    except OSError:
        # The disk is full: a partial file must not stay.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def end_of_lines(descriptor: int, size: int) -> int:
    """Return the place after the last line feed of a file of this size, 0 if it has none."""
    end = size
    while end:
        begin = max(0, end - TAIL_BYTES)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes to a descriptor; a single write may take fewer."""
    left = memoryview(data)
    while left:
        count = os.write(descriptor, left)
        left = left[count:]


def state_folder() -> str:
    """Return the folder in ~/.ugro of what is remembered of this machine: others may share the home.

    It is made if missing, but not in a read-only home.
    """
    path = os.path.join(own_folder(), "on-" + os.uname().nodename)
    # A later write into it reports the error.
    with contextlib.suppress(OSError):
        os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def own_folder() -> str:
    """Return ~/.ugro."""
    return os.path.expanduser("~/.ugro")
