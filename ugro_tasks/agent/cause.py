"""The cause of a failure: one failed rank makes the others fail, and this finds the first and its last words."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..jobs.experiment import Experiment
from ..jobs.outcome import RankExit
from ..jobs.state import Cause
from .last_words import LastWords, exception_in, last_words

LAST_LINES = 15
LINE_CHARACTERS = 400
NO_BASES: Mapping[int, int] = MappingProxyType({})
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
    bases: Mapping[int, int] = NO_BASES,
) -> Cause:
    """Find the cause of the failure among these ends, of which one at least was no success.

    It is the first rank to end whose words are its own, and not about a lost peer. After them come ranks that were
    stopped for the failure of another one, and had printed an exception of their own before the order came: an
    interpreter may take longer to end than its peer takes to notice. `bases` is {rank: bytes of its log from earlier
    attempts}. Times of different nodes are not compared; `at` is when the end was heard of.
    """
    failures = [end for end in ends if end.failed]
    if not failures:
        # A node says that its rank was stopped, though nobody has asked for it.
        failures = [end for end in ends if not end.succeeded]
    failures.sort(key=lambda end: end.at)
    own = _Words(experiment, bases)
    for end in failures:
        if not own.blames_a_peer(end):
            return own.cause(end)
    for end in ends:
        if end not in failures and own.failed_before_it_was_stopped(end):
            return own.cause(end)
    return own.cause(failures[0])


class _Words:
    """The words of each rank about its end."""

    def __init__(self, experiment: Experiment, bases: Mapping[int, int]) -> None:
        self._experiment = experiment
        self._bases = bases
        self._read: dict[int, LastWords] = {}

    def of(self, end: RankExit) -> LastWords:
        """Return the end of a rank's log; of one that was stopped, as it was when the order came."""
        if end.rank not in self._read:
            begin = self._bases.get(end.rank, 0)
            stop = None
            if end.stopped and end.log_bytes is not None:
                stop = begin + end.log_bytes
            log = self._experiment.log(end.rank)
            self._read[end.rank] = last_words(log, begin, stop)
        return self._read[end.rank]

    def exception(self, end: RankExit) -> str | None:
        """Return the line with a rank's exception, from its error file or its log."""
        message, _ = _exception(end.error)
        told = self.of(end).exception
        if end.stopped:
            return told
        return message if message and _is_json(end.error) else told

    def blames_a_peer(self, end: RankExit) -> bool:
        """Return whether a rank's words are about a peer that it has lost."""
        if end.lost or end.interrupted:
            return False
        said = self.exception(end)
        if said is None:
            said = "\n".join(self.cause(end).last_lines)
        return bool(SECONDARY_ERRORS.search(said))

    def failed_before_it_was_stopped(self, end: RankExit) -> bool:
        """Return whether a rank had printed an exception of its own when it was told to stop."""
        if end.succeeded or end.log_bytes is None:
            return False
        return self.exception(end) is not None and not self.blames_a_peer(end)

    def cause(self, end: RankExit) -> Cause:
        """Return a rank's end as the cause."""
        words = self.of(end)
        # The error file of a rank that was stopped is torchrun's own, about the signal.
        traceback = [] if end.stopped else _exception(end.error)[1]
        code = _exit_code(end, words.report)
        signal_name = _signal_name(end, code)
        by_code = code if signal_name is None and not end.lost else None
        lines = (traceback or words.lines)[-LAST_LINES:]
        how = _how(end, code, signal_name, self.exception(end))
        return Cause(
            message=f"rank {end.rank} on {end.node}: {how[:LINE_CHARACTERS]}",
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


def _how(
    end: RankExit, code: int | None, signal_name: str | None, exception: str | None
) -> str:
    if end.lost:
        return end.lost
    if end.interrupted:
        return _interruption(end, end.interrupted)
    if end.stopped:
        return exception or "it was stopped, and nobody here asked for it"
    if end.code is None and end.signal is None:
        return end.error or "it would not end and was killed"
    if signal_name == "SIGKILL" and end.oom_kills:
        return f"killed by SIGKILL: {end.node} ran out of memory"
    if signal_name == "SIGKILL":
        return "killed by SIGKILL (out of memory, or somebody's kill -9)"
    if signal_name and exception:
        return f"killed by {signal_name}: {exception}"
    if signal_name:
        return f"killed by {signal_name}"
    if exception and code == 1:
        return exception
    message, _ = _exception(end.error)
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
        return (error_file or "").strip().partition("\n")[0], []
    body = told.get("message") if isinstance(told, dict) else None
    if not isinstance(body, dict):
        return "", []
    extra = body.get("extraInfo")
    stack = str(extra.get("py_callstack", "")) if isinstance(extra, dict) else ""
    first_line, _, _ = str(body.get("message", "")).partition("\n")
    traceback = stack.rstrip("\n").split("\n") if stack else []
    return exception_in(traceback) or first_line, traceback


def _is_json(error_file: str | None) -> bool:
    return (error_file or "").lstrip().startswith("{")
