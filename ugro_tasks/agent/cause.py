"""The cause of a failure: one failed rank makes the others fail, and this finds the first and its last words."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from typing import Any

from ..files import File
from ..jobs.experiment import Experiment
from ..jobs.outcome import RankExit
from ..jobs.state import Cause

LAST_LINES = 15
LINE_CHARACTERS = 400
TAIL_BYTES = 1 << 16
# What a rank says when a peer has gone: gloo, NCCL, the store and the sockets beneath them.
SECONDARY_ERRORS = re.compile(
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


def find_cause(ends: Sequence[RankExit], experiment: Experiment) -> Cause:
    """Find the cause of the failure among these ends, of which one at least was no success.

    Of the ranks whose words are their own, and not about a lost peer, the first to end is the cause.
    """
    failures = [end for end in ends if end.failed]
    if not failures:
        # A node says that its rank was stopped, though nobody has asked for it.
        failures = [end for end in ends if not end.succeeded]
    failures.sort(key=lambda end: end.at)
    causes = [_cause(end, experiment.log(end.rank)) for end in failures]
    for cause in causes:
        said = "\n".join((cause.message, *cause.last_lines))
        if not SECONDARY_ERRORS.search(said):
            return cause
    return causes[0]


def _cause(end: RankExit, log: File) -> Cause:
    words, report = _tail(log)
    message, traceback = _exception(end.error)
    code = _exit_code(end, report)
    signal_name = _signal_name(end, code)
    by_code = code if signal_name is None and not end.lost else None
    lines = (traceback or words)[-LAST_LINES:]
    return Cause(
        message=f"rank {end.rank} on {end.node}: {_how(end, code, signal_name, message)}",
        node=end.node,
        rank=end.rank,
        exit_code=by_code,
        signal=signal_name,
        last_lines=tuple(line[:LINE_CHARACTERS] for line in lines),
    )


def _exit_code(end: RankExit, report: str) -> int | None:
    """Read the worker's own exit code from torchrun's report; torchrun itself ends with 1 whatever happened."""
    of_worker = EXIT_CODE.search(report)
    return int(of_worker[1]) if of_worker else end.code


def _signal_name(end: RankExit, code: int | None) -> str | None:
    number = end.interrupted or end.signal
    if number is None and code is not None and code < 0:
        number = -code
    return _name_of(number) if number else None


def _name_of(number: int) -> str | None:
    known = {known.value: known.name for known in signal.Signals}
    return known.get(number)


def _how(end: RankExit, code: int | None, signal_name: str | None, message: str) -> str:
    if end.lost:
        return end.lost
    if end.interrupted:
        return _interruption(end, end.interrupted)
    if end.stopped:
        return "it was stopped, and nobody here asked for it"
    if end.code is None and end.signal is None:
        return (end.error or "it would not end and was killed")[:LINE_CHARACTERS]
    if signal_name == "SIGKILL" and end.oom_kills:
        return f"killed by SIGKILL: {end.node} ran out of memory"
    if signal_name == "SIGKILL":
        return "killed by SIGKILL (out of memory, or somebody's kill -9)"
    if signal_name:
        return f"killed by {signal_name}"
    if message:
        return f"exit code {code}: {message}"
    return f"exit code {code}"


def _interruption(end: RankExit, number: int) -> str:
    name = _name_of(number) or f"signal {number}"
    if end.shutting_down:
        return f"ended by {name}: {end.node} was shutting down"
    return (
        f"ended by {name}, which UGRO did not send. Was {end.node} shut down, or a session ended there? "
        "See: journalctl -b -1 -e; loginctl show-user"
    )


def _exception(error_file: str | None) -> tuple[str, list[str]]:
    """Read (the exception's message, its traceback) from torchrun's error file, filled by @record in the script.

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
    first_line, _, _ = str(body.get("message", "")).partition("\n")
    traceback = stack.rstrip("\n").split("\n") if stack else []
    return first_line[:LINE_CHARACTERS], traceback


def _tail(log: File) -> tuple[list[str], str]:
    """Read the last lines of the rank's own, and torchrun's report behind them."""
    try:
        with log.open() as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            text = NOISE.sub("", file.read().decode("utf-8", "replace"))
    except FileNotFoundError:
        return [], ""
    report = REPORT.search(text)
    end_of_own = report.start() if report else len(text)
    lines = text[:end_of_own].split("\n")
    return [line for line in lines if line.strip()], text[end_of_own:]
