"""A folder's files on their way over the connection of a request: what rsync does, where one side has none that serves.

One side has the `Source`, the other the `Receiver`; the controller runs the same two. What they say are frames:

    source    ENTRIES  a JSON list of entries (see tree.py), as many as fit; LISTED: these were all
    receiver  WANTED   a JSON list of wants, as many as fit; ENOUGH: these were all
    source    NEXT     the JSON path of the file that follows
              CONTENT  bytes of it, from `offset` on
              FILE     JSON: it is whole, {path, size, mtime_ns, mode, sha256}, or {path, error, vanished}
              ENOUGH   every file that was wanted has been sent
    receiver  STORED   JSON: {errors}; the last word of a node that receives
    either    HEARTBEAT, and FAILED with a JSON {message}

A want is [path, offset, SHA-256 of the bytes before it, whether more may follow those bytes]. Only what
is missing travels, a file that broke off goes on where it did, and each is held against the source's
SHA-256 before it gets its name.
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
    Dict,
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

BATCH_BYTES = 1 << 17  # of entries or wants in one frame
NICENESS = 10
SIGN_OF_LIFE_SECONDS = 1.0
ERRORS_TOLD = 20

Put = Callable[[int, int, bytes], None]


class Unreadable(Exception):
    """A file that cannot be read on, as on a disk that fails."""


class Source:
    """The files of a folder, to be listed and sent.

    `only` are names of the topmost folder, `files` paths; None stands for all. For `exclude` see `is_excluded`. `links`
    is "inside" for those links alone that lead to something in the folder, or "all".
    """

    def __init__(
        self,
        folder: str,
        *,
        only: Optional[List[str]] = None,
        files: Optional[List[str]] = None,
        exclude: Iterable[str] = (),
        links: str = "inside",
    ) -> None:
        self.folder = expand(folder)
        self.only = only
        self.files = files
        self.exclude = list(exclude)
        self.links = links

    def entries(self, alive: Callable[[], None]) -> Iterator[Entry]:
        """Give every entry, a folder before what is in it; `alive` is called all along.

        Raises OSError where the folder itself cannot be read.
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
                    if entry[0] == "d":
                        waiting.append(path)

    def _is_chosen(self, inside: str, name: str, path: str) -> bool:
        if name == PARTIAL_FOLDER or is_excluded(path, self.exclude):
            return False
        return bool(inside) or self.only is None or name in self.only

    def _entry(self, path: str) -> Iterator[Entry]:
        """Give the entry of one path; none for pipes and devices, nor for what vanished from a list."""
        full = os.path.join(self.folder, path)
        try:
            facts = os.lstat(full)
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

    def send(self, want: Want, put: Put, alive: Callable[[], None]) -> None:
        """Put the frames of a wanted file: NEXT, CONTENT of what the receiver lacks, and FILE."""
        path, offset, known, may_follow = want
        put(NEXT, 0, as_json(path))
        try:
            descriptor = open_beneath(self.folder, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            told = {
                "path": path,
                "error": error.strerror,
                "vanished": error.errno == errno.ENOENT,
            }
            return put(FILE, 0, as_json(told))
        with open(descriptor, "rb", buffering=0) as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                return put(
                    FILE,
                    0,
                    as_json(
                        {"path": path, "error": "no file any more", "vanished": True}
                    ),
                )
            if not may_follow and offset != facts.st_size:
                offset = 0
            try:
                digest = hash_of(file, offset, alive)
                if offset and digest.hexdigest() != known:
                    offset, digest = 0, hashlib.sha256()
                    file.seek(0)
                for chunk in _pieces(file, facts.st_size - offset):
                    digest.update(chunk)
                    put(CONTENT, offset, chunk)
                    offset += len(chunk)
            except Unreadable as error:
                return put(FILE, 0, as_json({"path": path, "error": str(error)}))
        entry = entry_of(path, facts)
        facts_told = {
            "path": path,
            "size": offset,
            "mtime_ns": entry[2],
            "mode": entry[3],
        }
        return put(FILE, 0, as_json(dict(facts_told, sha256=digest.hexdigest())))


def hash_of(file: Any, size: int, alive: Callable[[], None]) -> Any:
    """Give the SHA-256 of the first bytes of a file, as an object to go on with. Raises Unreadable."""
    digest = hashlib.sha256()
    for chunk in _pieces(file, size):
        digest.update(chunk)
        alive()
    return digest


def _pieces(file: Any, size: int) -> Iterator[bytes]:
    """Give the next `size` bytes of a file, fewer where it was cut short. Raises Unreadable."""
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
    """Be the source of a pull: list the folder, then send what is wanted of it."""
    if request["gently"]:
        os.nice(NICENESS)
    source = Source(
        request["folder"], **{key: request[key] for key in ("only", "files", "exclude")}
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
    """Be the receiver of a push: say what is wanted, and store it."""
    chosen: Dict[str, Any] = {
        key: request[key] for key in ("link_from", "delete", "exclude", "links")
    }
    receiver = Receiver(request["folder"], alive=sign_of_life(send), **chosen)
    handling = Storing(receiver, send)
    try:
        for kind, offset, payload in incoming(stdin):
            if kind == ENTRIES:
                receiver.expect(json.loads(payload))
            elif kind == LISTED:
                handling.ask()
            elif handling.take(kind, offset, payload):
                receiver.finish()
                return send(
                    STORED, 0, as_json({"errors": receiver.errors[:ERRORS_TOLD]})
                )
    except OSError as error:
        return send_failure(error)
    finally:
        receiver.close()
    return None


class Storing:
    """A receiver's part of the talk: what it asks for, and what it makes of the frames that come."""

    def __init__(self, receiver: Receiver, put: Put) -> None:
        self.receiver = receiver
        self.put = put
        self._path = ""
        self._again: List[Want] = []
        self._asked_again: Set[str] = set()

    def ask(self) -> None:
        """Say what is wanted."""
        for batch in batches(self.receiver.wants()):
            self.put(WANTED, 0, batch)
        self.put(ENOUGH, 0, b"")

    def take(self, kind: int, offset: int, payload: bytes) -> bool:
        """Take the next frame; True where all has come.

        A file whose bytes are not the source's is asked for once more.
        """
        if kind == NEXT:
            self._path = json.loads(payload)
        elif kind == CONTENT:
            self.receiver.content(self._path, offset, payload)
        elif kind == FILE:
            told = json.loads(payload)
            if not self.receiver.whole(told):
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
    """Say what cannot be done, as the last word."""
    send(FAILED, 0, as_json({"message": "%s: %s" % (error.filename, error.strerror)}))


def sign_of_life(put: Put) -> Callable[[], None]:
    """Make a function to call again and again, which tells the other side at times that this goes on."""
    told_at = time.monotonic()

    def alive() -> None:
        nonlocal told_at
        if time.monotonic() - told_at > SIGN_OF_LIFE_SECONDS:
            told_at = time.monotonic()
            put(HEARTBEAT, 0, b"")

    return alive


def incoming(stdin: BinaryIO) -> Iterator[Tuple[int, int, bytes]]:
    """Give the controller's frames until it closes. One that is silent for minutes is gone: this process ends then."""
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
    """Give JSON lists of the items, each as long as a frame may be; at least one."""
    words: List[bytes] = []
    size = 0
    for item in items:
        word = as_json(item)
        if words and size + len(word) > BATCH_BYTES:
            yield b"[" + b",".join(words) + b"]"
            words, size = [], 0
        words.append(word)
        size += len(word)
    yield b"[" + b",".join(words) + b"]"


def as_json(value: object) -> bytes:
    """Write compact JSON; names that are no text travel as escapes."""
    return json.dumps(value, separators=(",", ":")).encode()
