"""The source of a transfer: it lists the files of a folder and sends the wanted ones."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from typing import Any, Callable, Iterable, Iterator, List, Optional

from .files import expand
from .protocol import CHUNK_BYTES, CONTENT, FILE, NEXT
from .receiver import Want
from .tree import (
    PARTIAL_FOLDER,
    Entry,
    entry_of,
    is_excluded,
    leads_inside,
    open_beneath,
)

Put = Callable[[int, int, bytes], None]


class Unreadable(Exception):
    """A file cannot be read on, as on a failing disk."""


class Source:
    """The files of a folder, to be listed and sent.

    `only` are names in the top folder, `files` paths; None stands for all. `never_links` are names
    in the top folder of folders, left out if they are anything else. For `exclude` see
    `is_excluded`. `links` is "inside" to send only links leading to a path in the folder, "all", or
    "followed" to send what they lead to in their place.
    """

    def __init__(
        self,
        folder: str,
        *,
        only: Optional[List[str]] = None,
        files: Optional[List[str]] = None,
        exclude: Iterable[str] = (),
        never_links: Iterable[str] = (),
        links: str = "inside",
    ) -> None:
        self.folder = expand(folder)
        self.only = only
        self.files = files
        self.exclude = list(exclude)
        self.never_links = list(never_links)
        self.links = links

    def entries(self, alive: Callable[[], None]) -> Iterator[Entry]:
        """Yield every entry, a folder before its content, calling `alive` all along.

        Raises OSError if the folder itself cannot be read.
        """
        os.listdir(self.folder)
        if self.files is not None:
            for path in self.files:
                yield from self._entry(path)
            return
        waiting = [""]
        while waiting:
            inside = waiting.pop()
            try:
                names = sorted(os.listdir(os.path.join(self.folder, inside)))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                yield ["e", inside, str(error.strerror)]
                continue
            for name in names:
                alive()
                path = os.path.join(inside, name)
                if not self._is_chosen(inside, name, path):
                    continue
                for entry in self._entry(path):
                    yield entry
                    is_folder = entry[0] == "d"
                    if is_folder:
                        waiting.append(path)

    def _is_chosen(self, inside: str, name: str, path: str) -> bool:
        if name == PARTIAL_FOLDER or is_excluded(path, self.exclude):
            return False
        return bool(inside) or self.only is None or name in self.only

    def _entry(self, path: str) -> Iterator[Entry]:
        """Yield the entry of one path; nothing for pipes, devices and vanished paths.

        A vanished path given in `files` is reported as unreadable.
        """
        full = os.path.join(self.folder, path)
        try:
            facts = os.stat(full) if self.links == "followed" else os.lstat(full)
            if path in self.never_links and not stat.S_ISDIR(facts.st_mode):
                return
            if stat.S_ISLNK(facts.st_mode):
                target = os.readlink(full)
                if self.links == "all" or leads_inside(path, target):
                    yield ["l", path, target]
            elif stat.S_ISDIR(facts.st_mode) or stat.S_ISREG(facts.st_mode):
                yield entry_of(path, facts)
        except FileNotFoundError as error:
            if self.files is not None:
                yield ["e", path, str(error.strerror)]
        except OSError as error:
            yield ["e", path, str(error.strerror)]

    def _open(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_NONBLOCK
        if self.links == "followed":
            return os.open(os.path.join(self.folder, path), flags)
        return open_beneath(self.folder, path, flags)

    def send(self, want: Want, put: Put, alive: Callable[[], None]) -> None:
        """Put the frames of a wanted file: NEXT, CONTENT of the missing bytes, and FILE."""
        path, offset, known, may_follow = want
        put(NEXT, 0, as_json(path))
        try:
            descriptor = self._open(path)
        except OSError as error:
            failed = {
                "path": path,
                "error": error.strerror,
                "vanished": error.errno == errno.ENOENT,
            }
            return put(FILE, 0, as_json(failed))
        with open(descriptor, "rb", buffering=0) as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                gone = {"path": path, "error": "no file any more", "vanished": True}
                return put(FILE, 0, as_json(gone))
            if not may_follow and offset != facts.st_size:
                offset = 0
            try:
                digest = hash_of(file, offset, alive)
                if offset and digest.hexdigest() != known:
                    # The receiver has other bytes: send the file from its start.
                    offset = 0
                    digest = hashlib.sha256()
                    file.seek(0)
                for chunk in _pieces(file, facts.st_size - offset):
                    digest.update(chunk)
                    put(CONTENT, offset, chunk)
                    offset += len(chunk)
            except Unreadable as error:
                return put(FILE, 0, as_json({"path": path, "error": str(error)}))
        _, _, mtime_ns, mode, _ = entry_of(path, facts)
        complete = {
            "path": path,
            "size": offset,
            "mtime_ns": mtime_ns,
            "mode": mode,
            "sha256": digest.hexdigest(),
        }
        return put(FILE, 0, as_json(complete))


def hash_of(file: Any, size: int, alive: Callable[[], None]) -> Any:
    """Return the SHA-256 of a file's first bytes, as an object to update. Raises Unreadable."""
    digest = hashlib.sha256()
    for chunk in _pieces(file, size):
        digest.update(chunk)
        alive()
    return digest


def _pieces(file: Any, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes of a file, fewer if it was truncated. Raises Unreadable."""
    while size > 0:
        try:
            chunk = file.read(min(CHUNK_BYTES, size))
        except OSError as error:
            raise Unreadable(error.strerror) from error
        if not chunk:
            return
        yield chunk
        size -= len(chunk)


def as_json(value: object) -> bytes:
    """Encode compact JSON; file names that are not text are escaped."""
    return json.dumps(value, separators=(",", ":")).encode()
