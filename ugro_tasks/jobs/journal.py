"""The record, the state and the events of a job, written by its supervision.

What is noted is known in memory at once, and written behind: no disk stands between a failure and the stop of the
other ranks. Where something must be on the disk before an act (nothing starts that no record knows of), `settle` waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from ..errors import RecordError
from .experiment import Experiment, StopOfJob
from .phase import Phase
from .record import JobRecord
from .state import Attempt, Event, JobState
from .write_behind import WriteBehind

# At the first look a request may be half written.
LOOKS_AT_STOP = 3


class Journal:
    """The job's record and state, in memory and in its folder. Any thread may write."""

    def __init__(
        self,
        experiment: Experiment,
        log: logging.Logger,
        write_behind: Callable[..., WriteBehind] = WriteBehind,
    ) -> None:
        self.experiment = experiment.held()
        self.log = log
        self._changing = threading.RLock()
        self._ignored = 0
        self.experiment.remove_half_written()
        self.record: JobRecord = self.experiment.signed_record()
        self.state: JobState = self.experiment.state()
        self._was_said_deleted = False
        self._behind = write_behind(log, self._recover, self._is_in_vain)
        self._behind.put(self._mend)

    def say(self, message: str, node: str | None = None) -> None:
        """Record an event for the user, in events.jsonl and in the agent's log."""
        words = f"{node}: {message}" if node else message
        self.log.info("%s %s", self.experiment.job_id, words)
        event = Event(time=time.time(), node=node, message=message)
        self._behind.put(partial(self._add, event))

    def save(self, **changes: Any) -> None:
        """Change fields of the record."""
        self.record = msgspec.structs.replace(self.record, **changes)
        self._behind.put(partial(self.experiment.save_record, self.record), of="record")

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
            self._behind.put(
                partial(self.experiment.save_state, self.state), of="state"
            )

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
        """Return whether this user asked for the job to be stopped.

        That its folder cannot be found or read is no request.
        """
        return self._stop_request() is not None

    @property
    def given_up(self) -> bool:
        """Return whether the job may end without the proof of unreachable nodes."""
        request = self._stop_request()
        return request is not None and request.give_up

    def _stop_request(self) -> StopOfJob | None:
        """Read the request to stop; what is none of this user's, or cannot be read, is said once."""
        try:
            request = self.experiment.stop_request()
        except RecordError as error:
            self._ignore(f"a request to stop is ignored: {error.text}")
        except OSError as error:
            self._ignore(
                f"{error.filename}: {error.strerror}; a request to stop would not be seen"
            )
        else:
            self._ignored = 0
            return request
        return None

    def _ignore(self, why: str) -> None:
        self._ignored += 1
        if self._ignored == LOOKS_AT_STOP:
            self.say(why)

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

    def write(self, write: Callable[[], None]) -> None:
        """Write something else to the folder, after all that was noted before; it may raise OSError."""
        self._behind.put(write)

    def settle(self) -> None:
        """Wait until all that was noted is in the folder, for as long as that takes.

        Raises UgroError if the record is none of this user's any more. Nothing is waited for if the folder was deleted.
        """
        self._behind.settle()

    def abandon(self) -> None:
        """Write nothing more of what was noted."""
        self._behind.abandon()

    def _add(self, event: Event) -> None:
        cut = self.experiment.add_event(event)
        if cut:
            self.say(f"events.jsonl: half a line of {cut} bytes was cut off")

    def _mend(self) -> None:
        for name in self.experiment.mend_torn_records():
            self.say(f"{name} could not be read; it is as its copy says")

    def _recover(self) -> None:
        self.experiment.take_up_again(self.record.nonce)

    def _is_in_vain(self) -> bool:
        deleted = self.experiment.was_deleted()
        if deleted and not self._was_said_deleted:
            self._was_said_deleted = True
            self.log.error(
                "%s was deleted; its ranks go on, and nothing of it is recorded. End them: inv stop %s",
                self.experiment.folder,
                self.experiment.job_id,
            )
        return deleted


def _check_success(state: JobState) -> None:
    """Raise RuntimeError unless every rank has proved its success."""
    for rank in state.ranks:
        if rank.exit_code != 0 or rank.signal is not None or rank.lost is not None:
            raise RuntimeError(f"a job with this rank cannot have succeeded: {rank}")
    if not state.ranks:
        raise RuntimeError("a job without ranks cannot have succeeded")
