"""When a job is started again after an attempt has ended. Pure: values in, values out."""

from __future__ import annotations

import msgspec

from ..errors import JobFailed, LaunchFailed, NodesBusy, NotFit, UgroError
from ..jobs.outcome import Outcome
from ..jobs.phase import Phase
from ..jobs.record import JobRecord
from ..jobs.state import JobState

# What may go better with the next attempt.
WORTH_A_RESTART: frozenset[type[UgroError]] = frozenset(
    {JobFailed, LaunchFailed, NotFit, NodesBusy}
)


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """Another attempt follows: the restart of this number, counted from 1."""

    number: int


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The job ends in this phase."""

    phase: Phase


def next_step(
    outcome: Outcome, record: JobRecord, state: JobState, *, stop_asked: bool
) -> Restart | End:
    """Decide between a restart and the end of the job, after an attempt with this outcome.

    `state` has all attempts, the last one included. An attempt counts from its plan on: a job without any plan was
    refused at once, and is not tried again.
    """
    begun = len(state.attempts)
    if (
        0 < begun <= record.max_restarts
        and not stop_asked
        and _may_be_fixed(outcome, begun)
    ):
        return Restart(number=begun)
    if outcome.phase is Phase.REFUSED and state.started_at is not None:
        # Only what never ran is refused: by its name, others are looked at first.
        return End(phase=Phase.FAILED)
    return End(phase=outcome.phase)


def _may_be_fixed(outcome: Outcome, begun: int) -> bool:
    if outcome.final or outcome.error not in WORTH_A_RESTART:
        return False
    if outcome.phase is Phase.REFUSED:
        # Somebody was quicker to take a node. A job that never ran says so at once, one that ran tries again.
        return begun > 1
    return outcome.phase is Phase.FAILED
