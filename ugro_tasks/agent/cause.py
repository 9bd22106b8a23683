"""The cause of a failure: one failed rank makes the others fail, and this finds the first and its last words."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from ..jobs.experiment import Experiment
from ..jobs.outcome import RankExit
from ..jobs.state import Cause
from ..jobs.streams import log_stream
from .last_words import exception_in, last_words

LAST_LINES = 15
LINE_CHARACTERS = 400
NO_BASES: Mapping[str, int] = MappingProxyType({})
# What a rank says when a peer has gone: gloo, NCCL, the store and the sockets beneath them.
SECONDARY_ERRORS = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Socket Timeout|recvBytes|sendBytes|ProcessGroup(Gloo|NCCL)|"
    r"NCCL (error|communicator)|gloo::|DistStoreError|DistNetworkError|DistBackendError|Timed out waiting|"
    r"Watchdog caught collective operation timeout"
)
EXIT_CODE = re.compile(r"exitcode\s*:\s*(-?[0-9]{1,9})\b")


def find_cause(
    ends: Sequence[RankExit],
    experiment: Experiment,
    bases: Mapping[str, int] = NO_BASES,
) -> Cause:
    """Find the cause of the failure among these ends, of which one at least was no success.

    It is the first rank to end whose words are its own, and not about a lost peer. After them come ranks that were
    stopped for the failure of another one, and had printed an exception of their own before the order came: an
    interpreter may take longer to end than its peer takes to notice. `bases` is {stream: bytes of its file from
    earlier attempts}. Times of different nodes are not compared; `at` is when the end was heard of.
    """
    failures = [end for end in ends if end.failed]
    if not failures:
        # A node says that its rank was stopped, though nobody has asked for it.
        failures = [end for end in ends if not end.succeeded]
    failures.sort(key=lambda end: end.at)
    told = [_End(end, experiment, bases) for end in failures]
    for end in told:
        if not end.blames_a_peer():
            return end.cause()
    stopped = [end for end in ends if end not in failures and not end.succeeded]
    for end in (_End(end, experiment, bases) for end in stopped):
        if end.failed_before_it_was_stopped():
            return end.cause()
    return told[0].cause()


class _ErrorFile(Struct, frozen=True):
    """What torchrun's error file says, filled by @record in the script; or the supervisor's own word."""

    message: str = ""
    traceback: tuple[str, ...] = ()
    is_of_script: bool = False


class _End:
    """A rank's end, and its words about it."""

    def __init__(
        self, end: RankExit, experiment: Experiment, bases: Mapping[str, int]
    ) -> None:
        self._end = end
        begin = bases.get(log_stream(end.rank), 0)
        stop = None
        if end.stopped and end.log_bytes is not None:
            # What it has said because it is stopped stands behind that.
            stop = begin + end.log_bytes
        self._words = last_words(experiment.log(end.rank), begin, stop)
        # The error file of a rank that was stopped is torchrun's own, about the signal.
        self._error = _error_file(None if end.stopped else end.error)

    @property
    def exception(self) -> str | None:
        """Return the line with the exception, from the error file or the log."""
        if self._error.is_of_script and self._error.message:
            return self._error.message
        return self._words.exception

    def blames_a_peer(self) -> bool:
        """Return whether the words are about a peer that the rank has lost."""
        if self._end.lost or self._end.interrupted:
            return False
        said = self.exception
        if said is None:
            said = "\n".join(self.cause().last_lines)
        return bool(SECONDARY_ERRORS.search(said))

    def failed_before_it_was_stopped(self) -> bool:
        """Return whether the rank had printed an exception of its own when it was told to stop."""
        if self._end.log_bytes is None or self.exception is None:
            return False
        return not self.blames_a_peer()

    def cause(self) -> Cause:
        """Return the end as the cause."""
        end = self._end
        code = _exit_code(end, self._words.report)
        signal_name = _signal_name(end, code)
        by_code = code if signal_name is None and not end.lost else None
        lines = (self._error.traceback or self._words.lines)[-LAST_LINES:]
        how = self._how(code, signal_name)
        return Cause(
            message=f"rank {end.rank} on {end.node}: {how[:LINE_CHARACTERS]}",
            node=end.node,
            rank=end.rank,
            exit_code=by_code,
            signal=signal_name,
            last_lines=tuple(line[:LINE_CHARACTERS] for line in lines),
        )

    def _how(self, code: int | None, signal_name: str | None) -> str:
        end = self._end
        if end.lost:
            return end.lost
        if end.interrupted:
            return _interruption(end, end.interrupted)
        if end.stopped:
            return self.exception or "it was stopped, and nobody here asked for it"
        if end.code is None and end.signal is None:
            return end.error or "it would not end and was killed"
        if signal_name == "SIGKILL" and end.oom_kills:
            return f"killed by SIGKILL: {end.node} ran out of memory"
        if signal_name == "SIGKILL":
            return "killed by SIGKILL (out of memory, or somebody's kill -9)"
        if signal_name and self.exception:
            return f"killed by {signal_name}: {self.exception}"
        if signal_name:
            return f"killed by {signal_name}"
        if self.exception and code == 1:
            return self.exception
        if self._error.message:
            return f"exit code {code}: {self._error.message}"
        return f"exit code {code}"


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


def _interruption(end: RankExit, number: int) -> str:
    name = _name_of(number) or f"signal {number}"
    if end.shutting_down:
        return f"ended by {name}: {end.node} was shutting down"
    return (
        f"ended by {name}, which UGRO did not send. Was {end.node} shut down, or a session ended there? "
        "See: journalctl -b -1 -e; loginctl show-user"
    )


def _error_file(text: str | None) -> _ErrorFile:
    """Read an error file; anything may be in it.

    Format: torch/distributed/elastic/multiprocessing/errors/error_handler.py.
    """
    try:
        told: Any = json.loads(text or "null")
    except (ValueError, RecursionError):
        # Not torchrun's file but the supervisor's own word: torchrun itself could not be started.
        return _ErrorFile(message=(text or "").strip().partition("\n")[0])
    body = told.get("message") if isinstance(told, dict) else None
    if not isinstance(body, dict):
        return _ErrorFile()
    extra = body.get("extraInfo")
    stack = str(extra.get("py_callstack", "")) if isinstance(extra, dict) else ""
    first_line, _, _ = str(body.get("message", "")).partition("\n")
    traceback = tuple(stack.rstrip("\n").split("\n")) if stack else ()
    message = exception_in(traceback) or first_line
    return _ErrorFile(message, traceback, is_of_script=True)
