"""The frames of a node: the streams of a rank, and files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from ..errors import HostError, NodeFault, StreamFault
from ..node.protocol import CHUNK_BYTES, COMPRESSED, FAULT, FRAME
from .host import Host, Stream
from .requests import Conversation, node_program, read_to_mark


class Frame(NamedTuple):
    """A piece of a stream: its kind, its offset in the stream, and its bytes."""

    kind: int
    offset: int
    payload: bytes


def follow(
    host: Host, silence_seconds: float, talk: Conversation | None = None, **request: Any
) -> Iterator[Frame]:
    """Yield the frames of a rank's streams, sent by `node/streams.py`.

    Raises HostError, and StreamFault in the words of the node.

    A node silent for `silence_seconds` counts as lost; it sends a heartbeat when it has nothing
    else. With `talk`, the process of that conversation is used instead of a new one.
    """
    asked = _encoded("follow", request)
    stream = talk.hand_over() if talk else None
    is_new = stream is None
    if stream is None:
        argv, program = node_program(host)
        stream = host.stream(argv, program + asked)
    try:
        if not is_new:
            stream.write(asked)
        for frame in _frames(host, stream, silence_seconds, "log stream"):
            if frame.kind == FAULT:
                raise StreamFault(
                    host.node.name, frame.payload.decode("utf-8", "replace")
                )
            yield frame
    finally:
        stream.close()


def rest(host: Host, silence_seconds: float, **request: Any) -> Iterator[Frame]:
    """Yield the frames of what a rank's streams have by now, see `node/streams.py`; raises HostError."""
    stream, frames = open_frames(host, "rest", silence_seconds, **request)
    try:
        yield from frames
    finally:
        stream.close()


def open_frames(
    host: Host, operation: str, silence_seconds: float, **request: Any
) -> tuple[Stream, Generator[Frame, None, None]]:
    """Start a request answered by frames; return the stream to write to, and the node's frames."""
    argv, program = node_program(host)
    stream = host.stream(argv, None)
    try:
        stream.write(program + _encoded(operation, request))
    except HostError:
        stream.close()
        raise
    return stream, _frames(host, stream, silence_seconds, "transfer")


def _encoded(operation: str, request: dict[str, Any]) -> bytes:
    """Encode a request for a node."""
    return json.dumps({**request, "op": operation}).encode() + b"\n"


def _frames(
    host: Host, stream: Stream, silence_seconds: float, what: str
) -> Generator[Frame, None, None]:
    """Yield the frames in a stream; raises NodeFault at its end, and for an oversized frame."""
    buffer = read_to_mark(host, stream, silence_seconds)
    while True:
        while len(buffer) >= FRAME.size:
            kind, offset, length = FRAME.unpack_from(buffer)
            if length > 2 * CHUNK_BYTES:
                raise NodeFault(host.node.name, "it sent a frame that is too large")
            end = FRAME.size + length
            if len(buffer) < end:
                break
            payload = bytes(buffer[FRAME.size : end])
            del buffer[:end]
            if kind & COMPRESSED:
                payload = _decompressed(host, payload)
            yield Frame(kind & ~COMPRESSED, offset, payload)
        received = stream.read(silence_seconds)
        if not received:
            raise NodeFault(host.node.name, f"its {what} broke off")
        buffer += received


def _decompressed(host: Host, payload: bytes) -> bytes:
    """Decompress a payload; raises NodeFault if it is damaged, incomplete or oversized."""
    name = host.node.name
    try:
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(payload, 2 * CHUNK_BYTES)
    except zlib.error as error:
        raise NodeFault(name, "it sent a frame that cannot be unpacked") from error
    if not unpacker.eof:
        raise NodeFault(name, "it sent a frame that is too large, or not whole")
    return unpacked
