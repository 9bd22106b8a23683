"""Requests from stdin, an answer to stdout for each, until stdin ends.

A request is a line of JSON, and `blob_bytes` more bytes where it names them. An answer is a line of JSON behind MARK,
which tells it from whatever a login shell prints first; `follow` answers with frames instead, and is the last.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any, Dict

MARK = b"\x1eUGRO "
MODULE_OF = {
    "probe": "probe", "prepare": "jobs", "start": "jobs", "stop": "jobs", "state": "jobs", "reset": "jobs",
    "make_folder": "jobs",
}  # fmt: skip


class Refusal(Exception):
    """The node cannot do what was asked; `kind` lets the controller tell the cases apart."""

    def __init__(self, kind: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.answer = dict(facts, error=kind, message=message)


def main() -> None:
    """Answer the requests on stdin, or be the supervisor of the folder named on the command line."""
    if sys.argv[1:2] == ["supervise"]:
        from .supervisor import supervise

        return supervise(sys.argv[2])
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    for line in iter(stdin.readline, b""):
        request: Dict[str, Any] = json.loads(line)
        stdout.write(MARK)
        if request["op"] == "follow":
            from .follow import follow

            stdout.flush()
            return follow(request)
        blob = [stdin.read(request.pop("blob_bytes"))] if "blob_bytes" in request else []
        stdout.write(json.dumps(answer(request, *blob)).encode() + b"\n")
        stdout.flush()
    return None


def answer(request: Dict[str, Any], *blob: bytes) -> Dict[str, Any]:
    """What the operation gives, or why it refuses."""
    # Only the module that is needed is imported: a zip has no compiled files, so each import costs.
    module = importlib.import_module("." + MODULE_OF[request["op"]], __package__)
    try:
        given: Dict[str, Any] = getattr(module, request["op"])(request, *blob)
    except Refusal as refusal:
        return refusal.answer
    return given
