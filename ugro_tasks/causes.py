"""Why did it fail? One failed rank makes the others fail; this finds the one that began it, and its last words."""

from __future__ import annotations

import json
import re
import signal
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .experiments import Experiment
from .job import Cause
from .streams import End

LAST_LINES = 15
LINE_CHARACTERS = 400
TAIL_BYTES = 1 << 16
# What a rank says when a peer has gone: gloo, NCCL, the store and the sockets beneath them.
IN_THE_WAKE = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Socket Timeout|recvBytes|sendBytes|ProcessGroup(Gloo|NCCL)|"
    r"NCCL (error|communicator)|gloo::|DistStoreError|DistNetworkError|DistBackendError|Timed out waiting"
)
# torchrun's own lines around a failure say nothing about it.
TORCHRUN = re.compile(
    r"torch/distributed/(elastic|launcher|run)|\b[EWI]\d{4} \d\d:\d\d:\d\d\.\d+ .*torch/distributed"
)
EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")


def find_cause(ends: Sequence[End], experiment: Experiment) -> Cause | None:
    """The cause of the failure among these ends, None where no rank failed.

    A rank that complains of its peers was most likely pulled down by one of them; among the others, the first to end.
    """
    failures = sorted((end for end in ends if end.failed), key=lambda end: end.at)
    causes = [_cause(end, experiment.log(end.rank)) for end in failures]
    own = [cause for cause in causes if not IN_THE_WAKE.search("\n".join((cause.message, *cause.last_lines)))]
    return next(iter(own or causes), None)


def _cause(end: End, log: Path) -> Cause:
    code, message, traceback = _told(end)
    number = end.signal if end.signal else -code if code is not None and code < 0 else None
    name = signal.Signals(number).name if number in set(signal.Signals) else None
    if end.lost:
        what = end.lost
    elif name:
        what = f"killed by {name}" + (" (out of memory, or somebody's kill -9)" if name == "SIGKILL" else "")
    else:
        what = f"exit code {code}" + (f": {message}" if message else "")
    return Cause(
        message=f"rank {end.rank} on {end.node}: {what}",
        node=end.node,
        rank=end.rank,
        exit_code=None if name or end.lost else code,
        signal=name,
        last_lines=tuple(traceback or last_lines(log)),
    )


def _told(end: End) -> tuple[int | None, str, list[str]]:
    """(the worker's exit code, the exception's message, its traceback) as far as torchrun's error file tells.

    With @record in the script the file holds its exception, otherwise torchrun's summary of the worker.
    Format: torch/distributed/elastic/multiprocessing/errors/error_handler.py.
    """
    try:
        told: Any = json.loads(end.error or "null")
    except ValueError:
        return end.code, (end.error or "").strip()[-LINE_CHARACTERS:], []
    body = told.get("message") if isinstance(told, dict) else None
    if not isinstance(body, dict):
        return end.code, str(body or ""), []
    message = str(body.get("message", ""))
    extra = body.get("extraInfo")
    stack = str(extra.get("py_callstack", "")) if isinstance(extra, dict) else ""
    if found := EXIT_CODE.search(message):
        return int(found[1]), "", []
    return end.code, message.splitlines()[0] if message else "", _shortened(stack.splitlines()[-LAST_LINES:])


def last_lines(log: Path) -> list[str]:
    """What the rank itself said last, without torchrun's own report."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    own = (line for line in text.splitlines() if line.strip() and not TORCHRUN.search(line))
    return _shortened(list(deque(own, LAST_LINES)))


def _shortened(lines: list[str]) -> list[str]:
    return [line[:LINE_CHARACTERS] for line in lines]
