"""The entries of a folder, safe access to paths inside it, and their removal.

An entry is ["d", path, mtime_ns, mode], ["f", path, mtime_ns, mode, size], ["l", path, target],
["e", path, error] for an unreadable path, ["o", path, reason] for a link that is left out, or
["t", path, target, size] before the entries of what a link leads to. A path is relative to the
folder; names that are not text have surrogate escapes.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
from typing import (
    Any,
    Callable,
    Container,
    ContextManager,
    Iterator,
    List,
    Sequence,
)

# The folder beside a file for its partial file: its own name belongs to the complete file only.
PARTIAL_FOLDER = ".ugro-partial"
PATH_CHARACTERS = 4096
SECOND_NS = 1_000_000_000
# Of sizes and times in nanoseconds.
ENTRY_NUMBER_MAX = (1 << 62) - 1
# {kind: the types of its values}
KINDS = {
    "d": (str, int, int),
    "f": (str, int, int, int),
    "l": (str, str),
    "e": (str, str),
    "o": (str, str),
    "t": (str, str, int),
}

# Of these kinds the path is no place for a file.
ONLY_SHOWN = ("e", "o", "t")

Entry = List[Any]


class Unfit(ValueError):
    """The other side violates the protocol of a transfer."""


def entry_of(path: str, facts: os.stat_result) -> Entry:
    """Make the entry of a folder or a regular file."""
    # Without set-user-id and sticky bit.
    mode = stat.S_IMODE(facts.st_mode) & 0o777
    if stat.S_ISDIR(facts.st_mode):
        return ["d", path, facts.st_mtime_ns, mode]
    return ["f", path, facts.st_mtime_ns, mode, facts.st_size]


def check_entry(entry: object) -> None:
    """Raise Unfit for a malformed entry, and for a path leading out of the folder."""
    if not isinstance(entry, list) or not _has_values_of_its_kind(entry):
        raise Unfit("no entry: %.200r" % (entry,))
    kind = entry[0]
    if kind in "df" and entry[3] > 0o777:
        raise Unfit("no mode of a file: %.200r" % (entry,))
    if kind in ONLY_SHOWN:
        return
    if kind == "l":
        target = entry[2]
        if not target or not _is_nameable(target):
            raise Unfit("no link: %.200r" % (entry,))
    check_path(entry[1])


def _has_values_of_its_kind(entry: Entry) -> bool:
    """Tell whether an entry's values are as many as its kind has, of its types and in range."""
    if not entry or not isinstance(entry[0], str) or entry[0] not in KINDS:
        return False
    types = KINDS[entry[0]]
    values = entry[1:]
    if len(values) != len(types):
        return False
    for value, wanted in zip(values, types):
        # A bool is an int to `isinstance`.
        if not isinstance(value, wanted) or isinstance(value, bool):
            return False
        if isinstance(value, int) and not 0 <= value <= ENTRY_NUMBER_MAX:
            return False
    return True


def check_path(path: str) -> None:
    """Raise Unfit for a path leading out of the folder, or into a folder of partial files."""
    if not _is_nameable(path):
        raise Unfit("no path: %.200r" % path)
    for name in path.split("/"):
        if name in ("", ".", "..", PARTIAL_FOLDER):
            raise Unfit("no path: %.200r" % path)


def _is_nameable(path: str) -> bool:
    """Tell whether a file system accepts this path; half a surrogate pair may not be encodable."""
    if len(path) > PATH_CHARACTERS or "\0" in path:
        return False
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def is_same(here: os.stat_result, entry: Entry) -> bool:
    """Tell whether a file has the size and time of an entry.

    Some file systems store whole seconds only; those are compared by the second.
    """
    mtime_ns: int = entry[2]
    size: int = entry[4]
    if not stat.S_ISREG(here.st_mode) or here.st_size != size:
        return False
    seconds, rest = divmod(here.st_mtime_ns, SECOND_NS)
    if rest == 0:
        return seconds == mtime_ns // SECOND_NS
    return here.st_mtime_ns == mtime_ns


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Tell whether a shell pattern matches a path or one of its parents.

    A pattern with a leading slash is compared with the path, another one with each name in it. A
    `*` stays within a name.
    """
    names = path.split("/")
    for pattern in patterns:
        if pattern.startswith("/"):
            if _matches_from_the_top(names, pattern[1:].split("/")):
                return True
        elif any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return True
    return False


def _matches_from_the_top(names: List[str], wanted: List[str]) -> bool:
    """Tell whether the first names match the wanted ones, one by one."""
    if len(wanted) > len(names):
        return False
    return all(map(fnmatch.fnmatchcase, names, wanted))


def leads_inside(path: str, target: str) -> bool:
    """Tell whether a link at `path` stays in the same folder, judged by its text alone."""
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
    """Return the path of a file's partial file."""
    folder, name = os.path.split(path)
    return os.path.join(folder, PARTIAL_FOLDER, name)


@contextlib.contextmanager
def opened(
    folder: str, path: str, flags: int, *, create: bool = False
) -> Iterator[int]:
    """Make a context with the descriptor of a path; see `open_beneath`."""
    descriptor = open_beneath(folder, path, flags, create=create)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def opened_folder(folder: str, path: str, *, create: bool = False) -> Any:
    """Make a context with a folder's descriptor, "" for the folder itself; see `open_beneath`."""
    return opened(folder, "%s/." % path, os.O_RDONLY | os.O_DIRECTORY, create=create)


def stats_in(path: str) -> Iterator[os.stat_result]:
    """Yield lstat of a path and everything below it; links are not followed, errors are skipped."""
    todo = [path]
    while todo:
        folder = todo.pop()
        try:
            yield os.lstat(folder)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        yield entry.stat(follow_symlinks=False)
        except OSError:
            continue


def open_beneath(folder: str, path: str, flags: int, *, create: bool = False) -> int:
    """Open a path in a folder, name by name, following no link; return the descriptor.

    With `create`, missing folders are made, and a link or file in place of a folder is replaced by
    one. Raises OSError.
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
    """Open a folder below a descriptor, made if missing with `create`."""
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
    mode = 0o700 if name == PARTIAL_FOLDER else 0o777
    os.mkdir(name, mode, dir_fd=at)
    return os.open(name, flags, dir_fd=at)


def remove_others(
    folder: str,
    kept: Container[str],
    *,
    exclude: Sequence[str],
    noting: Callable[[str], ContextManager[None]],
    alive: Callable[[], None],
) -> None:
    """Remove every path below a folder except those in `kept` and those matching `exclude`.

    `noting(path)` is a context that records an OSError; `alive` is called for each path.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with noting(inside):
            for found in list(os.scandir(os.path.join(folder, inside))):
                path = os.path.join(inside, found.name)
                alive()
                if is_excluded(path, exclude):
                    continue
                is_folder = found.is_dir(follow_symlinks=False)
                if path in kept and is_folder:
                    waiting.append(path)
                elif path not in kept:
                    with noting(path):
                        _remove(found.path, is_folder)


def _remove(path: str, is_folder: bool) -> None:
    if not is_folder:
        os.unlink(path)
        return
    # Late: most users of this module remove nothing.
    import shutil
    import subprocess

    try:
        shutil.rmtree(path)
    except RecursionError:
        # A tree of a thousand levels, before Python 3.13.
        subprocess.run(["rm", "-rf", "--", path], check=False)
