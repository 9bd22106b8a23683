"""The receiver of a transfer: it makes a folder equal to the source's.

It finds the missing files, stores them beside their places, verifies them, and moves them into place.
"""

from __future__ import annotations

import contextlib
import errno
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

from .files import Json, expand
from .listing import Listing
from .partial_file import PartialFile, move_into_place
from .protocol import CHUNK_BYTES
from .tree import (
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

# [path, offset, SHA-256 of the bytes before it, whether more may follow those bytes]
Want = List[Any]


def do_nothing() -> None:
    """Do nothing."""


class HashedFile(NamedTuple):
    """A file present here: its SHA-256, and whether it is still partial."""

    digest: Any
    is_partial: bool


class Receiver:
    """A folder made equal to the source's.

    Whatever the source sends, nothing is written outside of the folder or through a link in it.

    `link_from` are folders, relative to this one, to link files of the same path, size and time
    from. `only_new` leaves files alone that are here, whatever is in them. `delete` removes files
    missing at the source, except those matching `exclude`. `verify` compares contents, not only
    sizes and times. `only`, `files`, `exclude`, `never_links` and `links` are as in `Source`:
    anything else from a source is refused. `vanished` allows files to disappear at the source.
    `room` is called before each piece and each new name, and may raise OSError; `alive` is called
    during long work without frames.
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
        never_links: Sequence[str] = (),
        only_new: bool = False,
        verify: bool = False,
        links: str = "inside",
        vanished: bool = False,
        room: Callable[[], None] = do_nothing,
        alive: Callable[[], None] = do_nothing,
    ) -> None:
        self.folder = expand(folder)
        self.link_from = link_from
        self.delete = delete
        self.exclude = exclude
        self.only_new = only_new
        self.verify = verify
        self.links = links
        self.vanished = vanished
        self.room = room
        self.alive = alive
        self.errors: List[str] = []
        # Of the wanted files.
        self.bytes_to_come = 0
        self._listing = Listing(
            only=only, files=files, exclude=exclude, never_links=never_links
        )
        self._entries = self._listing.entries
        self.left_out = self._listing.left_out
        self.followed = self._listing.followed
        self._hashed: Dict[str, HashedFile] = {}
        # Files that cannot be written here.
        self._unwritable: Set[str] = set()
        self._open_file: Optional[PartialFile] = None

    # ---- the comparison ----

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
            kind = entry[0]
            if kind == "d" and not look_only:
                self.room()
            with self._noting(path):
                if kind == "d" and not look_only:
                    with opened_folder(self.folder, path, create=True):
                        pass
                elif kind == "f":
                    want = self._want(path, entry, look_only)
            if want:
                size = entry[4]
                offset = want[1]
                self.bytes_to_come += max(0, size - offset)
                yield want

    def _want(self, path: str, entry: Entry, look_only: bool) -> Optional[Want]:
        """Return the want of a file; None if it is present or can be linked."""
        here = self._look_at(path)
        if here and self.only_new:
            return None
        if here and is_same(here, entry):
            if self.verify:
                known = self._hash(path, path, is_partial=False)
                return [path, here.st_size, known, False]
            if not look_only:
                self._set_mode(path, here, entry)
            return None
        if not look_only and self._link_from_others(path, entry):
            return None
        size = entry[4]
        partial = self._look_at(partial_of(path))
        is_file = partial is not None and stat.S_ISREG(partial.st_mode)
        if partial and is_file and 0 < partial.st_size <= size:
            known = self._hash(partial_of(path), path, is_partial=True)
            return [path, partial.st_size, known, True]
        return [path, 0, None, True]

    def _look_at(self, path: str) -> Optional[os.stat_result]:
        """Return lstat of a path; None if it is missing or behind a link."""
        folder, name = os.path.split(path)
        try:
            with opened_folder(self.folder, folder) as parent:
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return None

    def _set_mode(self, path: str, here: os.stat_result, entry: Entry) -> None:
        mode = entry[3]
        if stat.S_IMODE(here.st_mode) == mode:
            return
        folder, name = os.path.split(path)
        with opened_folder(self.folder, folder) as parent:
            os.chmod(name, mode, dir_fd=parent)

    def _hash(self, place: str, path: str, *, is_partial: bool) -> str:
        """Hash the file at `place` and remember its digest for `path`."""
        digest = hashlib.sha256()
        descriptor = open_beneath(self.folder, place, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(chunk)
                self.alive()
        self._hashed[path] = HashedFile(digest, is_partial)
        return digest.hexdigest()

    def _link_from_others(self, path: str, entry: Entry) -> bool:
        """Link the same file from another folder; return False if none has it."""
        parent_path, name = os.path.split(path)
        for folder in self.link_from:
            other = os.path.normpath(os.path.join(self.folder, folder, path))
            try:
                same = is_same(os.lstat(other), entry)
            except OSError:
                continue
            if not same:
                continue
            with opened_folder(self.folder, parent_path, create=True) as parent:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parent)
                os.link(other, name, dst_dir_fd=parent, follow_symlinks=False)
            return True
        return False

    # ---- the files ----

    def write(self, path: str, offset: int, payload: bytes) -> None:
        """Write the next bytes of a file.

        Raises Unfit if they do not continue it, OSError if the disk is full.
        """
        file = self._open_file
        if file is None or file.path != path:
            file = self._begin(path, offset)
        if file is None:
            return
        if file.size != offset:
            words = (path, offset, file.size)
            raise Unfit("%.200r goes on at byte %d instead of %d" % words)
        self.room()
        file.write(payload)

    def _begin(self, path: str, offset: int) -> Optional[PartialFile]:
        """Open a file's partial file; return None if it cannot be written here, which is noted.

        Raises Unfit for an offset other than that of its want.
        """
        self._check_file(path)
        if path in self._unwritable:
            return None
        self.close()
        # An empty file takes a name, too.
        self.room()
        digest = hashlib.sha256()
        if offset:
            hashed = self._hashed.get(path)
            if hashed is None or not hashed.is_partial:
                raise Unfit("%.200r begins at byte %d" % (path, offset))
            digest = hashed.digest
        try:
            self._open_file = PartialFile(
                self.folder, path, offset=offset, digest=digest, alive=self.alive
            )
        except OSError as error:
            self._note_error(path, error)
            self._unwritable.add(path)
            return None
        return self._open_file

    def finish_file(self, told: Json) -> bool:
        """Verify a file and move it into place; return False if it must be sent again."""
        path = told.get("path")
        if not isinstance(path, str):
            raise Unfit("the end of no file")
        self._check_file(path)
        if self._is_given_up(path, told):
            return True
        entry = ["f", path, told.get("mtime_ns"), told.get("mode"), told.get("size")]
        check_entry(entry)
        hashed = self._hashed.pop(path, None)
        file = self._open_file
        if file is not None and file.path != path:
            file = None
        if file is None and hashed is None:
            # An empty file comes without CONTENT.
            file = self._begin(path, 0)
            if file is None:
                return True
        if file is not None:
            hashed = HashedFile(file.digest, is_partial=True)
        if hashed is None or hashed.digest.hexdigest() != told.get("sha256"):
            self.close()
            return False
        # Before the close, which releases the lock.
        with self._noting(path):
            if hashed.is_partial:
                move_into_place(self.folder, path, file)
            self._set_mode_and_time(path, entry)
        self.close()
        return True

    def _is_given_up(self, path: str, told: Json) -> bool:
        """Tell whether a file does not come: unreadable at the source, or unwritable here."""
        if "error" in told:
            may_vanish = told.get("vanished") and self.vanished
            if not may_vanish:
                self.note("%s: %.200s" % (path, told["error"]))
            return True
        return path in self._unwritable

    def _check_file(self, path: str) -> None:
        """Raise Unfit for a path that is no file of the source."""
        if not self._listing.is_file(path):
            raise Unfit("%.200r is no file of its list" % path)

    def _set_mode_and_time(self, path: str, entry: Entry) -> None:
        mtime_ns = entry[2]
        mode = entry[3]
        with opened(self.folder, path, os.O_RDONLY | os.O_NONBLOCK) as file:
            os.fchmod(file, mode)
            os.utime(file, ns=(mtime_ns, mtime_ns))

    # ---- the end ----

    def finish(self) -> None:
        """Make the links, remove other files, and set modes and times of the folders."""
        self.close()
        for path, entry in self._entries.items():
            if entry[0] != "l":
                continue
            target = entry[2]
            is_inside = self.links == "inside" and leads_inside(path, target)
            if self.links == "all" or is_inside:
                self.room()
                with self._noting(path):
                    self._link(path, target)
        if self.delete:
            remove_others(
                self.folder,
                self._entries,
                exclude=self.exclude,
                noting=self._noting,
                alive=self.alive,
            )
        # Inner folders first: a change inside would change the outer one's time.
        for path, entry in sorted(self._entries.items(), reverse=True):
            self.alive()
            if entry[0] != "d":
                continue
            mtime_ns = entry[2]
            mode = entry[3] | 0o700
            with self._noting(path), opened_folder(self.folder, path) as folder:
                os.fchmod(folder, mode)
                os.utime(folder, ns=(mtime_ns, mtime_ns))

    def _link(self, path: str, target: str) -> None:
        folder, name = os.path.split(path)
        with opened_folder(self.folder, folder, create=True) as parent:
            with contextlib.suppress(OSError):
                if os.readlink(name, dir_fd=parent) == target:
                    return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            os.symlink(target, name, dir_fd=parent)

    def close(self) -> None:
        """Close the file being received; its partial file is kept for the next time."""
        if self._open_file:
            self._open_file.close()
            self._open_file = None

    @contextlib.contextmanager
    def _noting(self, path: str) -> Iterator[None]:
        """Make a context that records an OSError about one path; a full disk is raised."""
        try:
            yield
        except OSError as error:
            self._note_error(path, error)

    def _note_error(self, path: str, error: OSError) -> None:
        if error.errno in ENDS_ALL:
            full_path = os.path.join(self.folder, path)
            raise OSError(error.errno, error.strerror, full_path) from error
        self.note("%s: %s" % (path, error.strerror))
