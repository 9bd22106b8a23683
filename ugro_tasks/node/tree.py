"""The entries of a folder, and how a path in it is opened without leaving it.

An entry is ["d", path, mtime_ns, mode], ["f", path, mtime_ns, mode, size], ["l", path, target], or
["e", path, words] for what cannot be looked at. A path is relative to the folder; names that are no text
have surrogate escapes.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
from typing import Any, Iterator, List, Sequence

# Where what has come of a file waits for the rest, beside the file: under its own name only the whole of it ever lies.
PARTIAL_FOLDER = ".ugro-partial"
PATH_CHARACTERS = 4096
KINDS = {
    "d": (str, int, int),
    "f": (str, int, int, int),
    "l": (str, str),
    "e": (str, str),
}

Entry = List[Any]


class Unfit(ValueError):
    """The other side says what neither a source nor a receiver says."""


def entry_of(path: str, facts: os.stat_result) -> Entry:
    """Make the entry of a folder or a regular file."""
    mode = stat.S_IMODE(facts.st_mode) & 0o777  # no set-user-id, no sticky bit
    if stat.S_ISDIR(facts.st_mode):
        return ["d", path, facts.st_mtime_ns, mode]
    return ["f", path, facts.st_mtime_ns, mode, facts.st_size]


def check_entry(entry: object) -> None:
    """Raise Unfit for what is no entry, or has a path that leads out of the folder."""
    if not isinstance(entry, list) or entry[:1] not in [[kind] for kind in KINDS]:
        raise Unfit("no entry: %.200r" % (entry,))
    wanted, values = KINDS[entry[0]], entry[1:]
    if len(values) != len(wanted) or not all(map(isinstance, values, wanted)):
        raise Unfit("no entry: %.200r" % (entry,))
    numbers = [value for value in values if not isinstance(value, str)]
    if any(isinstance(value, bool) or not 0 <= value < 1 << 62 for value in numbers):
        raise Unfit("no entry: %.200r" % (entry,))
    if entry[0] in "df" and entry[3] > 0o777:
        raise Unfit("no mode of a file: %.200r" % (entry,))
    if entry[0] == "e":
        return  # nothing is made of its path but words
    if entry[0] == "l" and (not entry[2] or not _is_nameable(entry[2])):
        raise Unfit("no link: %.200r" % (entry,))
    check_path(entry[1])


def check_path(path: str) -> None:
    """Raise Unfit for a path that leads out of the folder, or to where partial files wait."""
    names = path.split("/")
    if not _is_nameable(path):
        raise Unfit("no path: %.200r" % path)
    if any(name in ("", ".", "..", PARTIAL_FOLDER) for name in names):
        raise Unfit("no path: %.200r" % path)


def _is_nameable(path: str) -> bool:
    """Tell whether a file system can be given this path; half a surrogate pair need not be a byte of a name."""
    if len(path) > PATH_CHARACTERS or "\0" in path:
        return False
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def is_same(here: os.stat_result, entry: Entry) -> bool:
    """Tell whether a file has the size and the time of an entry; a file system may know whole seconds only."""
    if not stat.S_ISREG(here.st_mode) or here.st_size != entry[4]:
        return False
    if here.st_mtime_ns % 1_000_000_000 == 0:
        return bool(here.st_mtime_ns // 1_000_000_000 == entry[2] // 1_000_000_000)
    return bool(here.st_mtime_ns == entry[2])


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Tell whether one of the patterns of a shell fits a path, or a folder that it is in.

    A pattern that begins with a slash is held against the path, another against each name in it. A `*` stays
    within a name.
    """
    names = path.split("/")
    for pattern in patterns:
        if not pattern.startswith("/"):
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                return True
            continue
        wanted = pattern[1:].split("/")
        if len(wanted) <= len(names) and all(map(fnmatch.fnmatchcase, names, wanted)):
            return True
    return False


def leads_inside(path: str, target: str) -> bool:
    """Tell whether a link at `path` leads to a place in the same folder, by its words alone."""
    if os.path.isabs(target):
        return False
    depth = path.count("/")
    for name in target.split("/"):
        if name == "..":
            depth -= 1
        elif name not in ("", "."):
            depth += 1
        if depth < 0:
            return False
    return True


def partial_of(path: str) -> str:
    """Name the place where what has come of a file waits for the rest."""
    folder, name = os.path.split(path)
    return os.path.join(folder, PARTIAL_FOLDER, name)


@contextlib.contextmanager
def opened(
    folder: str, path: str, flags: int, *, create: bool = False
) -> Iterator[int]:
    """Open a path for a while; see `open_beneath`."""
    descriptor = open_beneath(folder, path, flags, create=create)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def opened_folder(folder: str, path: str, *, create: bool = False) -> Any:
    """Open a folder in a folder for a while, "" for the folder itself; see `open_beneath`."""
    return opened(folder, "%s/." % path, os.O_RDONLY | os.O_DIRECTORY, create=create)


def open_beneath(folder: str, path: str, flags: int, *, create: bool = False) -> int:
    """Open a path in a folder, name by name, following no link; gives the descriptor. Raises OSError.

    With `create` folders that are missing are made, and a link or a file where a folder should be gives way to one.
    """
    *folders, last = [name for name in path.split("/") if name]
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for name in folders:
        try:
            below = _open_folder(at, name, create)
        finally:
            os.close(at)
        at = below
    try:
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
    finally:
        os.close(at)


def _open_folder(at: int, name: str, create: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=at)
    except FileNotFoundError:
        if not create:
            raise
    except OSError as error:
        if not create or error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=at)
    os.mkdir(name, 0o700 if name == PARTIAL_FOLDER else 0o777, dir_fd=at)
    return os.open(name, flags, dir_fd=at)
