"""What follows an attempt that has ended: another one, or the end of the job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.factories import make_cluster, make_record
from ugro_tasks.agent.restart import End, Restart, next_step
from ugro_tasks.errors import (
    EnvironmentFault,
    HostUnreachable,
    JobFailed,
    LaunchFailed,
    NodesBusy,
    NotFit,
    RecordError,
    SeveralErrors,
    StopUnproven,
    UgroError,
)
from ugro_tasks.jobs.outcome import Outcome
from ugro_tasks.jobs.phase import Phase, Reason
from ugro_tasks.jobs.state import Attempt, JobState

SUCCESS = Outcome(phase=Phase.SUCCEEDED)
RANK_FAILED = Outcome(
    phase=Phase.FAILED, error=JobFailed, words="rank 1 on gpu1: exit code 3"
)
UNDONE = Outcome(phase=Phase.FAILED, error=LaunchFailed, words="the start failed")
TAKEN = Outcome(phase=Phase.REFUSED, error=NodesBusy, words="gpu1: held by job exp0")
UNFIT = Outcome(phase=Phase.REFUSED, error=NotFit, words="gpu1: disk: 1 GiB free")
UNFIT_LATER = Outcome(phase=Phase.FAILED, error=NotFit, words="gpu1: disk: 1 GiB free")
NOT_BACK = Outcome(
    phase=Phase.FAILED, error=NotFit, words="gpu1 did not come back", final=True
)
STOPPED = Outcome.stopped("as asked")
STOPPED_UNPROVEN = Outcome(
    phase=Phase.STOPPED, error=StopUnproven, words="gpu1: pids 41", reason=Reason.ASKED
)
FAILED_UNPROVEN = Outcome(phase=Phase.FAILED, error=StopUnproven, words="gpu1: pids 41")


@dataclass(kw_only=True)
class Case:
    """An outcome, what was before it, and what shall follow."""

    outcome: Outcome
    begun: int = 1
    max_restarts: int = 1
    ran: bool = True
    stop_asked: bool = False
    then: Restart | End = field(default_factory=lambda: End(phase=Phase.FAILED))


CASES = {
    "a success is the end, however many restarts are left": Case(
        outcome=SUCCESS, max_restarts=9, then=End(phase=Phase.SUCCEEDED)
    ),
    "a success after a restart": Case(
        outcome=SUCCESS, begun=2, then=End(phase=Phase.SUCCEEDED)
    ),
    "a success although somebody asks for a stop just then": Case(
        outcome=SUCCESS, stop_asked=True, then=End(phase=Phase.SUCCEEDED)
    ),
    "a rank failed and there are restarts": Case(
        outcome=RANK_FAILED, then=Restart(number=1)
    ),
    "a rank failed again and one restart is left": Case(
        outcome=RANK_FAILED, begun=2, max_restarts=2, then=Restart(number=2)
    ),
    "a rank failed and no restart was allowed": Case(
        outcome=RANK_FAILED, max_restarts=0
    ),
    "a rank failed and the restarts are used up": Case(
        outcome=RANK_FAILED, begun=2, max_restarts=1
    ),
    "a rank failed and a stop was asked for meanwhile": Case(
        outcome=RANK_FAILED, stop_asked=True
    ),
    "the launch was undone": Case(outcome=UNDONE, ran=False, then=Restart(number=1)),
    "the launch was undone and no restart was allowed": Case(
        outcome=UNDONE, ran=False, max_restarts=0
    ),
    "another job took a node before the first start": Case(
        outcome=TAKEN, ran=False, then=End(phase=Phase.REFUSED)
    ),
    "another job took a node before the start of a restart": Case(
        outcome=TAKEN, begun=2, max_restarts=2, then=Restart(number=2)
    ),
    "another job took a node before a restart of what never ran": Case(
        outcome=TAKEN, begun=2, max_restarts=2, ran=False, then=Restart(number=2)
    ),
    "another job took a node and the restarts are used up": Case(
        outcome=TAKEN, begun=2, max_restarts=1
    ),
    "the same of a job that never ran": Case(
        outcome=TAKEN, begun=2, max_restarts=1, ran=False, then=End(phase=Phase.REFUSED)
    ),
    "the gate refuses the first attempt": Case(
        outcome=UNFIT, begun=0, max_restarts=9, ran=False, then=End(phase=Phase.REFUSED)
    ),
    "a node was found unfit later": Case(
        outcome=UNFIT_LATER, begun=2, max_restarts=2, then=Restart(number=2)
    ),
    "a node did not come back": Case(outcome=NOT_BACK, max_restarts=9),
    "it was stopped": Case(
        outcome=STOPPED, max_restarts=9, then=End(phase=Phase.STOPPED)
    ),
    "it was stopped before it started": Case(
        outcome=STOPPED,
        begun=0,
        ran=False,
        stop_asked=True,
        then=End(phase=Phase.STOPPED),
    ),
    "it was stopped, which a node did not prove": Case(
        outcome=STOPPED_UNPROVEN, max_restarts=9, then=End(phase=Phase.STOPPED)
    ),
    "a rank failed and a node did not prove the stop": Case(
        outcome=FAILED_UNPROVEN, max_restarts=9
    ),
}


def following(case: Case) -> Restart | End:
    record = make_record(make_cluster(Path("/nowhere")), max_restarts=case.max_restarts)
    attempts = tuple(
        Attempt(number=number, nodes=("gpu0",), began_at=1.0, bases={})
        for number in range(1, case.begun + 1)
    )
    state = JobState(
        phase=Phase.RUNNING,
        attempts=attempts,
        started_at=1.0 if case.ran else None,
        submitted_at=0.5,
    )
    return next_step(case.outcome, record, state, stop_asked=case.stop_asked)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_follows(case: Case) -> None:
    assert following(case) == case.then


@pytest.mark.parametrize(
    "error",
    [
        UgroError,
        EnvironmentFault,
        HostUnreachable,
        RecordError,
        SeveralErrors([JobFailed("one"), NotFit("another")], "two"),
    ],
)
def test_what_a_restart_does_not_mend_ends_the_job(
    error: type[UgroError] | UgroError,
) -> None:
    outcome = Outcome(phase=Phase.FAILED, error=error, words="why")
    assert following(Case(outcome=outcome, max_restarts=9)) == End(phase=Phase.FAILED)


@pytest.mark.parametrize("phase", list(Phase))
def test_nothing_follows_once_a_stop_was_asked_for(phase: Phase) -> None:
    reason = Reason.ASKED if phase is Phase.STOPPED else None
    outcome = Outcome(phase=phase, error=JobFailed, words="why", reason=reason)
    assert isinstance(
        following(Case(outcome=outcome, max_restarts=9, stop_asked=True)), End
    )


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(SUCCESS, 0), (RANK_FAILED, 7), (TAKEN, 6), (STOPPED, 130), (FAILED_UNPROVEN, 9)],
)
def test_an_outcome_has_the_exit_code_of_its_error(outcome: Outcome, code: int) -> None:
    assert outcome.exit_code == code
