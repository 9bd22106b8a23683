"""state.json and events.jsonl: the progress of a job. Times are Unix seconds."""

from __future__ import annotations

import time

from msgspec import Struct, field

from .phase import Phase, Reason
from .plan import Number, Rank
from .record_file import FIRST_FORMAT
from .spec import Resume


class Cause(Struct, frozen=True, kw_only=True):
    """The reason for a job's failure: message, node, and the last lines of its rank."""

    message: str
    node: str | None = None
    rank: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    last_lines: tuple[str, ...] = ()


class RankState(Struct, frozen=True, kw_only=True):
    """One rank, as last reported."""

    rank: Rank
    node: str
    connected: bool = False
    exit_code: int | None = None
    signal: int | None = None
    lost: str | None = None
    ended_at: float | None = None
    left_pids: tuple[int, ...] = ()  # of the job, still alive after a stop
    # Processes that went on after the rank's good end, and were ended.
    outlived: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()  # processes that may be of the job: left alone
    proven_gone: bool = False  # the node has proved that no process of the job is left


class Attempt(Struct, frozen=True, kw_only=True):
    """One start of the whole gang: the first, or a restart."""

    number: Number
    nodes: tuple[str, ...]
    began_at: float
    # {stream: bytes of its file here from earlier attempts}
    bases: dict[str, int]
    resume: Resume | None = None
    ended_at: float | None = None
    cause: Cause | None = None
    left_behind: tuple[str, ...] = ()  # nodes that could not be told to stop
    ran: bool = False  # its ranks have begun, or may have
    gathered: bool = False  # all streams and outputs of its ranks are here


class JobState(Struct, frozen=True, kw_only=True):
    """state.json: the progress of the job."""

    format: int = FIRST_FORMAT
    phase: Phase = field(name="state")
    # Of a stopped or paused job.
    reason: Reason | None = None
    submitted_at: float = field(default_factory=time.time)
    started_at: float | None = None  # all ranks run
    ended_at: float | None = None
    ranks: tuple[RankState, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    cause: Cause | None = None
    exit_code: int = 0  # of `inv launch`; see errors.py
    # The time when all streams and outputs of the ranks were here; None: some may be missing.
    gathered_at: float | None = None
    # Whether it counts as gathered without what links lead to, as its user wished.
    links_left_out: bool = False
    # Checkpoints removed here by `inv clean --at-home`: they need not come from the nodes.
    removed_checkpoints: tuple[str, ...] = ()
    # Nodes on which `inv clean` has removed the job's files.
    cleaned: tuple[str, ...] = ()

    def bases_of(self, number: int) -> dict[str, int]:
        """Return the bases of the attempt of this number, {} if there is none."""
        for attempt in self.attempts:
            if attempt.number == number:
                return attempt.bases
        return {}

    @property
    def is_missing_here(self) -> bool:
        """Return whether the job succeeded, and not all of it is here."""
        return self.phase is Phase.SUCCEEDED and not self.gathered_at

    @property
    def seconds(self) -> float | None:
        """Return the time from the first moment with all ranks running to the end, or to now."""
        if self.started_at is None:
            return None
        end = self.ended_at or time.time()
        return end - self.started_at


class Event(Struct, frozen=True, kw_only=True):
    """A line of events.jsonl: a message for users following the job."""

    time: float
    message: str
    node: str | None = None
