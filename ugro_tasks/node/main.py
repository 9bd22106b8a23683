"""The main loop: requests from stdin, an answer to stdout for each, until stdin ends.

A request is a line of JSON, followed by `blob_bytes` bytes if it has this key. An answer is MARK
and a line of JSON; MARK separates it from output of the login shell. The requests in FRAMED are
answered by frames instead, and are the last of their process. `build_environment` is also the last
one: lines about its progress precede its answer, and the controller sends signs of life on stdin.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from typing import Any, Callable, Dict, Generator

from .protocol import MARK, Refusal

# {operation: its module}; the function has the operation's name.
MODULE_OF = {
    "probe": "probe",
    "prepare": "jobs",
    "start": "jobs",
    "stop": "jobs",
    "state": "jobs",
    "reset": "jobs",
    "make_folder": "jobs",
    "manifests": "streams",
    "environment": "environment",
    "build_environment": "build",
    "clean": "clean",
}
# Answered by frames; each is the last request of its process.
FRAMED = {
    "follow": "streams",
    "rest": "streams",
    "send_files": "copy",
    "receive_files": "copy",
}


def main() -> None:
    """Answer the requests on stdin, or supervise the folder named on the command line."""
    if sys.argv[1:2] == ["supervise"]:
        # Late: no request needs it.
        from .supervisor import supervise

        supervise(sys.argv[2])
        return
    stdin = sys.stdin.buffer
    stdout = sys.stdout.buffer
    for line in iter(stdin.readline, b""):
        request: Dict[str, Any] = json.loads(line)
        operation = request["op"]
        stdout.write(MARK)
        if operation in FRAMED:
            stdout.flush()
            function_of(operation, FRAMED)(request, stdin)
            return
        blob = []
        if "blob_bytes" in request:
            blob.append(stdin.read(request.pop("blob_bytes")))
        with contextlib.closing(answers(request, *blob)) as given:
            for answer in given:
                # A file name may not be text: half a surrogate pair would make all unreadable.
                text = json.dumps(answer, ensure_ascii=False)
                stdout.write(text.encode("utf-8", "replace") + b"\n")
                stdout.flush()


def answers(
    request: Dict[str, Any], *blob: bytes
) -> Generator[Dict[str, Any], None, None]:
    """Yield the operation's answer or refusal; a long operation yields its progress before."""
    function = function_of(request["op"], MODULE_OF)
    try:
        given = function(request, *blob)
        if isinstance(given, dict):
            yield given
        else:
            yield from given
    except Refusal as refusal:
        yield refusal.answer


def function_of(operation: str, modules: Dict[str, str]) -> Callable[..., Any]:
    """Import an operation's module and return its function."""
    # Late: a zip has no compiled files, so each import costs; a request loads only its own module.
    module = importlib.import_module("." + modules[operation], __package__)
    function: Callable[..., Any] = getattr(module, operation)
    return function
