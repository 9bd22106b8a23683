"""A folder that becomes like the source's: what has to come is found, stored beside its place, proven, and named."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

from .files import Json, expand
from .tree import (
    PARTIAL_FOLDER,
    Entry,
    Unfit,
    check_entry,
    is_excluded,
    is_same,
    leads_inside,
    open_beneath,
    opened,
    opened_folder,
    partial_of,
)

READ_BYTES = 1 << 18
ENTRIES_MOST = 2_000_000
ENDS_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Want = List[Any]  # [path, offset, SHA-256 of the bytes before it, whether more may follow those bytes]


def nothing() -> None:
    """Do nothing."""


class Here(NamedTuple):
    """What is here of a file: the SHA-256 of it, and whether it lies where partial files wait."""

    digest: Any
    is_partial: bool


class Growing(NamedTuple):
    """The file that is under way."""

    path: str
    descriptor: int
    size: int
    digest: Any


class Receiver:
    """A folder that becomes like the source's.

    Whatever the source says, nothing is written outside of the folder, nor through a link in it.

    `link_from` are folders, as seen from this one, whose files of the same path, size and time are linked instead of
    sent. `delete` removes what the source has not, save what `exclude` fits. `verify` compares contents, not only sizes
    and times. `links` is as in `Source`. `vanished` says whether a file may have gone away on the source's side. `room`
    is called before each piece and may raise OSError; `alive` while nothing is said for long.
    """

    def __init__(
        self,
        folder: str,
        *,
        link_from: Sequence[str] = (),
        delete: bool = False,
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
        self.bytes_to_come = 0  # of what is wanted
        self._entries: Dict[str, Entry] = {}
        self._here: Dict[str, Here] = {}
        self._growing: Optional[Growing] = None

    # ---- what has to come ----

    def expect(self, entries: object) -> None:
        """Take note of entries; raises Unfit for what is none."""
        if not isinstance(entries, list) or len(self._entries) + len(entries) > ENTRIES_MOST:
            raise Unfit("no list of entries, or one without end")
        for entry in entries:
            if isinstance(entry, list) and entry[:1] == ["e"] and entry[1:2] == [""]:
                self.errors.append("the folder itself: %.200s" % entry[2])
                continue
            check_entry(entry)
            if entry[0] == "e":
                self.errors.append("%s: %.200s" % (entry[1], entry[2]))
            else:
                self._entries[entry[1]] = entry

    def wants(self, *, look_only: bool = False) -> Iterator[Want]:
        """Give what of the source has to come. With `look_only` nothing is laid out, only compared."""
        if not look_only:
            os.makedirs(self.folder, exist_ok=True)
        for path, entry in self._entries.items():
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
        here = self._look_at(path)
        if here and is_same(here, entry):
            if self.verify:
                return [path, here.st_size, self._hash(path, path, is_partial=False), False]
            if stat.S_IMODE(here.st_mode) != entry[3] and not look_only:
                os.chmod(os.path.join(self.folder, path), entry[3])
            return None
        if not look_only and self._link_from_others(path, entry):
            return None
        partial = self._look_at(partial_of(path))
        if partial and stat.S_ISREG(partial.st_mode) and 0 < partial.st_size <= entry[4]:
            known = self._hash(partial_of(path), path, is_partial=True)
            return [path, partial.st_size, known, True]
        return [path, 0, None, True]

    def _look_at(self, path: str) -> Optional[os.stat_result]:
        """What lies at a path, None where nothing does or the way to it is by a link."""
        try:
            with opened_folder(self.folder, os.path.dirname(path)) as parent:
                return os.stat(os.path.basename(path), dir_fd=parent, follow_symlinks=False)
        except OSError:
            return None

    def _hash(self, place: str, path: str, *, is_partial: bool) -> str:
        digest = hashlib.sha256()
        with open(open_beneath(self.folder, place, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            for chunk in iter(lambda: file.read(READ_BYTES), b""):
                digest.update(chunk)
                self.alive()
        self._here[path] = Here(digest, is_partial)
        return digest.hexdigest()

    def _link_from_others(self, path: str, entry: Entry) -> bool:
        for folder in self.link_from:
            other = os.path.normpath(os.path.join(self.folder, folder, path))
            try:
                same = is_same(os.lstat(other), entry)
            except OSError:
                continue
            if not same:
                continue
            with opened_folder(self.folder, os.path.dirname(path), create=True) as parent:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.basename(path), dir_fd=parent)
                os.link(other, os.path.basename(path), dst_dir_fd=parent, follow_symlinks=False)
            return True
        return False

    # ---- the files ----

    def content(self, path: str, offset: int, payload: bytes) -> None:
        """Write the next bytes of a file. Raises Unfit where they are not, OSError where there is no room."""
        growing = self._growing
        if growing is None or growing.path != path:
            growing = self._begin(path, offset)
        if growing.size != offset:
            raise Unfit("%.200r goes on at byte %d instead of %d" % (path, offset, growing.size))
        self.room()
        try:
            left = memoryview(payload)
            while left:
                left = left[os.write(growing.descriptor, left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.path.join(self.folder, path)) from error
        growing.digest.update(payload)
        self._growing = growing._replace(size=offset + len(payload))

    def _begin(self, path: str, offset: int) -> Growing:
        self.close()
        self._entry_of_file(path)
        here = self._here.get(path)
        if offset and not (here and here.is_partial):
            raise Unfit("%.200r begins at byte %d" % (path, offset))
        flags = os.O_WRONLY | os.O_CREAT | (0 if offset else os.O_TRUNC)
        try:
            descriptor = open_beneath(self.folder, partial_of(path), flags, create=True)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.path.join(self.folder, path)) from error
        digest = here.digest if here and offset else hashlib.sha256()
        size = os.lseek(descriptor, 0, os.SEEK_END)
        self._growing = Growing(path, descriptor, size, digest)
        return self._growing

    def whole(self, told: Json) -> bool:
        """Give a file its name; False where its bytes are not the source's, and it has to come again from its start."""
        path = told.get("path")
        if not isinstance(path, str):
            raise Unfit("the end of no file")
        self._entry_of_file(path)
        if "error" in told:
            if not (told.get("vanished") and self.vanished):
                self.errors.append("%s: %.200s" % (path, told["error"]))
            return True
        entry = ["f", path, told.get("mtime_ns"), told.get("mode"), told.get("size")]
        check_entry(entry)
        here = self._here.pop(path, None)
        if self._growing is None or self._growing.path != path:
            if here is None:  # it is empty
                here = Here(self._begin(path, 0).digest, is_partial=True)
        else:
            here = Here(self._growing.digest, is_partial=True)
        self.close()
        if here.digest.hexdigest() != told.get("sha256"):
            return False
        with self._noting(path):
            self._name(path, entry, here.is_partial)
        return True

    def _entry_of_file(self, path: str) -> None:
        if self._entries.get(path, ["?"])[0] != "f":
            raise Unfit("%.200r is no file of its list" % path)

    def _name(self, path: str, entry: Entry, is_partial: bool) -> None:
        """Move a partial file to its place; then the file has the source's mode and time."""
        name = os.path.basename(path)
        with opened_folder(self.folder, os.path.dirname(path)) as parent:
            if is_partial:
                with opened_folder(self.folder, os.path.dirname(partial_of(path))) as partial:
                    os.replace(name, name, src_dir_fd=partial, dst_dir_fd=parent)
                with contextlib.suppress(OSError):  # another file's may be there
                    os.rmdir(PARTIAL_FOLDER, dir_fd=parent)
        with opened(self.folder, path, os.O_RDONLY | os.O_NONBLOCK) as file:
            os.fchmod(file, entry[3])
            os.utime(file, ns=(entry[2], entry[2]))

    # ---- the end ----

    def finish(self) -> None:
        """Make the links, remove what the source has not, and give the folders their modes and times."""
        self.close()
        for path, entry in self._entries.items():
            if entry[0] == "l" and (self.links == "all" or leads_inside(path, entry[2])):
                with self._noting(path):
                    self._link(path, entry[2])
        if self.delete:
            self._delete_others("")
        for path, entry in sorted(self._entries.items(), reverse=True):
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

    def _delete_others(self, inside: str) -> None:
        for found in list(os.scandir(os.path.join(self.folder, inside))):
            path = os.path.join(inside, found.name)
            is_folder = found.is_dir(follow_symlinks=False)
            if is_excluded(path, self.exclude):
                continue
            with self._noting(path):
                if path in self._entries and is_folder:
                    self._delete_others(path)
                elif path not in self._entries and is_folder:
                    shutil.rmtree(found.path)
                elif path not in self._entries:
                    os.unlink(found.path)

    def close(self) -> None:
        """Close the file that is under way; what has come of it stays for the next time."""
        if self._growing:
            os.close(self._growing.descriptor)
            self._growing = None

    @contextlib.contextmanager
    def _noting(self, path: str) -> Iterator[None]:
        """Take note of what cannot be done with one path, and go on; a full disk is raised."""
        try:
            yield
        except OSError as error:
            if error.errno in ENDS_ALL:
                raise OSError(error.errno, error.strerror, os.path.join(self.folder, path)) from error
            self.errors.append("%s: %s" % (path, error.strerror))
