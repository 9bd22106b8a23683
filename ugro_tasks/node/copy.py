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

import json
import os
import signal
import time
from typing import (
    Any,
    BinaryIO,
    Callable,
    Iterable,
    Iterator,
    List,
    Set,
    Tuple,
)

from .files import Json
from .protocol import (
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
from .source import Put, Source, as_json
from .streams import send

# Of entries or wants in one frame.
BATCH_BYTES = 1 << 17
NICENESS = 10
SIGN_OF_LIFE_SECONDS = 1.0
ERRORS_TOLD = 20


# ---- on a node ----


def send_files(request: Json, stdin: BinaryIO) -> None:
    """Serve a pull: list the folder, then send the wanted files."""
    if request["gently"]:
        os.nice(NICENESS)
    source = source_of(request)
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


def source_of(request: Json) -> Source:
    """Return the source of a pull."""
    if request["links"] in ("owned", "left"):
        # Late: only the outputs of a rank come so.
        from .outputs import Outputs

        return Outputs(
            request["folder"],
            exclude=request["exclude"],
            always_followed=request["never_links"],
            leave_links=request["links"] == "left",
        )
    return Source(
        request["folder"],
        only=request["only"],
        files=request["files"],
        exclude=request["exclude"],
        never_links=request["never_links"],
        links=request["links"],
    )


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
