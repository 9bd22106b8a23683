"""Hosts that contact nothing and say what a test tells them to, on the wire as real ones do."""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ugro_tasks.cluster.model import Node
from ugro_tasks.errors import HostError
from ugro_tasks.hosts.host import Stream
from ugro_tasks.hosts.requests import node_zip
from ugro_tasks.node.protocol import MARK

Answer = dict[str, Any] | HostError
REQUESTS_LIMIT = 50  # more than any test needs: who asks for ever without a pause shall be seen


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

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0) -> bytes:
        """Answer a request."""
        self.requests.append(json.loads(stdin[len(node_zip()) :].partition(b"\n")[0]))
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
