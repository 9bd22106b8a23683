"""Hosts that contact nothing and say what a test tells them to, on the wire as real ones do."""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ugro_tasks.cluster.model import Node
from ugro_tasks.errors import HostError, HostUnreachable
from ugro_tasks.hosts.host import Stream
from ugro_tasks.hosts.requests import node_zip
from ugro_tasks.node.protocol import EXIT, FRAME, HEARTBEAT, LOG, MARK, METRICS

Answer = dict[str, Any] | HostError
HEALTH = Path(__file__).parents[2] / "recordings" / "health.json"
# More than any test needs: who asks for ever without a pause shall be seen.
REQUESTS_LIMIT = 50


class FakeHost:
    """A node that answers each request with the next of its answers, and remembers what it was asked.

    An error among the answers is raised, as by a host that cannot be reached. The last answer is
    given again and again.
    """

    round_trip_seconds = 0.0

    def __init__(self, node: Node, *answers: Answer) -> None:
        self.node = node
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.timeouts: list[float] = []

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        """Answer a request."""
        self.requests.append(request_in(stdin[len(node_zip()) :]))
        assert len(self.requests) <= REQUESTS_LIMIT, "asked for ever"
        self.timeouts.append(timeout_seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, HostError):
            raise answer
        return MARK + json.dumps(answer).encode() + b"\n"

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        """Fail: such a host has no streams."""
        raise NotImplementedError(argv, stdin)

    def rsync_remote(self) -> tuple[list[str], str] | None:
        """Need no rsync."""
        return None

    def close(self) -> None:
        """Have nothing to close."""


WAIT_SECONDS = 30.0


class FakeNode:
    """A node that takes part in a gang: it prepares, starts and stops its rank, and sends its streams.

    A test says how it answers (`refuses`: {operation: the answer or error instead}, `refuses_at`: the same for the
    operation's first, second, ... time), ends its rank
    (`end`, or `exits`: how it ends at once in this attempt and the next ones, None where it runs on), lets it write
    (`write`), and cuts it off (`cut`). `told` has the operations that reached it, in their order; `seen` are facts
    that its probe tells instead of those of a fit node.
    """

    round_trip_seconds = 0.0

    def __init__(self, node: Node) -> None:
        self.node = node
        self.refuses: dict[str, Answer] = {}
        self.refuses_at: dict[tuple[str, int], Answer] = {}
        self.requests: list[dict[str, Any]] = []
        self.left_pids: list[int] = []
        self.delay_seconds: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.changed = threading.Condition()
        self.is_cut = False
        self.exits: list[dict[str, Any] | None] = []
        self.exit: dict[str, Any] | None = None
        self.seen: dict[str, Any] = {}
        self.streams = {LOG: b"", METRICS: b""}
        self.runs = False
        # The folder of the attempt it was told of last, and whether that was started: once at most.
        self.folder = ""
        self._started = False

    @property
    def told(self) -> list[str]:
        """Name the operations that reached it."""
        return [request["op"] for request in self.requests]

    def last(self, operation: str) -> dict[str, Any]:
        """Give the last request of this kind."""
        return [request for request in self.requests if request["op"] == operation][-1]

    def end(self, **record: Any) -> None:
        """End the rank with this exit record."""
        with self.changed:
            self.exit = self.exit or record
            self.runs = False
            self.changed.notify_all()

    def write(self, kind: int, data: bytes) -> None:
        """Let the rank write into one of its streams."""
        with self.changed:
            self.streams[kind] += data
            self.changed.notify_all()

    def cut(self) -> None:
        """Cut the node off: what is on its way breaks off, and nothing comes through."""
        with self.changed:
            self.is_cut = True
            self.changed.notify_all()

    def mend(self) -> None:
        """Let it be reached again."""
        with self.changed:
            self.is_cut = False

    def answer(self, request: dict[str, Any]) -> bytes:
        """Do what a request asks for, and give the answer as it comes over the wire."""
        if self.is_cut:
            raise self.away()
        operation = request["op"]
        self.requests.append(request)
        self.began[operation] = time.monotonic()
        time.sleep(self.delay_seconds.get(operation, 0.0))
        refused = self.refuses_at.get((operation, self.told.count(operation)))
        answer = refused or self.refuses.get(operation) or self._do(operation, request)
        if isinstance(answer, HostError):
            raise answer
        return MARK + json.dumps(answer).encode() + b"\n"

    def _do(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        if operation == "probe":
            return self.facts()
        if operation == "manifests":
            return {"manifests": []}
        if operation == "prepare" and request["folder"] != self.folder:
            self.folder = request["folder"]
            self._started = False
            self.exit = self.exit if self.runs else None
        if operation == "start" and not self._started:
            self._started = self.runs = True
            record = self.exits.pop(0) if self.exits else None
            if record:
                self.end(**record)
        if operation != "stop":
            return {"ok": True}
        self.end(code=None, signal=15, stopped=request["reason"])
        left = [
            {"pid": pid, "job": "exp1", "token": "t", "command": "python"}
            for pid in self.left_pids
        ]
        return {"left": left, "exit": {"started_at": 1.0} if self._started else None}

    def facts(self) -> dict[str, Any]:
        """Give what a fit node tells of itself, as recorded from one."""
        told: dict[str, Any] = json.loads(HEALTH.read_text())["fit"]
        told["interfaces"]["eth0"] = {"addresses": [self.node.address], "mtu": 1500}
        told["home"]["identity"] = f"machine {self.node.rank}"
        told["started"] = told["ended"] = time.time()
        return told | self.seen

    def away(self) -> HostUnreachable:
        """Say what is met by whoever wants something of it while it is cut off."""
        return HostUnreachable(self.node.name, "no route to it")

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        """Answer one request."""
        return self.answer(request_in(stdin[len(node_zip()) :]))

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        """Answer one request after the other, or send the rank's streams."""
        if self.is_cut:
            raise self.away()
        stream = FakeStream(self)
        if stdin:
            stream.write(stdin)
        return stream

    def rsync_remote(self) -> tuple[list[str], str] | None:
        """Need no rsync."""
        return None

    def close(self) -> None:
        """Have nothing to close."""


class FakeStream:
    """A process on a fake node: what it sends, and how it ends."""

    def __init__(self, host: FakeNode) -> None:
        self.host = host
        self._sent = b""
        # {kind: how much of the stream was sent}, once it follows.
        self._offsets: dict[int, int] = {}
        self._follows = False
        self._closed = False

    def write(self, data: bytes) -> None:
        """Take the program, or a request."""
        said = data.removeprefix(node_zip())
        if not said:
            return
        request = request_in(said)
        if request["op"] != "follow":
            self._sent += self.host.answer(request)
            return
        self._follows = True
        self._offsets = {int(kind): at for kind, at in request["offsets"].items()}
        self._sent += MARK + FRAME.pack(HEARTBEAT, 0, 0)

    def read(self, silence_seconds: float) -> bytes:
        """Give what was sent; of a rank that is followed, wait for its end."""
        with self.host.changed:
            assert self.host.changed.wait_for(
                self._has_more, min(silence_seconds, WAIT_SECONDS)
            )
            if self._closed:
                return b""
            if self.host.is_cut:
                raise self.host.away()
            self._sent += self._frames()
            if not self._sent:
                record = json.dumps(self.host.exit).encode()
                return FRAME.pack(EXIT, 0, len(record)) + record
            sent, self._sent = self._sent, b""
            return sent

    def _frames(self) -> bytes:
        """Give what was written to the streams since."""
        frames = b""
        for kind, written in self.host.streams.items():
            at = self._offsets.get(kind)
            if at is not None and at < len(written):
                frames += FRAME.pack(kind, at, len(written) - at) + written[at:]
                self._offsets[kind] = len(written)
        return frames

    def _has_more(self) -> bool:
        ended = self._follows and self.host.exit is not None
        written = any(
            self._offsets.get(kind, len(data)) < len(data)
            for kind, data in self.host.streams.items()
        )
        more = bool(self._sent) or written or ended
        return more or self.host.is_cut or self._closed

    def close(self) -> None:
        """End it."""
        with self.host.changed:
            self._closed = True
            self.host.changed.notify_all()


def request_in(said: bytes) -> dict[str, Any]:
    """Read the request in what was written to a node."""
    request: dict[str, Any] = json.loads(said.partition(b"\n")[0])
    return request
