"""Requests to the program `node/` on a host, and its answers."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ..codec import UNREADABLE
from ..errors import (
    HostError,
    HostUnreachable,
    NodeFault,
    NodesBusy,
)
from ..node.protocol import MARK
from . import answers
from .host import ANSWER_LIMIT_BYTES, Host, Stream, answer_too_long

# What the remote login shell runs. The zip lives in memory only (memfd), so nothing is left on the node.
BOOTSTRAP = (
    "import os,sys;sys.version_info<(3,8)and sys.exit('Python %d.%d'%sys.version_info[:2]+', and UGRO needs 3.8');"
    "f=os.memfd_create('ugro');os.write(f,sys.stdin.buffer.read(int(sys.argv[1])));"
    "sys.path.insert(0,'/proc/self/fd/%d'%f);del sys.argv[1];from node.main import main;main()"
)
TOO_OLD = ", and UGRO needs "
SIGN_OF_LIFE_SECONDS = 1.0
PREFACE_SHOWN_BYTES = 200
PREFACE_LIMIT_BYTES = 1 << 16  # what a talkative login shell may print before the answer


@cache
def node_zip() -> bytes:
    """The folder `node/` as a program: `python node.zip`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", "from node.main import main\nmain()\n")
        for path in sorted((Path(__file__).parents[1] / "node").glob("*.py")):
            archive.write(path, f"node/{path.name}")
    return packed.getvalue()


def ask(
    host: Host, operation: str, *, blob: bytes = b"", timeout_seconds: float = 30.0, **request: Any
) -> dict[str, Any]:
    """The node's answer to one request; raises HostError, NodesBusy or NodeFault."""
    argv, program = _program(host)
    try:
        said = host.run(argv, program + _request(operation, request, blob), timeout_seconds)
    except NodeFault as error:
        if TOO_OLD not in error.what:
            raise
        name, python = host.node.name, host.node.python
        fix = f"name a newer one as `python` of {name} in the cluster file"
        raise NodeFault(name, f"{python} is {error.what} or newer there", fix) from error
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
                if time.monotonic() > deadline:  # it sends a byte now and then
                    raise HostUnreachable(
                        self.host.node.name, f"{operation}: no whole answer in {timeout_seconds:g} s"
                    )
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

    def hand_over(self) -> Stream | None:
        """The process on the node, for whoever goes on with it; None where there is none."""
        stream, self._stream = self._stream, None
        return stream

    def close(self) -> None:
        """End the process on the node."""
        if self._stream:
            self._stream.close()
            self._stream = None


def _answer(host: Host, operation: str, said: bytes, *, judged: bool = True) -> dict[str, Any]:
    try:
        if MARK not in said:
            raise ValueError("no answer")
        answer = answers.decoded(said.rpartition(MARK)[2])
    except UNREADABLE as error:
        raise NodeFault(host.node.name, f"{operation}: its answer cannot be read: {said[-200:]!r}") from error
    try:
        answers.checked(operation, answer)
    except UNREADABLE as error:
        words = answers.shortened(error)
        raise NodeFault(
            host.node.name, f"{operation}: its answer is none of a node of UGRO's: {words}"
        ) from error
    if operation == "probe":  # what the login shell printed, if it did, is a fact about the node, too
        answer["preface"] = said.rpartition(MARK)[0][-PREFACE_SHOWN_BYTES:].decode("utf-8", "replace")
    return _judged(host, operation, answer) if judged else answer


def _judged(host: Host, operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("error") == "busy" and operation in answers.MAY_BE_BUSY:
        raise NodesBusy(f"{host.node.name}: {describe_holder(answer.get('holder'))}")
    if "error" in answer:
        raise NodeFault(host.node.name, f"{operation}: {answers.shortened(answer.get('message'))}")
    return answer


def describe_holder(holder: Any) -> str:
    """Who has a node, in words."""
    if not isinstance(holder, dict) or not holder.get("job"):
        return "held by another job"
    words = f"held by job {answers.shortened(holder['job'], 100)}"
    if holder.get("controller"):
        words += f" of {answers.shortened(holder['controller'], 300)}"
    return words + (f" (pid {answers.shortened(holder['pid'], 20)} there)" if holder.get("pid") else "")


def attend(
    host: Host,
    operation: str,
    tell: Callable[[dict[str, Any]], None],
    *,
    silence_seconds: float,
    blob: bytes = b"",
    **request: Any,
) -> dict[str, Any]:
    """The answer to a request that takes long, also one with the error "failed"; `tell` gets the progress before it.

    Node and controller give each other signs of life; the node ends what it is at where there are none for
    `silence_seconds`. Raises HostError then, and as `ask` does.
    """
    argv, program = _program(host)
    stream = host.stream(argv, None)
    try:
        stream.write(program + _request(operation, {**request, "silence_seconds": silence_seconds}, blob))
        said, alive = _after_mark(host, stream, silence_seconds), time.monotonic()
        while True:
            while b"\n" in said:
                line, _, said = said.partition(b"\n")
                answer = _answer(host, operation, MARK + line, judged=False)
                if "progress" not in answer:
                    return answer if answer.get("error") == "failed" else _judged(host, operation, answer)
                tell(answer["progress"])
            received = stream.read(silence_seconds)
            if not received:
                raise HostUnreachable(host.node.name, f"{operation}: it broke off")
            said += received
            if len(said) > ANSWER_LIMIT_BYTES:
                raise answer_too_long(host.node, argv)
            if time.monotonic() - alive >= SIGN_OF_LIFE_SECONDS:
                stream.write(b"\n")
                alive = time.monotonic()
    except HostError:
        host.close()
        raise
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


class Talks:
    """A conversation with each node, one process there for all requests of a launch and for the follow."""

    def __init__(self) -> None:
        self._talks: dict[str, Conversation] = {}

    def __getitem__(self, host: Host) -> Conversation:
        return self._talks.setdefault(host.node.name, Conversation(host))

    def ask(self, host: Host, operation: str, **request: Any) -> dict[str, Any]:
        """See `remote.ask`."""
        return self[host].ask(operation, **request)

    def close(self) -> None:
        """End those that nobody has taken over."""
        for talk in self._talks.values():
            talk.close()
        self._talks.clear()


def _after_mark(host: Host, stream: Stream, silence_seconds: float) -> bytearray:
    buffer, deadline = bytearray(), time.monotonic() + silence_seconds
    while MARK not in buffer:
        received = stream.read(silence_seconds)
        if not received or len(buffer) > PREFACE_LIMIT_BYTES or time.monotonic() > deadline:
            raise NodeFault(host.node.name, f"it does not follow: {bytes(buffer[-200:])!r}")
        buffer += received
    return buffer[buffer.index(MARK) + len(MARK) :]
