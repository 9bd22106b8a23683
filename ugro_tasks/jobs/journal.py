"""The record, the state and the events of a job, written by its supervision."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..errors import RecordError
from .experiment import Experiment, StopOfJob
from .phase import Phase
from .record import JobRecord
from .state import Attempt, Event, JobState

# At the first look a request may be half written.
LOOKS_AT_STOP = 3


class Journal:
    """The job's record and state, in memory and in its folder. Any thread may write."""

    def __init__(self, experiment: Experiment, log: logging.Logger) -> None:
        self.experiment = experiment
        self.log = log
        self._changing = threading.RLock()
        self._ignored = 0
        experiment.remove_half_written()
        self.record: JobRecord = experiment.signed_record()
        self.state: JobState = experiment.state()
        torn: list[str] = []
        self.insist(lambda: torn.extend(experiment.mend_torn_records()))
        for name in torn:
            self.say(f"{name} could not be read; it is as its copy says")

    def say(self, message: str, node: str | None = None) -> None:
        """Record an event for the user, in events.jsonl and in the agent's log."""
        words = f"{node}: {message}" if node else message
        self.log.info("%s %s", self.experiment.job_id, words)
        event = Event(time=time.time(), node=node, message=message)
        cut: list[int] = []
        self.insist(lambda: cut.append(self.experiment.add_event(event)))
        if any(cut):
            self.say(f"events.jsonl: half a line of {sum(cut)} bytes was cut off")

    def save(self, **changes: Any) -> None:
        """Change fields of the record."""
        self.record = msgspec.structs.replace(self.record, **changes)
        self.insist(lambda: self.experiment.save_record(self.record))

    def change(
        self, *, attempt: Mapping[str, Any] | None = None, **changes: Any
    ) -> None:
        """Change fields of the state, and in the same write those of the last attempt."""
        with self._changing:
            if attempt:
                *earlier, last = self.state.attempts
                changed = msgspec.structs.replace(last, **attempt)
                changes["attempts"] = (*earlier, changed)
            before = self.state.phase
            self.state = msgspec.structs.replace(self.state, **changes)
            if not before.may_become(self.state.phase):
                raise RuntimeError(
                    f"a job cannot go from {before} to {self.state.phase}"
                )
            if not before.finished and self.state.phase is Phase.SUCCEEDED:
                _check_success(self.state)
            self.insist(lambda: self.experiment.save_state(self.state))

    def change_rank(self, rank: int, **changes: Any) -> None:
        """Change fields of the state of one rank."""
        with self._changing:
            ranks = [
                msgspec.structs.replace(r, **changes) if r.rank == rank else r
                for r in self.state.ranks
            ]
            self.change(ranks=tuple(ranks))

    @property
    def stop_asked(self) -> bool:
        """Return whether this user asked for the job to be stopped, or its folder was removed."""
        return self._stop_request() is not None or not self.experiment.folder.is_dir()

    @property
    def given_up(self) -> bool:
        """Return whether the job may end without the proof of unreachable nodes."""
        request = self._stop_request()
        return request is not None and request.give_up

    def _stop_request(self) -> StopOfJob | None:
        """Read the request to stop; what is none of this user's is said, once."""
        try:
            request = self.experiment.stop_request()
        except RecordError as error:
            self._ignored += 1
            if self._ignored == LOOKS_AT_STOP:
                self.say(f"a request to stop is ignored: {error.text}")
            return None
        self._ignored = 0
        return request

    @property
    def attempt(self) -> Attempt | None:
        """Return the attempt under way, None without one."""
        if not self.state.attempts:
            return None
        last = self.state.attempts[-1]
        return last if last.ended_at is None else None

    def change_attempt(self, **changes: Any) -> None:
        """Change fields of the last attempt."""
        self.change(attempt=changes)

    def insist(self, write: Callable[[], None]) -> None:
        """Write to the experiment folder, retrying for as long as it takes.

        A full disk on the controller must not end a job on the nodes. If the folder was removed,
        nothing is written, because its job is about to be stopped.
        """
        warned = False
        while True:
            try:
                return write()
            except OSError as error:
                if not self.experiment.folder.is_dir():
                    return None
                if not warned:
                    path = error.filename or self.experiment.folder
                    self.log.error("%s: %s; trying again", path, error.strerror)
                warned = True
                time.sleep(1)


def _check_success(state: JobState) -> None:
    """Raise RuntimeError unless every rank has proved its success."""
    for rank in state.ranks:
        if rank.exit_code != 0 or rank.signal is not None or rank.lost is not None:
            raise RuntimeError(f"a job with this rank cannot have succeeded: {rank}")
    if not state.ranks:
        raise RuntimeError("a job without ranks cannot have succeeded")
