"""What a supervision writes down about its job: the record, the state, what happened."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .experiment import Experiment
from .record import JobRecord
from .state import Attempt, Event, JobState


class Journal:
    """The job's record and state, in memory and in its folder alike. Any thread may write."""

    def __init__(self, experiment: Experiment, log: logging.Logger) -> None:
        self.experiment, self.log = experiment, log
        experiment.remove_half_written()
        self.record: JobRecord = experiment.record()
        self.state: JobState = experiment.state()
        self._changing = threading.RLock()

    def say(self, message: str, node: str | None = None) -> None:
        """Something happened that a user who watches wants to know."""
        self.log.info(
            "%s %s%s", self.experiment.job_id, f"{node}: " if node else "", message
        )
        self.insist(
            lambda: self.experiment.add_event(
                Event(time=time.time(), node=node, message=message)
            )
        )

    def save(self, **changes: Any) -> None:
        """Change the record."""
        self.record = msgspec.structs.replace(self.record, **changes)
        self.insist(lambda: self.experiment.save_record(self.record))

    def change(
        self, *, attempt: Mapping[str, Any] | None = None, **changes: Any
    ) -> None:
        """Change the state, and in the same write the last attempt."""
        with self._changing:
            if attempt:
                *earlier, last = self.state.attempts
                changes["attempts"] = (
                    *earlier,
                    msgspec.structs.replace(last, **attempt),
                )
            self.state = msgspec.structs.replace(self.state, **changes)
            self.insist(lambda: self.experiment.save_state(self.state))

    def change_rank(self, rank: int, **changes: Any) -> None:
        """Change the state of one rank."""
        with self._changing:
            ranks = [
                msgspec.structs.replace(r, **changes) if r.rank == rank else r
                for r in self.state.ranks
            ]
            self.change(ranks=tuple(ranks))

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that is under way, None where none is."""
        last = self.state.attempts[-1] if self.state.attempts else None
        return last if last and last.ended_at is None else None

    def change_attempt(self, **changes: Any) -> None:
        """Change the last attempt."""
        self.change(attempt=changes)

    def insist(self, write: Callable[[], None]) -> None:
        """Write to the experiment folder, for as long as it takes: a full disk here must not end a job there.

        A folder that somebody has removed is left so: its job is about to be stopped.
        """
        warned = False
        while True:
            try:
                return write()
            except OSError as error:
                if not self.experiment.folder.is_dir():
                    return None
                if not warned:
                    self.log.error(
                        "%s: %s; trying again",
                        error.filename or self.experiment.folder,
                        error.strerror,
                    )
                warned = True
                time.sleep(1)
