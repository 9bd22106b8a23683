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

# Run by the remote login shell; not every one takes a line feed within quotes. The zip is in memory only, or where that
# is refused in a file without a name, so nothing is left on the node.
BOOTSTRAP = (
    "import os,sys;sys.version_info<(3,8)and sys.exit('Python %d.%d'%sys.version_info[:2]+', and UGRO needs 3.8');"
    r"""exec('try:f=os.memfd_create("ugro")\nexcept(AttributeError,OSError):"""
    "import tempfile;kept=tempfile.TemporaryFile();f=kept.fileno()');"
    "os.write(f,sys.stdin.buffer.read(int(sys.argv[1])));"
    "sys.path.insert(0,'/proc/self/fd/%d'%f);del sys.argv[1];from node.main import main;main()"
)
TOO_OLD = ", and UGRO needs "
SIGN_OF_LIFE_SECONDS = 1.0
PREFACE_SHOWN_BYTES = 200
# Of a talkative login shell's output before the answer.
PREFACE_LIMIT_BYTES = 1 << 16


@cache
def node_zip() -> bytes:
    """Pack the folder `node/` as a program for `python node.zip`."""
    folder = Path(__file__).parents[1] / "node"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", "from node.main import main\nmain()\n")
        for path in sorted(folder.glob("*.py")):
            archive.write(path, f"node/{path.name}")
    return packed.getvalue()


class Asking(Protocol):
    """The signature shared by `ask` and a conversation's `ask`."""

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
    """Send one request to a node and return its answer.

    `blob` is data following the request. Raises HostError, NodesBusy or NodeFault.
    """
    argv, program = node_program(host)
    try:
        said = host.run(argv, program + _encoded(request, blob), timeout_seconds)
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
    """Several requests to one process on a node; `ask` starts a process for each.

    A launch is three requests in a row, and starting a Python for each takes longer than the
    answer.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._stream: Stream | None = None

    def ask(
        self, request: Request[A], *, blob: bytes = b"", timeout_seconds: float = 30.0
    ) -> A:
        """Ask as `ask` does; after an error, the next request starts a new process."""
        deadline = time.monotonic() + timeout_seconds
        late = f"{request.operation}: no whole answer in {timeout_seconds:g} s"
        try:
            stream = self._open()
            stream.write(_encoded(request, blob))
            said = self._read_answer(stream, deadline, late)
        except HostError:
            self.close()
            self.host.close()
            raise
        if not _is_whole(said):
            # The process did not start, or died. `ask` finds out why: it reads exit code and stderr.
            self.close()
            return ask(self.host, request, blob=blob, timeout_seconds=timeout_seconds)
        return _answer(self.host, request, bytes(said))

    def _open(self) -> Stream:
        """Return the process on the node, started if there is none."""
        if self._stream is None:
            argv, program = node_program(self.host)
            self._stream = self.host.stream(argv, None)
            self._stream.write(program)
        return self._stream

    def _read_answer(self, stream: Stream, deadline: float, late: str) -> bytearray:
        """Read a line behind MARK, or less if the process ends before.

        Raises HostUnreachable with the message `late` after the deadline.
        """
        said = bytearray()
        while not _is_whole(said):
            received = stream.read(max(0.01, deadline - time.monotonic()))
            # Checked here too: a node may send a byte now and then.
            if time.monotonic() > deadline:
                raise HostUnreachable(self.host.node.name, late)
            if not received or len(said) > ANSWER_LIMIT_BYTES:
                break
            said += received
        return said

    def hand_over(self) -> Stream | None:
        """Return the process on the node and give it up; None if there is none."""
        stream = self._stream
        self._stream = None
        return stream

    def close(self) -> None:
        """End the process on the node."""
        if self._stream:
            self._stream.close()
            self._stream = None


def _is_whole(said: bytearray) -> bool:
    return MARK in said and said.endswith(b"\n")


def _answer(host: Host, request: Request[A], said: bytes) -> A:
    """Return the typed answer in a node's output; raises its refusal as an error."""
    told = _decode_answer(host, request, said)
    if "error" in told:
        raise _refusal(host, request, told)
    if isinstance(request, Probe):
        # Output of the login shell is a fact about the node, too.
        preface = said.rpartition(MARK)[0]
        shown = preface[-PREFACE_SHOWN_BYTES:]
        told["preface"] = shown.decode("utf-8", "replace")
    answer: A = _converted(host, request, request.answer, told)
    return answer


def _decode_answer(host: Host, request: Request[Any], said: bytes) -> dict[str, Any]:
    """Decode the answer after any output of a login shell; raises NodeFault if there is none."""
    try:
        if MARK not in said:
            raise ValueError("no answer")
        return answers.decode_object(said.rpartition(MARK)[2])
    except UNREADABLE as error:
        what = f"{request.operation}: its answer cannot be read: {said[-200:]!r}"
        raise NodeFault(host.node.name, what) from error


def _converted(host: Host, request: Request[Any], kind: type[A], told: object) -> A:
    """Convert plain data to an answer of type `kind`; raises NodeFault if it does not fit."""
    try:
        return convert(kind, told)
    except UNREADABLE as error:
        words = answers.shortened(error)
        what = f"{request.operation}: its answer is none of a node of UGRO's: {words}"
        raise NodeFault(host.node.name, what) from error


def _refusal(
    host: Host, request: Request[Any], told: dict[str, Any]
) -> NodesBusy | NodeFault:
    """Make the error for a refused request."""
    name = host.node.name
    if told["error"] == "busy" and request.may_be_busy:
        holder = answers.describe_holder(answers.holder_of(told))
        return NodesBusy(f"{name}: {holder}")
    message = answers.shortened(told.get("message"))
    return NodeFault(name, f"{request.operation}: {message}")


def ask_with_progress(
    host: Host,
    request: Build,
    tell: Callable[[BuildProgress], None],
    *,
    blob: bytes = b"",
) -> BuildAnswer | BuildFailed:
    """Ask for a build, which takes long; `tell` receives the progress before the answer.

    Node and controller send each other signs of life. The node aborts the build after
    `silence_seconds` without one. Raises HostError for a silent node, and as `ask` does.
    """
    argv, program = node_program(host)
    stream = host.stream(argv, None)
    try:
        stream.write(program + _encoded(request, blob))
        said = read_to_mark(host, stream, request.silence_seconds)
        alive = time.monotonic()
        while True:
            while b"\n" in said:
                line, _, said = said.partition(b"\n")
                answer = _line_of_build(host, request, bytes(MARK + line))
                if not isinstance(answer, BuildProgress):
                    return answer
                tell(answer)
            received = stream.read(request.silence_seconds)
            if not received:
                what = f"{request.operation}: it broke off"
                raise HostUnreachable(host.node.name, what)
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


def _line_of_build(
    host: Host, request: Build, said: bytes
) -> BuildAnswer | BuildFailed | BuildProgress:
    """Convert one line of a build's output: progress, failure or answer."""
    told = _decode_answer(host, request, said)
    if "progress" in told:
        return _converted(host, request, BuildProgress, told["progress"])
    if told.get("error") == "failed":
        return _converted(host, request, BuildFailed, told)
    return _answer(host, request, said)


def node_program(host: Host) -> tuple[list[str], bytes]:
    """Return the argv of the node's process, and the bytes its stdin must begin with."""
    packed = node_zip()
    python = host.node.python
    # -E and -S ignore the node's own Python set-up and halve the start.
    argv = [python, "-ES", "-c", BOOTSTRAP, str(len(packed))]
    if python.startswith("~/"):
        # Only the remote shell knows its home; the path itself stays quoted.
        argv = ["sh", "-c", 'exec "$HOME/$0" "$@"', python[2:], *argv[1:]]
    return argv, packed


def _encoded(request: Request[Any], blob: bytes) -> bytes:
    """Encode a request for a node."""
    fields = msgspec.to_builtins(request)
    if blob:
        fields["blob_bytes"] = len(blob)
    line = json.dumps(fields).encode()
    return line + b"\n" + blob


class Talks:
    """One conversation per node, used for all requests of a launch and for following it."""

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
        """End all conversations except those handed over."""
        for talk in self._talks.values():
            talk.close()
        self._talks.clear()


def read_to_mark(host: Host, stream: Stream, silence_seconds: float) -> bytearray:
    """Read up to the start of the answer and return the bytes after it.

    Raises NodeFault if no answer starts.
    """
    buffer = bytearray()
    deadline = time.monotonic() + silence_seconds
    while MARK not in buffer:
        received = stream.read(silence_seconds)
        has_ended = not received
        is_too_long = len(buffer) > PREFACE_LIMIT_BYTES
        is_late = time.monotonic() > deadline
        if has_ended or is_too_long or is_late:
            last = bytes(buffer[-200:])
            raise NodeFault(host.node.name, f"it does not follow: {last!r}")
        buffer += received
    _, _, rest = buffer.partition(MARK)
    return rest
