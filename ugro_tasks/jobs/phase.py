"""The states of a job: what may follow each, and the exit code of a command that waits for it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from ..errors import Interrupted, JobFailed, NotFit
from .record_file import kept_word


class Phase(StrEnum):
    """The state of a job. A word of another version is kept, and is none of these."""

    DRAFTED = "drafted"  # written, but not submitted
    QUEUED = "queued"
    HELD = "held"  # in the queue, but not to be started
    PREPARING = "preparing"
    RUNNING = "running"
    PAUSED = "paused"  # no rank runs; it goes on from a checkpoint
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # for a `Reason`
    PRUNED = "pruned"  # by a sweep
    REFUSED = "refused"  # by the health gate or a busy node; none of its ranks ever ran

    @classmethod
    def _missing_(cls, value: object) -> Phase | None:
        return kept_word(cls, value)

    @property
    def known(self) -> bool:
        """Return whether this version has the word."""
        return self in RULES

    @property
    def supervised(self) -> bool:
        """Return whether an agent works on a job in this state."""
        return self in _SUPERVISED

    @property
    def finished(self) -> bool:
        """Return whether nothing follows; False for an unknown word."""
        return self.known and not RULES[self].follows

    def may_become(self, phase: Phase) -> bool:
        """Return whether another state, or the same one, may follow this one."""
        return phase is self or (self.known and phase in RULES[self].follows)


class Reason(StrEnum):
    """Why a job is stopped or paused."""

    ASKED = "asked"
    RESET = "reset"
    TIME_LIMIT = "time_limit"
    YIELDED = "yielded"  # to a job with precedence
    SHUT_DOWN = "shut_down"

    @classmethod
    def _missing_(cls, value: object) -> Reason | None:
        return kept_word(cls, value)


class Rule(NamedTuple):
    """What may follow a state, and the exit code of an end; a job's record may have its own."""

    follows: frozenset[Phase]
    exit_code: int | None = None


_SUPERVISED = {Phase.QUEUED, Phase.PREPARING, Phase.RUNNING, Phase.STOPPING}
_END = frozenset({Phase.FAILED, Phase.STOPPED})
_NO_START = _END | {Phase.REFUSED}
# A restart brings a job back into the queue.
_AGAIN = frozenset({Phase.QUEUED})

RULES: dict[Phase, Rule] = {
    Phase.DRAFTED: Rule(_NO_START | {Phase.QUEUED, Phase.HELD}),
    Phase.QUEUED: Rule(_NO_START | {Phase.HELD, Phase.PREPARING}),
    Phase.HELD: Rule(_NO_START | {Phase.QUEUED}),
    Phase.PREPARING: Rule(_NO_START | _AGAIN | {Phase.RUNNING, Phase.STOPPING}),
    Phase.RUNNING: Rule(
        _END | _AGAIN | {Phase.STOPPING, Phase.PAUSED, Phase.SUCCEEDED, Phase.PRUNED}
    ),
    Phase.PAUSED: Rule(_END | _AGAIN | {Phase.PRUNED}),
    # A stop may be asked for when all ranks have just ended well.
    Phase.STOPPING: Rule(_END | _AGAIN | {Phase.SUCCEEDED, Phase.PAUSED, Phase.PRUNED}),
    Phase.SUCCEEDED: Rule(frozenset(), 0),
    Phase.FAILED: Rule(frozenset(), JobFailed.exit_code),
    Phase.STOPPED: Rule(frozenset(), Interrupted.exit_code),
    Phase.PRUNED: Rule(frozenset(), 0),
    Phase.REFUSED: Rule(frozenset(), NotFit.exit_code),
}
