"""A job's streams as frames on stdout, from any offset on, for a controller that may come and go."""

from __future__ import annotations

import json
import os
import select
import struct
import time
import zlib

from .system import Json, boot_id, expand, read_json, supervisor_of

# kind, byte offset in its stream, payload length; then the payload
FRAME = struct.Struct(">BQI")
HEARTBEAT, LOG, METRICS, GPU, EXIT, LOST = range(6)
COMPRESSED = 0x80  # set on a kind whose payload is zlib-compressed
CHUNK_BYTES = 1 << 18
POLL_SECONDS = 0.03
READER_GONE_SECONDS = 300.0

STREAMS = {LOG: "log", METRICS: "output/metrics.jsonl", GPU: "gpu.jsonl"}


def follow(request: Json) -> None:
    """Send what is new in each stream, a HEARTBEAT when quiet, and EXIT or LOST as the last frame.

    EXIT carries exit.json. LOST says that no supervisor lives and none left a record: {known, rebooted}.
    """
    folder = expand(request["folder"])
    offsets = {int(kind): offset for kind, offset in request["offsets"].items()}
    send(HEARTBEAT, 0, b"")
    quiet_since = time.monotonic()
    while True:
        # Read first: what stood in the streams before the end is sent before the end.
        ended = read_json(os.path.join(folder, "exit.json"))
        if sum(forward(folder, kind, offsets) for kind in offsets):
            quiet_since = time.monotonic()
        elif ended:
            return send(EXIT, 0, json.dumps(ended).encode())
        elif time.monotonic() - quiet_since > request["heartbeat_seconds"]:
            if not supervisor_of(folder) and not os.path.exists(os.path.join(folder, "exit.json")):
                return send(LOST, 0, json.dumps(lost(folder)).encode())
            send(HEARTBEAT, 0, b"")
            quiet_since = time.monotonic()
        else:
            time.sleep(POLL_SECONDS)


def forward(folder: str, kind: int, offsets: "dict[int, int]") -> bool:
    """Whether there was something new; a full chunk is sent compressed, since the reader is behind."""
    try:
        with open(os.path.join(folder, STREAMS[kind]), "rb") as file:
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
