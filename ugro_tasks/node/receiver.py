"""The receiver of a transfer: it makes a folder equal to the source's.

It finds the missing files, stores them beside their places, verifies them, and moves them into
place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
)

from .files import Json, expand, write_all
from .listing import Listing
from .protocol import CHUNK_BYTES
from .tree import (
    PARTIAL_FOLDER,
    Entry,
    Unfit,
    check_entry,
    is_same,
    leads_inside,
    open_beneath,
    opened,
    opened_folder,
    partial_of,
    remove_others,
)

ENDS_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
ERRORS_KEPT = 1000
TAKEN = "another transfer is bringing it"
# The errors of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

# [path, offset, SHA-256 of the bytes before it, whether more may follow those bytes]
Want = List[Any]


def nothing() -> None:
    """Do nothing."""


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


class Here(NamedTuple):
    """A file present here: its SHA-256, and whether it is still partial."""

    digest: Any
    is_partial: bool


class Growing(NamedTuple):
    """The file being received."""

    path: str
    descriptor: int
    size: int
    digest: Any


class Receiver:
    """A folder made equal to the source's.

    Whatever the source sends, nothing is written outside of the folder or through a link in it.

    `link_from` are folders, relative to this one, to link files of the same path, size and time
    from. `delete` removes files missing at the source, except those matching `exclude`. `verify`
    compares contents, not only sizes and times. `only`, `files`, `exclude` and `links` are as in
    `Source`: anything else from a source is refused. `vanished` allows files to disappear at the
    source. `room` is called before each piece and may raise OSError; `alive` is called during long
    work without frames.
    """

    def __init__(
        self,
        folder: str,
        *,
        link_from: Sequence[str] = (),
        delete: bool = False,
        only: Optional[Sequence[str]] = None,
        files: Optional[Sequence[str]] = None,
        exclude: Sequence[str] = (),
        verify: bool = False,
        links: str = "inside",
        vanished: bool = False,
        room: Callable[[], None] = nothing,
        alive: Callable[[], None] = nothing,
    ) -> None:
        self.folder = expand(folder)
        self.link_from = link_from
        self.delete = delete
        self.exclude = exclude
        self.verify = verify
        self.links = links
        self.vanished = vanished
        self.room = room
        self.alive = alive
        self.errors: List[str] = []
        # Of the wanted files.
        self.bytes_to_come = 0
        self._listing = Listing(only=only, files=files, exclude=exclude)
        self._entries = self._listing.entries
        self._here: Dict[str, Here] = {}
        # Files that cannot be written here.
        self._passed_over: Set[str] = set()
        self._growing: Optional[Growing] = None

    # ---- what has to come ----

    def expect(self, entries: object) -> None:
        """Add entries of the source; raises Unfit for malformed or unrequested ones."""
        for words in self._listing.take(entries):
            self.note(words)

    def note(self, words: str) -> None:
        """Record an error; of very many, only the first ones are kept."""
        if len(self.errors) < ERRORS_KEPT:
            self.errors.append(words)

    def wants(self, *, look_only: bool = False) -> Iterator[Want]:
        """Yield a want for each missing file, and make the folders.

        With `look_only`, nothing is written.
        """
        if not look_only:
            os.makedirs(self.folder, exist_ok=True)
        for path, entry in self._entries.items():
            self.alive()
            want: Optional[Want] = None
            with self._noting(path):
                if entry[0] == "d" and not look_only:
                    with opened_folder(self.folder, path, create=True):
                        pass
                elif entry[0] == "f":
                    want = self._want(path, entry, look_only)
            if want:
                self.bytes_to_come += max(0, entry[4] - want[1])
                yield want

    def _want(self, path: str, entry: Entry, look_only: bool) -> Optional[Want]:
        """Return the want of a file; None if it is present or can be linked."""
        here = self._look_at(path)
        if here and is_same(here, entry):
            if self.verify:
                return [
                    path,
                    here.st_size,
                    self._hash(path, path, is_partial=False),
                    False,
                ]
            if stat.S_IMODE(here.st_mode) != entry[3] and not look_only:
                with opened_folder(self.folder, os.path.dirname(path)) as parent:
                    os.chmod(os.path.basename(path), entry[3], dir_fd=parent)
            return None
        if not look_only and self._link_from_others(path, entry):
            return None
        partial = self._look_at(partial_of(path))
        if (
            partial
            and stat.S_ISREG(partial.st_mode)
            and 0 < partial.st_size <= entry[4]
        ):
            known = self._hash(partial_of(path), path, is_partial=True)
            return [path, partial.st_size, known, True]
        return [path, 0, None, True]

    def _look_at(self, path: str) -> Optional[os.stat_result]:
        """Return lstat of a path; None if it is missing or behind a link."""
        try:
            with opened_folder(self.folder, os.path.dirname(path)) as parent:
                return os.stat(
                    os.path.basename(path), dir_fd=parent, follow_symlinks=False
                )
        except OSError:
            return None

    def _hash(self, place: str, path: str, *, is_partial: bool) -> str:
        """Hash the file at `place` and remember its digest for `path`."""
        digest = hashlib.sha256()
        with open(
            open_beneath(self.folder, place, os.O_RDONLY | os.O_NONBLOCK), "rb"
        ) as file:
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(chunk)
                self.alive()
        self._here[path] = Here(digest, is_partial)
        return digest.hexdigest()

    def _link_from_others(self, path: str, entry: Entry) -> bool:
        """Link the same file from another folder; return False if none has it."""
        for folder in self.link_from:
            other = os.path.normpath(os.path.join(self.folder, folder, path))
            try:
                same = is_same(os.lstat(other), entry)
            except OSError:
                continue
            if not same:
                continue
            with opened_folder(
                self.folder, os.path.dirname(path), create=True
            ) as parent:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.basename(path), dir_fd=parent)
                os.link(
                    other,
                    os.path.basename(path),
                    dst_dir_fd=parent,
                    follow_symlinks=False,
                )
            return True
        return False

    # ---- the files ----

    def content(self, path: str, offset: int, payload: bytes) -> None:
        """Write the next bytes of a file.

        Raises Unfit if they do not continue it, OSError if the disk is full.
        """
        growing = self._growing
        if growing is None or growing.path != path:
            growing = self._begun(path, offset)
        if growing is None:
            return
        if growing.size != offset:
            raise Unfit(
                "%.200r goes on at byte %d instead of %d" % (path, offset, growing.size)
            )
        self.room()
        try:
            write_all(growing.descriptor, payload)
        except OSError as error:
            raise OSError(
                error.errno, error.strerror, os.path.join(self.folder, path)
            ) from error
        growing.digest.update(payload)
        self._growing = growing._replace(size=offset + len(payload))

    def _begun(self, path: str, offset: int) -> Optional[Growing]:
        """Begin or continue a file; return None if it cannot be written here, which is noted."""
        self._check_file(path)
        if path in self._passed_over:
            return None
        try:
            return self._begin(path, offset)
        except OSError as error:
            self._note_error(path, error)
            self._passed_over.add(path)
            return None

    def _begin(self, path: str, offset: int) -> Growing:
        """Open a partial file at an offset and lock it.

        Raises OSError, and Unfit for a wrong offset.
        """
        self.close()
        here = self._here.get(path)
        if offset and not (here and here.is_partial):
            raise Unfit("%.200r begins at byte %d" % (path, offset))
        descriptor = open_beneath(
            self.folder, partial_of(path), os.O_RDWR | os.O_CREAT, create=True
        )
        try:
            if not _is_locked(descriptor):
                fresh = self._taken_over(descriptor, path, offset)
                os.close(descriptor)
                descriptor = fresh
            if not offset:
                os.ftruncate(descriptor, 0)
            size = os.lseek(descriptor, 0, os.SEEK_END)
        except OSError:
            os.close(descriptor)
            raise
        digest = here.digest if here and offset else hashlib.sha256()
        self._growing = Growing(path, descriptor, size, digest)
        return self._growing

    def _taken_over(self, descriptor: int, path: str, offset: int) -> int:
        """Replace a partial file, locked by another transfer, by a copy; return its descriptor.

        Two writers of one file would each verify their own bytes, but not the file's. The other one
        may be alive, or its connection dead: in both cases it finds at its end that the file is no
        longer its own.
        """
        with opened_folder(self.folder, os.path.dirname(partial_of(path))) as parent:
            aside = ".ugro-%s" % os.urandom(8).hex()
            copy = os.open(
                aside,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o600,
                dir_fd=parent,
            )
            try:
                digest = self._copied(descriptor, copy, offset)
                here = self._here.get(path)
                if offset and here and digest != here.digest.digest():
                    raise OSError(errno.EAGAIN, TAKEN)
                _is_locked(copy)
                os.replace(
                    aside, os.path.basename(path), src_dir_fd=parent, dst_dir_fd=parent
                )
            except OSError:
                os.close(copy)
                os.unlink(aside, dir_fd=parent)
                raise
        return copy

    def _copied(self, source: int, target: int, size: int) -> bytes:
        """Copy the first bytes of a file, fewer if it is shorter; return their SHA-256."""
        digest = hashlib.sha256()
        at = 0
        while at < size:
            piece = os.pread(source, min(CHUNK_BYTES, size - at), at)
            if not piece:
                break
            write_all(target, piece)
            digest.update(piece)
            at += len(piece)
            self.alive()
        return digest.digest()

    def whole(self, told: Json) -> bool:
        """Finish a file and move it into place; return False if it must be sent again."""
        path = told.get("path")
        if not isinstance(path, str):
            raise Unfit("the end of no file")
        self._check_file(path)
        if "error" in told:
            if not (told.get("vanished") and self.vanished):
                self.note("%s: %.200s" % (path, told["error"]))
            return True
        if path in self._passed_over:
            return True
        entry = ["f", path, told.get("mtime_ns"), told.get("mode"), told.get("size")]
        check_entry(entry)
        here = self._here.pop(path, None)
        if self._growing is None or self._growing.path != path:
            # An empty file comes without CONTENT.
            if here is None:
                begun = self._begun(path, 0)
                if begun is None:
                    return True
                here = Here(begun.digest, is_partial=True)
        else:
            here = Here(self._growing.digest, is_partial=True)
        if here.digest.hexdigest() != told.get("sha256"):
            self.close()
            return False
        # Before the close, which releases the lock.
        with self._noting(path):
            self._name(path, entry, here.is_partial)
        self.close()
        return True

    def _check_file(self, path: str) -> None:
        """Raise Unfit for a path that is no file of the source."""
        if not self._listing.is_file(path):
            raise Unfit("%.200r is no file of its list" % path)

    def _name(self, path: str, entry: Entry, is_partial: bool) -> None:
        """Move a partial file into place, and set the source's mode and time."""
        name = os.path.basename(path)
        with opened_folder(self.folder, os.path.dirname(path)) as parent:
            if is_partial:
                with opened_folder(
                    self.folder, os.path.dirname(partial_of(path))
                ) as partial:
                    self._check_ours(path, partial)
                    os.replace(name, name, src_dir_fd=partial, dst_dir_fd=parent)
                # Not empty: it has another partial file.
                with contextlib.suppress(OSError):
                    os.rmdir(PARTIAL_FOLDER, dir_fd=parent)
        with opened(self.folder, path, os.O_RDONLY | os.O_NONBLOCK) as file:
            os.fchmod(file, entry[3])
            os.utime(file, ns=(entry[2], entry[2]))

    def _check_ours(self, path: str, folder: int) -> None:
        """Raise OSError if another transfer has replaced our partial file."""
        growing = self._growing
        if growing is None or growing.path != path:
            return
        there = os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
        if there.st_ino != os.fstat(growing.descriptor).st_ino:
            raise OSError(errno.EAGAIN, TAKEN)

    # ---- the end ----

    def finish(self) -> None:
        """Make the links, remove other files, and set modes and times of the folders."""
        self.close()
        for path, entry in self._entries.items():
            if entry[0] == "l" and (
                self.links == "all" or leads_inside(path, entry[2])
            ):
                with self._noting(path):
                    self._link(path, entry[2])
        if self.delete:
            remove_others(
                self.folder,
                self._entries,
                exclude=self.exclude,
                noting=self._noting,
                alive=self.alive,
            )
        for path, entry in sorted(self._entries.items(), reverse=True):
            self.alive()
            if entry[0] == "d":
                with self._noting(path), opened_folder(self.folder, path) as folder:
                    os.fchmod(folder, entry[3] | 0o700)
                    os.utime(folder, ns=(entry[2], entry[2]))

    def _link(self, path: str, target: str) -> None:
        name = os.path.basename(path)
        with opened_folder(self.folder, os.path.dirname(path), create=True) as parent:
            with contextlib.suppress(OSError):
                if os.readlink(name, dir_fd=parent) == target:
                    return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            os.symlink(target, name, dir_fd=parent)

    def close(self) -> None:
        """Close the file being received; its partial file is kept for the next time."""
        if self._growing:
            os.close(self._growing.descriptor)
            self._growing = None

    @contextlib.contextmanager
    def _noting(self, path: str) -> Iterator[None]:
        """Make a context that records an OSError about one path; a full disk is raised."""
        try:
            yield
        except OSError as error:
            self._note_error(path, error)

    def _note_error(self, path: str, error: OSError) -> None:
        if error.errno in ENDS_ALL:
            raise OSError(
                error.errno, error.strerror, os.path.join(self.folder, path)
            ) from error
        self.note("%s: %s" % (path, error.strerror))
