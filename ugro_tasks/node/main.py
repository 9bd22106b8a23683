"""One request from stdin, one answer to stdout.

The request is a line of JSON, and `blob_bytes` more bytes where it names them. The answer is a line of JSON behind
MARK, which tells it from whatever a login shell prints first; `follow` answers with frames instead.
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
    """Answer the request on stdin, or be the supervisor of the folder named on the command line."""
    if sys.argv[1:2] == ["supervise"]:
        from .supervisor import supervise

        return supervise(sys.argv[2])
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    request: Dict[str, Any] = json.loads(stdin.readline())
    operation = request["op"]
    stdout.write(MARK)
    if operation == "follow":
        from .follow import follow

        stdout.flush()
        return follow(request)
    blob = [stdin.read(request.pop("blob_bytes"))] if "blob_bytes" in request else []
    # Only the module that is needed is imported: a zip has no compiled files, so each import costs.
    module = importlib.import_module("." + MODULE_OF[operation], __package__)
    try:
        answer = getattr(module, operation)(request, *blob)
    except Refusal as refusal:
        answer = refusal.answer
    stdout.write(json.dumps(answer).encode() + b"\n")
    return None
