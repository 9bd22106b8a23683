"""Why did it fail? One failed rank makes the others fail; this finds the one that began it, and its last words."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..jobs.experiment import Experiment
from ..jobs.outcome import RankExit
from ..jobs.state import Cause

LAST_LINES = 15
LINE_CHARACTERS = 400
TAIL_BYTES = 1 << 16
# What a rank says when a peer has gone: gloo, NCCL, the store and the sockets beneath them.
IN_THE_WAKE = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Socket Timeout|recvBytes|sendBytes|ProcessGroup(Gloo|NCCL)|"
    r"NCCL (error|communicator)|gloo::|DistStoreError|DistNetworkError|DistBackendError|Timed out waiting"
)
# With the first of these, torchrun begins its report about a failure. It stands in the log behind the script's words.
REPORT = re.compile(
    r"^[EW]\d{4} [\d:.]+ .*torch/distributed/elastic/(multiprocessing/api|agent).*|^=+\n.* FAILED$",
    re.M,
)
# c10d says this at each start on a host that cannot resolve its own name.
NOISE = re.compile(
    r"^\[W.* \[c10d\] The hostname of the client socket cannot be retrieved.*\n?", re.M
)
EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?[0-9]{1,9})\b")


def find_cause(ends: Sequence[RankExit], experiment: Experiment) -> Cause | None:
    """The cause of the failure among these ends, None where no rank failed.

    A rank that complains of its peers was most likely pulled down by one of them; among the others, the first to end.
    """
    failures = sorted((end for end in ends if end.failed), key=lambda end: end.at)
    causes = [_cause(end, experiment.log(end.rank)) for end in failures]
    own = [
        cause
        for cause in causes
        if not IN_THE_WAKE.search("\n".join((cause.message, *cause.last_lines)))
    ]
    return next(iter(own or causes), None)


def _cause(end: RankExit, log: Path) -> Cause:
    words, report = _tail(log)
    worker_code = EXIT_CODE.search(report)
    code = int(worker_code[1]) if worker_code else end.code
    message, traceback = _exception(end.error)
    number = end.signal or (-code if code is not None and code < 0 else None)
    name = signal.Signals(number).name if number in set(signal.Signals) else None
    if end.lost:
        what = end.lost
    elif end.code is None and end.signal is None:
        what = (end.error or "it would not end and was killed")[:LINE_CHARACTERS]
    elif name:
        what = f"killed by {name}" + (
            " (out of memory, or somebody's kill -9)" if name == "SIGKILL" else ""
        )
    else:
        what = f"exit code {code}" + (f": {message}" if message else "")
    return Cause(
        message=f"rank {end.rank} on {end.node}: {what}",
        node=end.node,
        rank=end.rank,
        exit_code=None if name or end.lost else code,
        signal=name,
        last_lines=tuple(
            line[:LINE_CHARACTERS] for line in (traceback or words)[-LAST_LINES:]
        ),
    )


def _exception(error_file: str | None) -> tuple[str, list[str]]:
    """(the exception's message, its traceback) from torchrun's error file, which @record in the script fills.

    Format: torch/distributed/elastic/multiprocessing/errors/error_handler.py.
    """
    try:
        told: Any = json.loads(error_file or "null")
    except (ValueError, RecursionError):
        # Not torchrun's file but the supervisor's own word: torchrun itself could not be started.
        return (error_file or "").strip()[:LINE_CHARACTERS].partition("\n")[0], []
    body = told.get("message") if isinstance(told, dict) else None
    if not isinstance(body, dict):
        return "", []
    extra = body.get("extraInfo")
    stack = str(extra.get("py_callstack", "")) if isinstance(extra, dict) else ""
    message = str(body.get("message", "")).partition("\n")[0][:LINE_CHARACTERS]
    return message, stack.rstrip("\n").split("\n") if stack else []


def _tail(log: Path) -> tuple[list[str], str]:
    """The last lines that the rank itself printed, and torchrun's report behind them."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = NOISE.sub("", file.read().decode("utf-8", "replace"))
    except FileNotFoundError:
        return [], ""
    report = REPORT.search(text)
    own, about = (
        (text[: report.start()], text[report.start() :]) if report else (text, "")
    )
    return [line for line in own.split("\n") if line.strip()], about
