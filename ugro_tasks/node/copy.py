"""File transfer over the connection of a request, with rsync's abilities but without rsync.

One side has the `Source`, the other the `Receiver`; the controller uses the same two. They exchange
frames:

    source    ENTRIES  a JSON list of entries (see tree.py), as many as fit; LISTED ends the list
    receiver  WANTED   a JSON list of wants, as many as fit; ENOUGH ends the list
    source    NEXT     the JSON path of the next file
              CONTENT  bytes of it, from `offset` on
              FILE     JSON: it is complete, {path, size, mtime_ns, mode, sha256}, or failed,
                       {path, error, vanished}
              ENOUGH   every wanted file has been sent
    receiver  STORED   JSON: {errors}; the last frame of a receiving node
    either    HEARTBEAT, and FAILED with a JSON {message}

A want is [path, offset, SHA-256 of the bytes before it, whether more may follow those bytes]. Only
missing bytes are sent, an interrupted file is continued, and each file is compared with the
source's SHA-256 before it gets its name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import time
from typing import (
    Any,
    BinaryIO,
    Callable,
    Iterable,
    Iterator,
    List,
    Optional,
    Set,
    Tuple,
)

from .files import Json, expand
from .protocol import (
    CHUNK_BYTES,
    CONTENT,
    ENOUGH,
    ENTRIES,
    FAILED,
    FILE,
    FRAME,
    HEARTBEAT,
    LISTED,
    NEXT,
    READER_GONE_SECONDS,
    STORED,
    WANTED,
)
from .receiver import Receiver, Want
from .streams import send
from .tree import (
    PARTIAL_FOLDER,
    Entry,
    entry_of,
    is_excluded,
    leads_inside,
    open_beneath,
)

# Of entries or wants in one frame.
BATCH_BYTES = 1 << 17
NICENESS = 10
SIGN_OF_LIFE_SECONDS = 1.0
ERRORS_TOLD = 20

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


# ---- on a node ----


def send_files(request: Json, stdin: BinaryIO) -> None:
    """Serve a pull: list the folder, then send the wanted files."""
    if request["gently"]:
        os.nice(NICENESS)
    source = Source(
        request["folder"],
        only=request["only"],
        files=request["files"],
        exclude=request["exclude"],
        never_links=request["never_links"],
        links=request["links"],
    )
    try:
        for batch in batches(source.entries(sign_of_life(send))):
            send(ENTRIES, 0, batch)
    except OSError as error:
        return send_failure(error)
    send(LISTED, 0, b"")
    wants: List[Want] = []
    for kind, _, payload in incoming(stdin):
        if kind == WANTED:
            wants += json.loads(payload)
        elif kind == ENOUGH:
            for want in wants:
                source.send(want, send, sign_of_life(send))
            wants = []
            send(ENOUGH, 0, b"")
    return None


def receive_files(request: Json, stdin: BinaryIO) -> None:
    """Serve a push: request the missing files and store them."""
    receiver = Receiver(
        request["folder"],
        link_from=request["link_from"],
        delete=request["delete"],
        exclude=request["exclude"],
        links=request["links"],
        alive=sign_of_life(send),
    )
    storing = Storing(receiver, send)
    try:
        for kind, offset, payload in incoming(stdin):
            if kind == ENTRIES:
                receiver.expect(json.loads(payload))
            elif kind == LISTED:
                storing.ask()
            elif storing.take(kind, offset, payload):
                receiver.finish()
                errors = receiver.errors[:ERRORS_TOLD]
                return send(STORED, 0, as_json({"errors": errors}))
    except OSError as error:
        return send_failure(error)
    finally:
        receiver.close()
    return None


class Storing:
    """The receiver's part of a transfer: its requests, and its reactions to frames."""

    def __init__(self, receiver: Receiver, put: Put) -> None:
        self.receiver = receiver
        self.put = put
        self._path = ""
        self._again: List[Want] = []
        self._asked_again: Set[str] = set()

    def ask(self) -> None:
        """Request the missing files."""
        for batch in batches(self.receiver.wants()):
            self.put(WANTED, 0, batch)
        self.put(ENOUGH, 0, b"")

    def take(self, kind: int, offset: int, payload: bytes) -> bool:
        """Handle the next frame; return True once all files have arrived.

        A file differing from the source's is requested once more.
        """
        if kind == NEXT:
            self._path = json.loads(payload)
        elif kind == CONTENT:
            self.receiver.write(self._path, offset, payload)
        elif kind == FILE:
            told = json.loads(payload)
            if not self.receiver.finish_file(told):
                self._note_damage(told["path"])
        elif kind == ENOUGH:
            if not self._again:
                return True
            self.put(WANTED, 0, as_json(self._again))
            self.put(ENOUGH, 0, b"")
            self._again = []
        return False

    def _note_damage(self, path: str) -> None:
        if path in self._asked_again:
            self.receiver.note("%s: what came of it is not what was sent, twice" % path)
            return
        self._asked_again.add(path)
        self._again.append([path, 0, None, True])


def send_failure(error: OSError) -> None:
    """Send an error as the last frame."""
    message = "%s: %s" % (error.filename, error.strerror)
    send(FAILED, 0, as_json({"message": message}))


def sign_of_life(put: Put) -> Callable[[], None]:
    """Return a function to be called repeatedly, sending a HEARTBEAT about every second."""
    told_at = time.monotonic()

    def alive() -> None:
        nonlocal told_at
        if time.monotonic() - told_at > SIGN_OF_LIFE_SECONDS:
            told_at = time.monotonic()
            put(HEARTBEAT, 0, b"")

    return alive


def incoming(stdin: BinaryIO) -> Iterator[Tuple[int, int, bytes]]:
    """Yield the controller's frames until it closes.

    A controller silent for minutes is gone: SIGALRM then ends this process.
    """
    try:
        while True:
            signal.alarm(int(READER_GONE_SECONDS))
            head = stdin.read(FRAME.size)
            if len(head) < FRAME.size:
                return
            kind, offset, length = FRAME.unpack(head)
            payload = stdin.read(length)
            signal.alarm(0)
            yield kind, offset, payload
    finally:
        signal.alarm(0)


def batches(items: Iterable[Any]) -> Iterator[bytes]:
    """Yield JSON lists of the items, each as long as fits into a frame; at least one."""
    encoded: List[bytes] = []
    size = 0
    for item in items:
        word = as_json(item)
        if encoded and size + len(word) > BATCH_BYTES:
            yield b"[" + b",".join(encoded) + b"]"
            encoded = []
            size = 0
        encoded.append(word)
        size += len(word)
    yield b"[" + b",".join(encoded) + b"]"


def as_json(value: object) -> bytes:
    """Encode compact JSON; file names that are not text are escaped."""
    return json.dumps(value, separators=(",", ":")).encode()
