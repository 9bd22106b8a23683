"""Requests from stdin, an answer to stdout for each, until stdin ends.

A request is a line of JSON, and `blob_bytes` more bytes where it names them. An answer is a line of JSON behind MARK,
which tells it from whatever a login shell prints first; those of FRAMED answer with frames instead, and are the last.
`build_environment` is the last, too: lines about its progress come before its answer, and signs of life to it on stdin.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from typing import Any, Dict, Generator

from .protocol import MARK, Refusal

MODULE_OF = {
    "probe": "probe", "prepare": "jobs", "start": "jobs", "stop": "jobs", "state": "jobs", "reset": "jobs",
    "make_folder": "jobs", "manifests": "streams", "environment": "environment", "build_environment": "build",
    "clean": "clean",
}  # fmt: skip
# These answer with frames, and are the last request of their process.
FRAMED = {"follow": "streams", "send_files": "copy", "receive_files": "copy"}


def main() -> None:
    """Answer the requests on stdin, or be the supervisor of the folder named on the command line."""
    if sys.argv[1:2] == ["supervise"]:
        from .supervisor import supervise

        return supervise(sys.argv[2])
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    for line in iter(stdin.readline, b""):
        request: Dict[str, Any] = json.loads(line)
        stdout.write(MARK)
        if request["op"] in FRAMED:
            stdout.flush()
            module = importlib.import_module("." + FRAMED[request["op"]], __package__)
            return getattr(module, request["op"])(request, stdin)  # type: ignore[no-any-return]
        blob = (
            [stdin.read(request.pop("blob_bytes"))] if "blob_bytes" in request else []
        )
        with contextlib.closing(answers(request, *blob)) as given:
            for line in given:
                # The names of files need be no text: half a surrogate pair would make all of it unreadable.
                stdout.write(
                    json.dumps(line, ensure_ascii=False).encode("utf-8", "replace")
                    + b"\n"
                )
                stdout.flush()
    return None


def answers(
    request: Dict[str, Any], *blob: bytes
) -> Generator[Dict[str, Any], None, None]:
    """What the operation gives, or why it refuses. One that takes long tells of its progress before."""
    # Only the module that is needed is imported: a zip has no compiled files, so each import costs.
    module = importlib.import_module("." + MODULE_OF[request["op"]], __package__)
    try:
        given = getattr(module, request["op"])(request, *blob)
        if isinstance(given, dict):
            yield given
        else:
            yield from given
    except Refusal as refusal:
        yield refusal.answer
