"""A job's streams as frames on stdout, from any offset on, for a controller that may come and go."""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
import zlib
from functools import partial
from typing import BinaryIO, Dict, Optional

from .files import Json, expand, read_json
from .processes import boot_id, end_all, of_rank, supervisor_of
from .protocol import (
    CHUNK_BYTES,
    COMPRESSED,
    EXIT,
    FRAME,
    GPU,
    HEARTBEAT,
    LOG,
    LOST,
    MANIFEST,
    MANIFEST_BYTES,
    MANIFEST_SUFFIX,
    METRICS,
    READER_GONE_SECONDS,
)

POLL_SECONDS = 0.03
QUIET_POLL_SECONDS = 0.1  # where nothing has come for
QUIET_SECONDS = 5.0  # as long as this
MANIFEST_SECONDS = 0.5  # how often to look for a new checkpoint
# For what a killed supervisor leaves; torchrun has had its TERM by then.
ORPHAN_GRACE_SECONDS = 2.0

STREAMS = {LOG: "log", METRICS: "output/metrics.jsonl", GPU: "gpu.jsonl"}


def follow(request: Json, _stdin: BinaryIO) -> None:
    """Send what is new in each stream, a HEARTBEAT when quiet, and EXIT or LOST as the last frame.

    EXIT carries exit.json. LOST says that no supervisor lives and none left a record: {known, rebooted}. What was left
    of the rank is ended before that, so that its last words are sent, too.
    MANIFEST carries the manifest of a checkpoint that is whole, of each that there is when the following begins.
    """
    folder = expand(request["folder"])
    offsets = {int(kind): offset for kind, offset in request["offsets"].items()}
    send(HEARTBEAT, 0, b"")
    quiet_since = supervised_at = moved_at = time.monotonic()
    told: Dict[str, bytes] = {}
    looked_at = 0.0
    ending: Optional[threading.Thread] = None
    while True:
        # Read first: what stood in the streams before the end is sent before the end.
        ended = read_json(os.path.join(folder, "exit.json"))
        gone = ending is not None and not ending.is_alive()
        if ended or time.monotonic() - looked_at > MANIFEST_SECONDS:
            looked_at = time.monotonic()
            forward_manifests(folder, told)
        if sum(forward(folder, kind, offsets) for kind in offsets):
            quiet_since = moved_at = time.monotonic()
        elif ended:
            # Among the outputs may be names that are no text.
            return send(
                EXIT,
                0,
                json.dumps(ended, ensure_ascii=False).encode("utf-8", "replace"),
            )
        elif gone:
            return send(LOST, 0, json.dumps(lost(folder)).encode())
        elif time.monotonic() - quiet_since > request["heartbeat_seconds"]:
            send(HEARTBEAT, 0, b"")
            quiet_since = time.monotonic()
        else:
            quiet = time.monotonic() - moved_at > QUIET_SECONDS
            time.sleep(QUIET_POLL_SECONDS if quiet else POLL_SECONDS)
        # Also while there is much to send: what nobody supervises any more may go on printing for hours.
        if (
            not ending
            and time.monotonic() - supervised_at > request["heartbeat_seconds"]
        ):
            supervised_at = time.monotonic()
            if not supervisor_of(folder) and not os.path.exists(
                os.path.join(folder, "exit.json")
            ):
                rest = partial(of_rank, request["token"])
                ending = threading.Thread(
                    target=end_all, args=(rest, ORPHAN_GRACE_SECONDS), daemon=True
                )
                ending.start()


def forward(folder: str, kind: int, offsets: "dict[int, int]") -> bool:
    """Whether there was something new; a full chunk is sent compressed, since the reader is behind."""
    path = os.path.join(folder, STREAMS[kind])
    try:
        if not os.path.isfile(path):
            # A pipe, that a script has made, would be waited for.
            return False
        with open(path, "rb") as file:
            chunk = os.pread(file.fileno(), CHUNK_BYTES, offsets[kind])
    except FileNotFoundError:
        return False
    if not chunk:
        return False
    packed = zlib.compress(chunk, 1) if len(chunk) == CHUNK_BYTES else chunk
    if len(packed) < len(chunk):
        send(kind | COMPRESSED, offsets[kind], packed)
    else:
        send(kind, offsets[kind], chunk)
    offsets[kind] += len(chunk)
    return True


def forward_manifests(folder: str, told: "Dict[str, bytes]") -> None:
    for name, content in find_manifests(folder).items():
        if told.get(name) != content:
            told[name] = content
            send(MANIFEST, 0, content)


def find_manifests(folder: str) -> "Dict[str, bytes]":
    """{file name: content} of the manifests of a job's checkpoints here."""
    checkpoints = os.path.join(folder, "output", "checkpoints")
    found: Dict[str, bytes] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(checkpoints)):
            # A pipe of that name would be waited for.
            if name.endswith(MANIFEST_SUFFIX) and os.path.isfile(
                os.path.join(checkpoints, name)
            ):
                # One that is rotated away in this moment is no checkpoint any more.
                with contextlib.suppress(OSError):
                    with open(os.path.join(checkpoints, name), "rb") as file:
                        content = file.read(MANIFEST_BYTES + 1)
                    if len(content) <= MANIFEST_BYTES:
                        found[name] = content
    return found


def manifests(request: Json) -> Json:
    """The manifests of a job's checkpoints on this node, as text."""
    found = find_manifests(expand(request["folder"]))
    return {
        "manifests": [content.decode("utf-8", "replace") for content in found.values()]
    }


def lost(folder: str) -> Json:
    was = read_json(os.path.join(folder, "supervisor.json"))
    rebooted = was is not None and was["boot_id"] != boot_id()
    return {"known": was is not None, "rebooted": rebooted}


def send(kind: int, offset: int, payload: bytes) -> None:
    """One frame, whole. Ends the process where nobody has read for minutes or the reader has gone."""
    data = memoryview(FRAME.pack(kind, offset, len(payload)) + payload)
    while data:
        if not select.select([], [1], [], READER_GONE_SECONDS)[1]:
            raise SystemExit(1)
        try:
            data = data[os.write(1, data[:65536]) :]
        except BrokenPipeError:
            raise SystemExit(0) from None
