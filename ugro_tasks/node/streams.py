"""A job's streams as frames on stdout, from any offset on.

The controller may disconnect and follow again at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
import zlib
from functools import partial
from typing import BinaryIO, Dict, Iterator, List, Optional, Set

from .files import Json, end_of_lines, expand, open_plain, read_json
from .processes import boot_id, end_all, of_rank, supervisor_of
from .protocol import (
    CHUNK_BYTES,
    COMPRESSED,
    EXIT,
    FAULT,
    FRAME,
    GPU,
    HEARTBEAT,
    LOG,
    LOST,
    MANIFEST,
    MANIFEST_BYTES,
    MANIFEST_SUFFIX,
    METRICS,
    NOTICE,
    NOTICE_CHARACTERS,
    READER_GONE_SECONDS,
    SIZES,
)

POLL_SECONDS = 0.03
# Used once the streams have been quiet for QUIET_SECONDS.
QUIET_POLL_SECONDS = 0.1
QUIET_SECONDS = 5.0
NOTICES_MOST = 20
# Between two scans for new checkpoints.
MANIFEST_SECONDS = 0.5
# For the processes left by a killed supervisor; torchrun has had its TERM by then.
ORPHAN_GRACE_SECONDS = 2.0

STREAMS = {LOG: "log", METRICS: "output/metrics.jsonl", GPU: "gpu.jsonl"}


def follow(request: Json, _stdin: BinaryIO) -> None:
    """Send new data of each stream, a HEARTBEAT when quiet, and EXIT or LOST as the last frame.

    EXIT carries exit.json. LOST, {known, rebooted}, means that no supervisor lives and there is no
    exit record; the rest of the rank is ended before, so that its last output is sent, too.
    MANIFEST carries the manifest of a complete checkpoint, first of all present ones, then of each
    new one. NOTICE says once what cannot be read here; the rest is sent all the same. FAULT is the
    last frame where nothing more can be sent.
    """
    try:
        send_streams(request)
    except Exception as error:
        send(FAULT, 0, as_notice("%s: %s" % (type(error).__name__, error)))
        raise


def send_streams(request: Json) -> None:
    """Do what `follow` promises, but for FAULT."""
    folder = expand(request["folder"])
    exit_path = os.path.join(folder, "exit.json")
    heartbeat_seconds = request["heartbeat_seconds"]
    # JSON has made the kinds strings.
    offsets = {int(kind): offset for kind, offset in request["offsets"].items()}
    send(HEARTBEAT, 0, b"")
    quiet_since = supervised_at = moved_at = time.monotonic()
    told: Dict[str, bytes] = {}
    notices = Notices()
    looked_at = 0.0
    ending: Optional[threading.Thread] = None
    while True:
        # Read first, so that all data written before the end is sent before EXIT.
        ended = read_json(exit_path)
        if ended and supervisor_of(folder):
            # A supervisor writes it last of all: this one is not its own, but the rank's.
            ended = None
        gone = ending is not None and not ending.is_alive()
        if ended or time.monotonic() - looked_at > MANIFEST_SECONDS:
            looked_at = time.monotonic()
            with notices.of_unreadable():
                forward_manifests(folder, told)
        moved = []
        # Each stream sends a chunk in turn.
        for kind in offsets:
            with notices.of_unreadable():
                moved.append(forward(folder, kind, offsets))
        if any(moved):
            quiet_since = moved_at = time.monotonic()
        elif ended:
            # The names of outputs may not be text.
            record = json.dumps(ended, ensure_ascii=False)
            return send(EXIT, 0, record.encode("utf-8", "replace"))
        elif gone:
            return send(LOST, 0, json.dumps(lost(folder)).encode())
        elif time.monotonic() - quiet_since > heartbeat_seconds:
            send(HEARTBEAT, 0, b"")
            quiet_since = time.monotonic()
        else:
            quiet = time.monotonic() - moved_at > QUIET_SECONDS
            time.sleep(QUIET_POLL_SECONDS if quiet else POLL_SECONDS)
        # Checked even while there is data: an unsupervised script may go on printing for hours.
        if ending or time.monotonic() - supervised_at <= heartbeat_seconds:
            continue
        supervised_at = time.monotonic()
        if not supervisor_of(folder) and not read_json(exit_path):
            ending = end_in_background(request["token"])


class Notices:
    """Tells once of each thing that cannot be read."""

    def __init__(self) -> None:
        self._told: Set[str] = set()

    @contextlib.contextmanager
    def of_unreadable(self) -> Iterator[None]:
        """Make a context in which an OSError is told of, and is not the end."""
        try:
            yield
        except OSError as error:
            words = "%s: %s" % (error.filename, error.strerror)
            if words not in self._told and len(self._told) < NOTICES_MOST:
                self._told.add(words)
                send(NOTICE, 0, as_notice(words))


def as_notice(words: str) -> bytes:
    """Return words as the payload of a NOTICE or FAULT."""
    return words[:NOTICE_CHARACTERS].encode("utf-8", "replace")


def rest(request: Json, _stdin: BinaryIO) -> None:
    """Send what the streams have from the offsets on, and wait for no more; SIZES is the last frame.

    It carries {sizes: {kind: bytes of the stream}, alive}; `alive` is whether the rank may write on.
    LOST is the only frame where the folder is gone. Nothing is ended, unlike in `follow`.
    """
    folder = expand(request["folder"])
    if not os.path.isdir(folder):
        return send(LOST, 0, b"{}")
    # Before the sizes: what ends now has written all by then.
    alive = bool(supervisor_of(folder) or of_rank(request["token"]))
    offsets = {int(kind): offset for kind, offset in request["offsets"].items()}
    # Of this moment: a rank that still prints would be followed without end.
    sizes = stream_sizes(folder)
    for kind in offsets:
        while offsets[kind] < sizes[STREAMS[kind]] and forward(folder, kind, offsets):
            pass
    told = {kind: sizes[STREAMS[kind]] for kind in offsets}
    return send(SIZES, 0, json.dumps({"sizes": told, "alive": alive}).encode())


def stream_sizes(folder: str) -> "Dict[str, int]":
    """Return {file of a stream: its bytes}, 0 for a missing one.

    Samples count by whole lines: a supervisor that was killed may have left half a line.
    """
    sizes = {}
    for kind, name in STREAMS.items():
        size = 0
        with contextlib.suppress(FileNotFoundError), open_plain(
            os.path.join(folder, name)
        ) as file:
            size = os.fstat(file.fileno()).st_size
            if kind == GPU:
                size = end_of_lines(file.fileno(), size)
        sizes[name] = size
    return sizes


def end_in_background(token: str) -> threading.Thread:
    """Start to end the processes left of a rank; return the thread doing it."""
    find = partial(of_rank, token)
    ending = threading.Thread(
        target=end_all, args=(find, ORPHAN_GRACE_SECONDS), daemon=True
    )
    ending.start()
    return ending


def forward(folder: str, kind: int, offsets: "dict[int, int]") -> bool:
    """Send a stream's next chunk and tell whether there was one.

    A full chunk is compressed, since the reader is behind.
    """
    path = os.path.join(folder, STREAMS[kind])
    try:
        with open_plain(path) as file:
            chunk = os.pread(file.fileno(), CHUNK_BYTES, offsets[kind])
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not chunk:
        return False
    packed = chunk
    if len(chunk) == CHUNK_BYTES:
        packed = zlib.compress(chunk, 1)
    if len(packed) < len(chunk):
        send(kind | COMPRESSED, offsets[kind], packed)
    else:
        send(kind, offsets[kind], chunk)
    offsets[kind] += len(chunk)
    return True


def forward_manifests(folder: str, told: "Dict[str, bytes]") -> None:
    """Send the manifests not sent yet, or changed since."""
    for name, content in find_manifests(folder).items():
        if told.get(name) != content:
            told[name] = content
            send(MANIFEST, 0, content)


def find_manifests(folder: str) -> "Dict[str, bytes]":
    """Return {file name: content} of the manifests of a job's checkpoints here; raises OSError."""
    checkpoints = os.path.join(folder, "output", "checkpoints")
    names: List[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = sorted(os.listdir(checkpoints))
    found: Dict[str, bytes] = {}
    for name in names:
        path = os.path.join(checkpoints, name)
        if not name.endswith(MANIFEST_SUFFIX):
            continue
        # A checkpoint may be rotated away at this moment.
        with contextlib.suppress(OSError):
            with open_plain(path) as file:
                content = file.read(MANIFEST_BYTES + 1)
            if len(content) <= MANIFEST_BYTES:
                found[name] = content
    return found


def manifests(request: Json) -> Json:
    """Return the manifests of a job's checkpoints on this node, as text."""
    found: Dict[str, bytes] = {}
    # What cannot be read is told of when the outputs are listed.
    with contextlib.suppress(OSError):
        found = find_manifests(expand(request["folder"]))
    texts = [content.decode("utf-8", "replace") for content in found.values()]
    return {"manifests": texts}


def lost(folder: str) -> Json:
    """Return {known, rebooted} of a rank without supervisor and exit record."""
    was = read_json(os.path.join(folder, "supervisor.json"))
    rebooted = was is not None and was.get("boot_id") != boot_id()
    return {"known": was is not None, "rebooted": rebooted}


def send(kind: int, offset: int, payload: bytes) -> None:
    """Send one frame. Exits if the reader is gone or has read nothing for minutes."""
    data = memoryview(FRAME.pack(kind, offset, len(payload)) + payload)
    while data:
        _, writable, _ = select.select([], [1], [], READER_GONE_SECONDS)
        if not writable:
            raise SystemExit(1)
        try:
            count = os.write(1, data[:65536])
        except BrokenPipeError:
            raise SystemExit(0) from None
        data = data[count:]
