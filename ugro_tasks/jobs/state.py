"""state.json and events.jsonl: how far a job has come. Times are Unix seconds."""

from __future__ import annotations

import time
from enum import StrEnum

from msgspec import Struct, field

from .plan import Number, Rank
from .spec import Resume


class Phase(StrEnum):
    """Where a job is. The first four are unfinished; no job leaves the others again."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REFUSED = "refused"  # by the health gate or a busy node: nothing of it ever ran

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in {Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.REFUSED}


class Cause(Struct, frozen=True, kw_only=True):
    """Why a job did not succeed: what happened, on which node, and what its rank said last."""

    message: str
    node: str | None = None
    rank: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    last_lines: tuple[str, ...] = ()


class RankState(Struct, frozen=True, kw_only=True):
    """One rank, as last heard of."""

    rank: Rank
    node: str
    connected: bool = False
    exit_code: int | None = None
    signal: int | None = None
    lost: str | None = None
    ended_at: float | None = None
    left_pids: tuple[int, ...] = ()  # of the job, alive after a stop
    proven_gone: bool = False  # the node has shown that nothing of the job lives there


class Attempt(Struct, frozen=True, kw_only=True):
    """One start of the whole gang: the first, or a restart."""

    number: Number
    nodes: tuple[str, ...]
    began_at: float
    # {stream: bytes of its file here that are older than the attempt}
    bases: dict[str, int]
    resume: Resume | None = None
    ended_at: float | None = None
    cause: Cause | None = None
    left_behind: tuple[str, ...] = ()  # nodes that could not be told to stop
    ran: bool = False  # its ranks have begun, or may have
    gathered: bool = False  # all that its ranks wrote is home


class JobState(Struct, frozen=True, kw_only=True):
    """state.json: how far the job has come."""

    phase: Phase = field(name="state")
    submitted_at: float = field(default_factory=time.time)
    started_at: float | None = None  # all ranks run
    ended_at: float | None = None
    ranks: tuple[RankState, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    cause: Cause | None = None
    exit_code: int = 0  # what `inv launch` ends with; see errors.py
    # Since when all that the ranks wrote is home; None: perhaps not all of it.
    gathered_at: float | None = None
    cleaned: tuple[
        str, ...
    ] = ()  # nodes on which `inv clean` has removed what was left of the job

    @property
    def seconds(self) -> float | None:
        """From the first moment when all ranks ran to the end, or to now."""
        return (
            None
            if self.started_at is None
            else (self.ended_at or time.time()) - self.started_at
        )


class Event(Struct, frozen=True, kw_only=True):
    """A line of events.jsonl: something that a user who watches wants to know."""

    time: float
    message: str
    node: str | None = None
