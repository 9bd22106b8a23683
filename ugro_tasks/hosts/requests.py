"""Requests to the program `node/` on a host, and its answers."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from ..codec import UNREADABLE, convert
from ..errors import (
    HostError,
    HostUnreachable,
    NodeFault,
    NodesBusy,
)
from ..node.protocol import MARK
from . import answers
from .answers import BuildAnswer, BuildFailed, BuildProgress
from .host import ANSWER_LIMIT_BYTES, Host, Stream, answer_too_long
from .operations import Build, Probe, Request

A = TypeVar("A")

# What the remote login shell runs. The zip lives in memory only (memfd), so nothing is left on the node.
BOOTSTRAP = (
    "import os,sys;sys.version_info<(3,8)and sys.exit('Python %d.%d'%sys.version_info[:2]+', and UGRO needs 3.8');"
    "f=os.memfd_create('ugro');os.write(f,sys.stdin.buffer.read(int(sys.argv[1])));"
    "sys.path.insert(0,'/proc/self/fd/%d'%f);del sys.argv[1];from node.main import main;main()"
)
TOO_OLD = ", and UGRO needs "
SIGN_OF_LIFE_SECONDS = 1.0
PREFACE_SHOWN_BYTES = 200
# What a talkative login shell may print before the answer.
PREFACE_LIMIT_BYTES = 1 << 16


@cache
def node_zip() -> bytes:
    """The folder `node/` as a program: `python node.zip`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", "from node.main import main\nmain()\n")
        for path in sorted((Path(__file__).parents[1] / "node").glob("*.py")):
            archive.write(path, f"node/{path.name}")
    return packed.getvalue()


class Asking(Protocol):
    """A way to ask a node: `ask`, or a conversation that goes on."""

    def __call__(
        self,
        host: Host,
        request: Request[A],
        *,
        blob: bytes = b"",
        timeout_seconds: float = 30.0,
    ) -> A:
        """See `ask`."""


def ask(
    host: Host, request: Request[A], *, blob: bytes = b"", timeout_seconds: float = 30.0
) -> A:
    """Ask a node for one thing, and give its answer; raises HostError, NodesBusy or NodeFault.

    `blob` are bytes that follow the request.
    """
    argv, program = node_program(host)
    try:
        said = host.run(argv, program + _asked(request, blob), timeout_seconds)
    except NodeFault as error:
        if TOO_OLD not in error.what:
            raise
        name, python = host.node.name, host.node.python
        fix = f"name a newer one as `python` of {name} in the cluster file"
        raise NodeFault(
            name, f"{python} is {error.what} or newer there", fix
        ) from error
    return _answer(host, request, said)


class Conversation:
    """Several requests to one process on a node, as `ask` would make each to one of its own.

    A launch is three requests in a row, and to start a Python for each takes longer than the answer.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._stream: Stream | None = None

    def ask(
        self, request: Request[A], *, blob: bytes = b"", timeout_seconds: float = 30.0
    ) -> A:
        """Ask as `ask` does. After an error the next request begins anew."""
        deadline = time.monotonic() + timeout_seconds
        try:
            if self._stream is None:
                argv, program = node_program(self.host)
                self._stream = self.host.stream(argv, None)
                self._stream.write(program)
            self._stream.write(_asked(request, blob))
            said = bytearray()
            while MARK not in said or not said.endswith(b"\n"):
                received = self._stream.read(max(0.01, deadline - time.monotonic()))
                if time.monotonic() > deadline:  # it sends a byte now and then
                    raise HostUnreachable(
                        self.host.node.name,
                        f"{request.operation}: no whole answer in {timeout_seconds:g} s",
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
            return ask(self.host, request, blob=blob, timeout_seconds=timeout_seconds)
        return _answer(self.host, request, bytes(said))

    def hand_over(self) -> Stream | None:
        """The process on the node, for whoever goes on with it; None where there is none."""
        stream, self._stream = self._stream, None
        return stream

    def close(self) -> None:
        """End the process on the node."""
        if self._stream:
            self._stream.close()
            self._stream = None


def _answer(host: Host, request: Request[A], said: bytes) -> A:
    told = _told(host, request, said)
    if "error" in told:
        raise _refused(host, request, told)
    if isinstance(request, Probe):
        # What the login shell printed, if it did, is a fact about the node, too.
        told["preface"] = said.rpartition(MARK)[0][-PREFACE_SHOWN_BYTES:].decode(
            "utf-8", "replace"
        )
    answer: A = _parsed(host, request, request.answer, told)
    return answer


def _told(host: Host, request: Request[Any], said: bytes) -> dict[str, Any]:
    """Find the answer behind whatever a login shell printed; raises NodeFault where there is none."""
    try:
        if MARK not in said:
            raise ValueError("no answer")
        return answers.decoded(said.rpartition(MARK)[2])
    except UNREADABLE as error:
        raise NodeFault(
            host.node.name,
            f"{request.operation}: its answer cannot be read: {said[-200:]!r}",
        ) from error


def _parsed(host: Host, request: Request[Any], kind: type[A], told: object) -> A:
    try:
        return convert(kind, told)
    except UNREADABLE as error:
        words = answers.shortened(error)
        raise NodeFault(
            host.node.name,
            f"{request.operation}: its answer is none of a node of UGRO's: {words}",
        ) from error


def _refused(
    host: Host, request: Request[Any], told: dict[str, Any]
) -> NodesBusy | NodeFault:
    """Say why the node did not do what it was asked for."""
    if told["error"] == "busy" and request.may_be_busy:
        holder = answers.holder_of(told)
        return NodesBusy(f"{host.node.name}: {answers.describe_holder(holder)}")
    return NodeFault(
        host.node.name, f"{request.operation}: {answers.shortened(told.get('message'))}"
    )


def ask_with_progress(
    host: Host,
    request: Build,
    tell: Callable[[BuildProgress], None],
    *,
    blob: bytes = b"",
) -> BuildAnswer | BuildFailed:
    """Ask for a build, which takes long; `tell` gets the progress before the answer.

    Node and controller give each other signs of life; the node ends what it is at where there are none for
    `silence_seconds`. Raises HostError then, and as `ask` does.
    """
    argv, program = node_program(host)
    stream = host.stream(argv, None)
    try:
        stream.write(program + _asked(request, blob))
        said = after_mark(host, stream, request.silence_seconds)
        alive = time.monotonic()
        while True:
            while b"\n" in said:
                line, _, said = said.partition(b"\n")
                answer = _of_build(host, request, bytes(MARK + line))
                if not isinstance(answer, BuildProgress):
                    return answer
                tell(answer)
            received = stream.read(request.silence_seconds)
            if not received:
                raise HostUnreachable(
                    host.node.name, f"{request.operation}: it broke off"
                )
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


def _of_build(
    host: Host, request: Build, said: bytes
) -> BuildAnswer | BuildFailed | BuildProgress:
    told = _told(host, request, said)
    if "progress" in told:
        return _parsed(host, request, BuildProgress, told["progress"])
    if told.get("error") == "failed":
        return _parsed(host, request, BuildFailed, told)
    return _answer(host, request, said)


def node_program(host: Host) -> tuple[list[str], bytes]:
    """Give the argv of the process on the node that answers requests, and what its stdin begins with."""
    packed = node_zip()
    python = host.node.python
    # -E and -S: nothing of the node's own Python set-up is wanted, and it starts in half the time.
    argv = [python, "-ES", "-c", BOOTSTRAP, str(len(packed))]
    if python.startswith("~/"):
        # Only the remote shell knows its home; the path itself stays quoted.
        argv = ["sh", "-c", 'exec "$HOME/$0" "$@"', python[2:], *argv[1:]]
    return argv, packed


def _asked(request: Request[Any], blob: bytes) -> bytes:
    """Write a request as it goes to a node."""
    fields = msgspec.to_builtins(request)
    if blob:
        fields["blob_bytes"] = len(blob)
    return json.dumps(fields).encode() + b"\n" + blob


class Talks:
    """A conversation with each node, one process there for all requests of a launch and for the follow."""

    def __init__(self) -> None:
        self._talks: dict[str, Conversation] = {}

    def __getitem__(self, host: Host) -> Conversation:
        return self._talks.setdefault(host.node.name, Conversation(host))

    def ask(
        self,
        host: Host,
        request: Request[A],
        *,
        blob: bytes = b"",
        timeout_seconds: float = 30.0,
    ) -> A:
        """Ask as `ask` does."""
        return self[host].ask(request, blob=blob, timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """End those that nobody has taken over."""
        for talk in self._talks.values():
            talk.close()
        self._talks.clear()


def after_mark(host: Host, stream: Stream, silence_seconds: float) -> bytearray:
    """Read until the answer begins and give what has come of it; raises NodeFault where none begins."""
    buffer, deadline = bytearray(), time.monotonic() + silence_seconds
    while MARK not in buffer:
        received = stream.read(silence_seconds)
        if (
            not received
            or len(buffer) > PREFACE_LIMIT_BYTES
            or time.monotonic() > deadline
        ):
            raise NodeFault(
                host.node.name, f"it does not follow: {bytes(buffer[-200:])!r}"
            )
        buffer += received
    return buffer[buffer.index(MARK) + len(MARK) :]
