"""Nodes that answer whatever a test wants, at the seam between a node and everything above."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ugro_tasks.cluster.model import Node
from ugro_tasks.hosts.operations import (
    Build,
    Clean,
    Environment,
    MakeFolder,
    Manifests,
    Prepare,
    Probe,
    Request,
    Reset,
    Start,
    State,
    Stop,
)
from ugro_tasks.node.protocol import MARK

Answering = Callable[[str, dict[str, Any]], bytes]
RECORDED = json.loads(
    (Path(__file__).parents[1] / "unit" / "recordings" / "health.json").read_text()
)
PROCESS = {
    "pid": 7,
    "job": "exp1_20260120_120000",
    "token": "exp1_20260120_120000.c0ffee00:gpu0:node",
    "command": "python",
}
STAMP = {
    "digest": "abcdef0123456789",
    "made_at": 1.0,
    "python": "3.11.7",
    "torch": "2.13.0",
    "cuda": "12.8",
    "manager": "venv",
    "version": None,
}
BUILT = {"there": True, "stamp": STAMP, "program": "/usr/bin/uv", "version": "0.9"}
MODEL = {
    "path": "/models/tiny",
    "config": {
        "hidden_size": 64,
        "layers": 2,
        "heads": 2,
        "vocabulary": 100,
        "tied": True,
        "gated": True,
        "dtype": "float16",
        "quantised_bits": None,
    },
    "weights_bytes": 1_000_000,
}
PROBE = RECORDED["fit"] | {
    "environment": BUILT,
    "model": MODEL,
    "started": 1.0,
    "ended": 2.0,
}
PEERS = {
    "seconds": 4.0,
    "port": 34105,
    "listens": True,
    "reached": {"gpu1": {"ok": True, "tried": 34106}},
    "heard": ["gpu2"],
}
WHOLE: dict[str, dict[str, Any]] = {
    "probe": PROBE
    | {
        "peers": PEERS,
        "jobs": [PROCESS],
        "reach": {"ok": False, "error": "refused", "milliseconds": 1.0},
    },
    "prepare": {"folder": "/x"},
    "start": {"torchrun": {"pid": 7, "start_time": "1", "boot_id": "x"}},
    "stop": {"left": [PROCESS], "exit": {"code": 0}, "seconds": 0.1},
    "state": {
        "known": True,
        "supervised": False,
        "started": True,
        "exit": {"code": 0},
        "processes": [PROCESS],
    },
    "reset": {"ended": [PROCESS], "left": []},
    "make_folder": {"project": "/x"},
    "manifests": {"manifests": ["{}"]},
    "environment": {
        "environment": BUILT,
        "machine": "x86_64",
        "lease": None,
        "jobs": [],
        "torch": PROBE["torch"],
        "disk": PROBE["project"],
        "base": {"path": "/usr/bin/python3", "version": "3.11.7"},
    },
    "clean": {
        "folders": {
            "exp1": {
                "path": "/x",
                "bytes": 1,
                "removed": False,
                "kept": None,
                "streams": {"log": 1},
            }
        },
        "others": ["other"],
    },
}
WHOLE["build_environment"] = WHOLE["environment"] | {
    "made": True,
    "seconds": 1.0,
    "bytes": 1,
    "kept": None,
}
ENVIRONMENT = {"manager": "venv", "name": "default", "folder": "/x", "work": "/x.sync"}
REQUESTS: dict[str, Request[Any]] = {
    "probe": Probe(
        interpreter="python3",
        project="/x",
        slot="node",
        wants_cuda=False,
        role="master",
        address="10.0.0.1",
        master="10.0.0.1",
        port=29500,
        port_seconds=0.0,
        nonce="x",
        environment=ENVIRONMENT,
    ),
    "prepare": Prepare(
        token="a:b:c",
        node="gpu0",
        folder="/x",
        argv=("true",),
        env={},
        node_bytes=0,
        controller="/a",
        hold_seconds=1.0,
    ),
    "start": Start(folder="/x"),
    "stop": Stop(folder="/x", token="a:b:c", grace_seconds=1.0, reason="stop"),
    "state": State(folder="/x", token="a:b:c"),
    "reset": Reset(slot="node", grace_seconds=1.0, by="ada@home"),
    "make_folder": MakeFolder(project="/x"),
    "manifests": Manifests(folder="/x"),
    "environment": Environment(
        environment=ENVIRONMENT, interpreter="python3", python=None, offline=True
    ),
    "clean": Clean(folders=[], remove=False),
}
BUILD = Build(
    environment=ENVIRONMENT,
    interpreter="python3",
    python=None,
    offline=False,
    files={},
    digest="x",
    bad=None,
    slots=["node"],
    token="a:b:c",
    controller="/a",
    silence_seconds=1.0,
)
REQUESTS["build_environment"] = BUILD
FAILED = {
    "error": "failed",
    "message": "m",
    "phase": "installing",
    "tail": "ERROR: no",
    "free_bytes": 1,
    "log": "/x/log",
}
PROGRESS = {
    "progress": {
        "phase": "installing",
        "seconds": 1.0,
        "bytes": 5,
        "line": "Collecting torch",
    }
}
BUSY = {"error": "busy", "message": "held", "holder": PROCESS}
REFUSED = {"error": "unwritable", "message": "/x: Read-only file system"}


def answered(value: Any) -> bytes:
    """As the code of a node would send it."""
    return MARK + json.dumps(value).encode() + b"\n"


class HostileHost:
    """A node that says what `answering(operation, request)` gives, and to whom a folder here belongs, for rsync."""

    round_trip_seconds = 0.001

    def __init__(self, node: Node, answering: Answering) -> None:
        self.node, self.answering = node, answering

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        return self._answer(argv, stdin)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> _Stream:
        return _Stream(self, argv, stdin)

    def _answer(self, argv: Sequence[str], stdin: bytes) -> bytes:
        program = int(argv[-1])
        request = json.loads(stdin[program:].split(b"\n", 1)[0])
        return self.answering(request["op"], request)

    def rsync_remote(self) -> tuple[list[str], str]:
        return [], ""

    def close(self) -> None:
        pass


class _Stream:
    def __init__(
        self, host: HostileHost, argv: Sequence[str], stdin: bytes | None
    ) -> None:
        self.host, self.argv, self.given, self.said = host, argv, stdin or b"", b""
        self.asked = False

    def write(self, data: bytes) -> None:
        self.given += data

    def read(self, silence_seconds: float) -> bytes:
        if not self.asked:
            self.asked = True
            self.said = self.host._answer(self.argv, self.given)
        piece, self.said = self.said[:1000], self.said[1000:]
        return piece

    def close(self) -> None:
        pass
