"""UGRO's own files and folders on this machine, reached without following a link.

    records = Folder(experiments, "exp1_20260120_120000")
    records.file("state.json").replace(content)

Each path is opened name by name below a folder of the user's choice (`node/tree.py`), and only
regular files are opened. A link, a pipe or a device in their place is an OSError with these words,
and is neither followed nor waited for: what fills these folders comes from other machines.

They are readable by their owner only; in a folder shared by a group, one with the setgid bit, also
by the group (see docs/sharing.md). The umask is obeyed, and nobody but the owner may change them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import posixpath
import stat
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .node.files import NO_LOCKS, TAIL_BYTES, end_of_lines
from .node.tree import open_beneath

# Disk space, and numbers of files, that data from nodes cannot fill; a small disk reserves 2 %.
RESERVE_BYTES = 64 << 20
RESERVE_FILES = 1000
# More than rsync makes files between two looks at the disk.
MANY_FILES = 200_000
# Of opening a link, a socket, a pipe without a reader, or a name below a file.
NOT_PLAIN = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
# Of file systems that cannot synchronise a folder, or have no hard links: SMB, exFAT, some FUSE.
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
NO_FILE = "no file of UGRO's: a link, a pipe or the like, which is not followed"
NO_FOLDER = "no folder of UGRO's: a link, a file or the like, which is not followed"
# Where there is no /proc, a folder is found by its path alone.
_CAN_HOLD = os.path.exists("/proc/self/fd")  # noqa: PTH110
_appending = threading.Lock()


class Held:
    """A folder kept open: it is reached wherever it is moved to, and on a disk that was taken out of the tree.

    It stands where the path of a root does; what is shown is the path by which it was opened.
    """

    def __init__(self, folder: Folder) -> None:
        """Open the folder; raises OSError."""
        # By its path alone, also where the folder above it is itself kept open.
        self._folder = folder
        if isinstance(folder.root, Held):
            self._folder = folder.root._folder.folder(folder.name)
        with folder.opened() as at:
            self._descriptor = os.dup(at)
        weakref.finalize(self, os.close, self._descriptor)

    def __fspath__(self) -> str:
        """Return a path of it for this process, and for others of its user while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def __truediv__(self, name: str) -> Path:
        """Return a path to show."""
        return self._folder.path / name

    @property
    def was_deleted(self) -> bool:
        """Return whether it is in no folder any more, so that nothing can be put into it."""
        try:
            return os.fstat(self._descriptor).st_nlink == 0
        except OSError:
            # A disk or a server that is gone is no sign.
            return False

    def is_at_its_path(self) -> bool:
        """Return whether its path still leads to it."""
        try:
            with self._folder.opened() as at:
                return os.path.samestat(os.fstat(at), os.fstat(self._descriptor))
        except OSError:
            return False

    def take_up_again(self) -> None:
        """Reach from now on what its path leads to; raises OSError."""
        with self._folder.opened() as at:
            os.dup2(at, self._descriptor, inheritable=False)


class File(NamedTuple):
    """A file below a folder; it need not exist."""

    root: Path | Held
    name: str

    @property
    def path(self) -> Path:
        """Return the path to show; it is never opened."""
        return self.root / self.name

    def open(self) -> io.BufferedReader:
        """Open the file for reading; raises OSError, FileNotFoundError if it is missing."""
        return open(self._descriptor(os.O_RDONLY), "rb")

    def open_to_change(self) -> io.FileIO:
        """Open the file, made if missing, to read and write without a buffer; raises OSError."""
        return self._opened(os.O_RDWR | os.O_CREAT)

    def open_to_append(self) -> io.FileIO:
        """Open the file, made if missing, to append without a buffer; raises OSError."""
        descriptor = self._descriptor(os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        return open(descriptor, "ab", buffering=0)

    def read(self, offset: int = 0) -> bytes:
        """Return the bytes from an offset on, b"" if there is no file; raises OSError."""
        try:
            with self.open() as file:
                file.seek(offset)
                return file.read()
        except FileNotFoundError:
            return b""

    def size(self) -> int:
        """Return the bytes of the file, 0 if there is none; raises OSError."""
        try:
            with self.open() as file:
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return 0

    def exists(self) -> bool:
        """Return whether there is anything of this name, also a link."""
        return self.owner() is not None

    def owner(self) -> int | None:
        """Return the user id of who owns the file, or the link in its place; None without one."""
        parent, name = self._place()
        try:
            with parent.opened() as at:
                return os.stat(name, dir_fd=at, follow_symlinks=False).st_uid
        except OSError:
            return None

    def append_lines(self, lines: bytes, *, leaving_room: bool = False) -> int:
        """Append whole lines to the file, made if missing, in one write; raises OSError.

        No reader sees half of them, not even after a kill. On a full disk nothing is written, with
        `leaving_room` (for what nodes send) already on one that is nearly full. After a power cut
        half a line may be there, or NULs in its place: it is cut off first. Return its bytes.
        """
        with _appending, self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            if leaving_room:
                leave_room(file.fileno(), self.path)
            size = os.fstat(file.fileno()).st_size
            whole = end_of_lines(file.fileno(), size)
            if whole < size:
                file.truncate(whole)
            written = file.write(lines)
            if written != len(lines):
                file.truncate(whole)
                raise self._error(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return size - whole

    def append_stream(self, content: bytes) -> None:
        """Append to the file, made if missing; raises OSError after as much as the disk takes.

        A part of the disk stays free, see RESERVE_BYTES.
        """
        with self.open_to_append() as file:
            leave_room(file.fileno(), self.path)
            _write_all(file, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make a context in which no other process or thread has the file locked; raises OSError.

        Where the file system has no locks, it is one without.
        """
        with self.open_to_append() as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            yield

    def replace(self, content: bytes) -> None:
        """Write the whole file by one rename; raises OSError and keeps the old one on a full disk."""
        parent, name = self._place()
        with parent.opened() as at, _written(at, name, content, self.path) as written:
            os.replace(written, name, src_dir_fd=at, dst_dir_fd=at)

    def write_new(self, content: bytes, mode: int) -> None:
        """Write a file that is not there yet, with these permissions; raises OSError.

        It is on the disk when this returns, but for its name: see `Folder.sync`.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(self._descriptor(flags, mode), "wb", buffering=0) as file:
            _write_all(file, content)
            _sync(file.fileno())

    def replace_durably(self, content: bytes, copy: File) -> None:
        """Write the whole file and a copy beside it, for a power cut to leave one of them whole.

        Both are on the disk when this returns. Raises OSError and keeps the old ones on a full disk.
        """
        parent, name = self._place()
        other = posixpath.basename(copy.name)
        with (
            parent.opened() as at,
            _written(at, other, content, copy.path, durably=True) as written_copy,
            _written(at, name, content, self.path, durably=True) as written,
        ):
            os.replace(written_copy, other, src_dir_fd=at, dst_dir_fd=at)
            os.replace(written, name, src_dir_fd=at, dst_dir_fd=at)
            _sync(at)

    def cut_nuls(self, keep: int) -> None:
        """Cut off the NULs at the end, down to `keep` bytes; raises OSError.

        A power cut may leave NULs in place of what was written last.
        """
        with contextlib.suppress(FileNotFoundError), self._opened(os.O_RDWR) as file:
            size = os.fstat(file.fileno()).st_size
            content = _end_of_content(file, size)
            if max(content, keep) < size:
                file.truncate(max(content, keep))

    def sync(self) -> None:
        """Have the disk keep the content, if the file exists; raises OSError."""
        with contextlib.suppress(FileNotFoundError), self.open() as file:
            _sync(file.fileno())

    def overwrite(self, content: bytes) -> None:
        """Write over the start of the file, made if missing, in one write; raises OSError.

        A full disk allows it, as far as the file was long enough before.
        """
        with self.open_to_change() as file:
            if file.write(content) != len(content):
                raise self._error(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _sync(file.fileno())

    def create(self, content: bytes) -> None:
        """Write the file unless it exists, whole and durably; raises OSError."""
        parent, name = self._place()
        with (
            parent.opened() as at,
            _written(at, name, content, self.path, durably=True) as written,
        ):
            try:
                os.link(written, name, src_dir_fd=at, dst_dir_fd=at)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with contextlib.suppress(FileExistsError):
                    self.write_new(content, _mode_in(at))
            os.unlink(written, dir_fd=at)
            _sync(at)

    def remove(self) -> None:
        """Remove the file, or the link in its place, if it exists; raises OSError."""
        parent, name = self._place()
        with contextlib.suppress(FileNotFoundError), parent.opened() as at:
            os.unlink(name, dir_fd=at)

    @property
    def parent(self) -> Folder:
        """Return the folder of the file."""
        return Folder(self.root, posixpath.dirname(self.name))

    def _place(self) -> tuple[Folder, str]:
        return self.parent, posixpath.basename(self.name)

    def _opened(self, flags: int) -> io.FileIO:
        """Open the file to read and write without a buffer."""
        return open(self._descriptor(flags), "r+b", buffering=0)

    def _descriptor(self, flags: int, mode: int | None = None) -> int:
        parent, name = self._place()
        # A pipe opened without O_NONBLOCK would wait for its other end.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            with parent.opened() as at:
                descriptor = os.open(name, flags, mode or _mode_in(at), dir_fd=at)
        except OSError as error:
            words = NO_FILE if error.errno in NOT_PLAIN else error.strerror
            raise self._error(error.errno, words) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._error(errno.ELOOP, NO_FILE)
        return descriptor

    def _error(self, number: int | None, words: str | None) -> OSError:
        return OSError(number, words, str(self.path))


class Entry(NamedTuple):
    """A name in a folder, and the facts about it; a link is told as a link."""

    name: str
    facts: os.stat_result

    @property
    def is_folder(self) -> bool:
        """Return whether it is a folder, and no link to one."""
        return stat.S_ISDIR(self.facts.st_mode)

    @property
    def is_link(self) -> bool:
        """Return whether it is a link."""
        return stat.S_ISLNK(self.facts.st_mode)

    @property
    def is_file(self) -> bool:
        """Return whether it is a regular file."""
        return stat.S_ISREG(self.facts.st_mode)


class Folder(NamedTuple):
    """A folder below another one; it need not exist. With the name "" it is the root itself."""

    root: Path | Held
    name: str = ""

    @property
    def path(self) -> Path:
        """Return the path to show; it is never opened."""
        return self.root / self.name

    @property
    def parent(self) -> Folder:
        """Return the folder above it."""
        return Folder(self.root, posixpath.dirname(self.name))

    @property
    def place(self) -> str:
        """Return the path by which other programs find the folder, also where it was moved."""
        if isinstance(self.root, Held) and not self.root.is_at_its_path():
            return posixpath.join(os.fspath(self.root), self.name)
        return str(self.path)

    def held(self) -> Folder:
        """Return the same folder, kept open; raises OSError."""
        if not _CAN_HOLD:
            return self
        return Folder(Held(self))

    def file(self, name: str) -> File:
        """Return a file in this folder; the name may have folders before it."""
        return File(self.root, self._below(name))

    def folder(self, name: str) -> Folder:
        """Return a folder in this one; the name may have folders before it."""
        return Folder(self.root, self._below(name))

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Make a context with the folder's descriptor; raises OSError."""
        try:
            at = open_beneath(
                os.fspath(self.root), f"{self.name}/.", os.O_RDONLY | os.O_DIRECTORY
            )
        except OSError as error:
            words = NO_FOLDER if error.errno in NOT_PLAIN else error.strerror
            raise OSError(error.errno, words, str(self.path)) from error
        try:
            yield at
        finally:
            os.close(at)

    def make(self) -> None:
        """Make the folder, and those above it up to the root; raises OSError."""
        if self.name:
            self.parent.make()
            name = posixpath.basename(self.name)
            with self.parent.opened() as at, contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=at)
        with self.opened():
            return

    def sync(self) -> None:
        """Have the disk keep which names are in the folder; raises OSError."""
        with self.opened() as at:
            _sync(at)

    def exists(self) -> bool:
        """Return whether it is there, and a folder."""
        try:
            with self.opened():
                return True
        except OSError:
            return False

    def move(self, name: str, into: Folder, new_name: str | None = None) -> None:
        """Move a file, link or folder of this folder into another one; raises OSError."""
        with self.opened() as at, into.opened() as target:
            try:
                os.rename(name, new_name or name, src_dir_fd=at, dst_dir_fd=target)
            except OSError as error:
                path = str(self.path / name)
                raise OSError(error.errno, error.strerror, path) from error

    def entries(self) -> list[Entry]:
        """Return what is in the folder, sorted by name; nothing if it is missing or no folder."""
        found = []
        with contextlib.suppress(OSError), self.opened() as at:
            for name in sorted(os.listdir(at)):  # noqa: PTH208  (a descriptor)
                # It may vanish between the listing and the look at it.
                with contextlib.suppress(OSError):
                    facts = os.stat(name, dir_fd=at, follow_symlinks=False)
                    found.append(Entry(name, facts))
        return found

    def size(self, name: str) -> int:
        """Return the bytes of a file, or of all files below a folder; links count as 0."""
        total = 0
        with contextlib.suppress(OSError), self.opened() as at:
            facts = os.stat(name, dir_fd=at, follow_symlinks=False)
            if not stat.S_ISDIR(facts.st_mode):
                return _bytes_of(name, at)
            for _, _, files, below in os.fwalk(name, dir_fd=at):
                total += sum(_bytes_of(file, below) for file in files)
        return total

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with all that is in it, if it exists; raises OSError."""
        import shutil  # late: few commands remove anything

        with contextlib.suppress(FileNotFoundError), self.opened() as at:
            facts = os.stat(name, dir_fd=at, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                shutil.rmtree(name, dir_fd=at)
            else:
                os.unlink(name, dir_fd=at)

    def _below(self, name: str) -> str:
        return f"{self.name}/{name}" if self.name else name


def _bytes_of(name: str, at: int) -> int:
    """Return the bytes of a regular file in a folder's descriptor, 0 for anything else."""
    try:
        facts = os.stat(name, dir_fd=at, follow_symlinks=False)
    except OSError:
        # It may vanish between the listing and the look at it.
        return 0
    return facts.st_size if stat.S_ISREG(facts.st_mode) else 0


def _end_of_content(file: io.FileIO, size: int) -> int:
    """Return the place after the last byte of a file that is no NUL."""
    end = size
    while end:
        begin = max(0, end - TAIL_BYTES)
        content = os.pread(file.fileno(), end - begin, begin).rstrip(b"\0")
        if content:
            return begin + len(content)
        end = begin
    return 0


def _mode_in(folder: int) -> int:
    """Return the permissions of a new file in a folder's descriptor."""
    if os.fstat(folder).st_mode & stat.S_ISGID:
        return 0o640
    return 0o600


def _sync(descriptor: int) -> None:
    """Have the disk keep a file or folder, where the file system can say so; raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _write_all(file: io.FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


@contextlib.contextmanager
def _written(
    at: int, name: str, content: bytes, shown: Path, *, durably: bool = False
) -> Iterator[str]:
    """Make a context with the name of a temporary file of this content, to be renamed to `name`.

    An OSError in it removes the file, and gets the path `shown`.
    """
    temporary = f".{name}.{os.getpid()}.{threading.get_ident()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, _mode_in(at), dir_fd=at)
        with open(descriptor, "wb", buffering=0) as file:
            _write_all(file, content)
            if durably:
                _sync(descriptor)
        yield temporary
    except OSError as error:
        # The disk is full: a partial file must not stay.
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=at)
        raise OSError(error.errno, error.strerror, str(shown)) from error


def state_home() -> Path:
    """Return the folder of what programs of this user remember, see the XDG Base Directory Specification."""
    told = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(told):  # noqa: PTH117  (the specification ignores others)
        return Path(told)
    return Path.home() / ".local" / "state"


def process_lives(pid: str) -> bool:
    """Return whether a process of this number runs here, whoever's it is."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return True


def leave_room(folder: int | Path, shown: Path | None = None) -> None:
    """Raise OSError if the disk of a folder or descriptor is nearly full.

    UGRO's own records need the rest.
    """
    disk = os.statvfs(folder)
    total_bytes = disk.f_blocks * disk.f_frsize
    free_bytes = disk.f_bavail * disk.f_frsize
    # Some file systems have no number of files.
    files_full = disk.f_favail < min(RESERVE_FILES, disk.f_files // 50)
    if files_full or free_bytes < min(RESERVE_BYTES, total_bytes // 50):
        words = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, words, str(shown or folder))


def has_many_names(folder: Path) -> bool:
    """Tell whether the disk of a folder takes so many more files that none need be counted."""
    disk = os.statvfs(folder)
    # Some file systems have no number of files.
    return disk.f_files == 0 or disk.f_favail > MANY_FILES
