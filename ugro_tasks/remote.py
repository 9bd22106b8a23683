"""Speaking with `node/`: the controller's end of its requests, answers and frames."""

from __future__ import annotations

import io
import json
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .errors import HostError, NodeFault, NodesBusy
from .hosts import Host, Stream
from .node.follow import CHUNK_BYTES, COMPRESSED, FRAME
from .node.main import MARK
from .ssh import ANSWER_LIMIT_BYTES

# What the remote login shell runs. The zip lives in memory only (memfd), so nothing is left on the node.
BOOTSTRAP = (
    "import os,sys;f=os.memfd_create('ugro');os.write(f,sys.stdin.buffer.read(int(sys.argv[1])));"
    "sys.path.insert(0,'/proc/self/fd/%d'%f);del sys.argv[1];from node.main import main;main()"
)
PREFACE_LIMIT_BYTES = 1 << 16  # what a talkative login shell may print before the answer


@cache
def node_zip() -> bytes:
    """The folder `node/` as a program: `python node.zip`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", "from node.main import main\nmain()\n")
        for path in sorted((Path(__file__).parent / "node").glob("*.py")):
            archive.write(path, f"node/{path.name}")
    return packed.getvalue()


def ask(
    host: Host, operation: str, *, blob: bytes = b"", timeout_seconds: float = 30.0, **request: Any
) -> dict[str, Any]:
    """The node's answer to one request; raises HostError, NodesBusy or NodeFault."""
    argv, program = _program(host)
    said = host.run(argv, program + _request(operation, request, blob), timeout_seconds)
    return _answer(host, operation, said)


class Conversation:
    """Several requests to one process on a node, as `ask` would make each to one of its own.

    A launch is three requests in a row, and to start a Python for each takes longer than the answer.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._stream: Stream | None = None

    def ask(
        self, operation: str, *, blob: bytes = b"", timeout_seconds: float = 30.0, **request: Any
    ) -> dict[str, Any]:
        """See `ask`. After an error the next request begins anew."""
        deadline = time.monotonic() + timeout_seconds
        try:
            if self._stream is None:
                argv, program = _program(self.host)
                self._stream = self.host.stream(argv, None)
                self._stream.write(program)
            self._stream.write(_request(operation, request, blob))
            said = bytearray()
            while MARK not in said or not said.endswith(b"\n"):
                received = self._stream.read(max(0.01, deadline - time.monotonic()))
                if not received or len(said) > ANSWER_LIMIT_BYTES:
                    break
                said += received
        except HostError:
            self.close()
            self.host.close()
            raise
        if MARK not in said or not said.endswith(b"\n"):
            # It did not start, or broke down. `ask` is told why: it reads the exit code and what stands on stderr.
            self.close()
            return ask(self.host, operation, blob=blob, timeout_seconds=timeout_seconds, **request)
        return _answer(self.host, operation, bytes(said))

    def close(self) -> None:
        """End the process on the node."""
        if self._stream:
            self._stream.close()
            self._stream = None


def _answer(host: Host, operation: str, said: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(said.rpartition(MARK)[2])
        if MARK not in said or not isinstance(answer, dict):
            raise ValueError("no answer")
    except (ValueError, RecursionError) as error:
        raise NodeFault(host.node.name, f"{operation}: its answer cannot be read: {said[-200:]!r}") from error
    if answer.get("error") == "busy":
        raise NodesBusy(f"{host.node.name}: {describe_holder(answer.get('holder'))}")
    if "error" in answer:
        raise NodeFault(host.node.name, f"{operation}: {answer.get('message')}")
    return answer


def describe_holder(holder: Any) -> str:
    """Who has a node, in words."""
    if not isinstance(holder, dict) or not holder.get("job"):
        return "held by another job"
    words = f"held by job {holder['job']}"
    if holder.get("controller"):
        words += f" of {holder['controller']}"
    return words + (f" (pid {holder['pid']} there)" if holder.get("pid") else "")


class Frame(NamedTuple):
    """A piece of a stream: where it begins, and its bytes."""

    kind: int
    offset: int
    payload: bytes


def follow(host: Host, silence_seconds: float, **request: Any) -> Iterator[Frame]:
    """The frames of `node/follow.py`; raises HostError.

    A node that is silent for `silence_seconds` counts as lost; it sends a heartbeat when it has nothing to say.
    """
    argv, program = _program(host)
    stream = host.stream(argv, program + _request("follow", request, b""))
    try:
        buffer = _after_mark(host, stream, silence_seconds)
        while True:
            while len(buffer) >= FRAME.size:
                kind, offset, length = FRAME.unpack_from(buffer)
                if length > 2 * CHUNK_BYTES:
                    raise NodeFault(host.node.name, "it sent a frame that is too large")
                if len(buffer) < FRAME.size + length:
                    break
                payload = bytes(buffer[FRAME.size : FRAME.size + length])
                del buffer[: FRAME.size + length]
                yield Frame(
                    kind & ~COMPRESSED, offset, _unpacked(host, payload) if kind & COMPRESSED else payload
                )
            received = stream.read(silence_seconds)
            if not received:
                raise NodeFault(host.node.name, "its log stream broke off")
            buffer += received
    finally:
        stream.close()


def _program(host: Host) -> tuple[list[str], bytes]:
    """(argv, the beginning of stdin) of the process on the node that answers requests."""
    packed = node_zip()
    python = host.node.python
    # -E and -S: nothing of the node's own Python set-up is wanted, and it starts in half the time.
    argv = [python, "-ES", "-c", BOOTSTRAP, str(len(packed))]
    if python.startswith("~/"):
        # Only the remote shell knows its home; the path itself stays quoted.
        argv = ["sh", "-c", 'exec "$HOME/$0" "$@"', python[2:], *argv[1:]]
    return argv, packed


def _request(operation: str, request: dict[str, Any], blob: bytes) -> bytes:
    sized = {"blob_bytes": len(blob)} if blob else {}
    return json.dumps({**request, **sized, "op": operation}).encode() + b"\n" + blob


def _after_mark(host: Host, stream: Stream, silence_seconds: float) -> bytearray:
    buffer = bytearray()
    while MARK not in buffer:
        received = stream.read(silence_seconds)
        if not received or len(buffer) > PREFACE_LIMIT_BYTES:
            raise NodeFault(host.node.name, f"it does not follow: {bytes(buffer[-200:])!r}")
        buffer += received
    return buffer[buffer.index(MARK) + len(MARK) :]


def _unpacked(host: Host, payload: bytes) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(payload, 2 * CHUNK_BYTES)
    except zlib.error as error:
        raise NodeFault(host.node.name, "it sent a frame that cannot be unpacked") from error
    if not unpacker.eof:
        raise NodeFault(host.node.name, "it sent a frame that is too large, or not whole")
    return unpacked
