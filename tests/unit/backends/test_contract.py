"""What every backend promises the agent, held by each of them; see `backends/api.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.tools import wait_until
from tests.unit.backends.fake_backend import FakeMachines
from tests.unit.backends.machines import NAMES, Job, SshMachines
from ugro_tasks.backends.api import AttemptEnd, Backend
from ugro_tasks.errors import (
    Interrupted,
    LaunchFailed,
    NodesBusy,
    NotFit,
    StopUnproven,
)
from ugro_tasks.jobs.outcome import Outcome
from ugro_tasks.jobs.phase import Phase, Reason
from ugro_tasks.jobs.plan import LaunchPlan
from ugro_tasks.jobs.spec import Resume
from ugro_tasks.jobs.state import Attempt

CHECKPOINT = Resume(job_id="exp0", checkpoint="checkpoint-7", step=7)
MakeJob = Callable[..., Job]


@pytest.fixture(params=[SshMachines, FakeMachines], ids=["ssh", "fake"])
def make_job(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeJob]:
    """Makes the job of a test, on machines of this kind."""
    made: list[Job] = []

    def make(**record: Any) -> Job:
        made.append(Job(tmp_path, request.param, **record))
        return made[-1]

    yield make
    for job in made:
        job.close()


# ---- how the agent goes about it ----


def no_resume() -> Resume | None:
    return None


def planned(job: Job, number: int = 1) -> LaunchPlan:
    """Plan an attempt, and write it down as the agent does."""
    plan = job.backend.plan(number, no_resume)
    assert isinstance(plan, LaunchPlan), plan
    nodes = tuple(node.node for node in plan.nodes)
    attempt = Attempt(number=number, nodes=nodes, began_at=1.0, bases={})
    job.journal.save(plan=plan)
    job.journal.change(attempts=(*job.journal.state.attempts, attempt))
    return plan


def started(job: Job) -> LaunchPlan:
    plan = planned(job)
    assert job.backend.start(plan, begun_before=False) is None
    return plan


def not_planned(job: Job, number: int = 1) -> Outcome:
    outcome = job.backend.plan(number, no_resume)
    assert isinstance(outcome, Outcome), outcome
    return outcome


def not_started(job: Job, *, begun_before: bool = False) -> Outcome:
    outcome = job.backend.start(planned(job), begun_before=begun_before)
    assert outcome
    return outcome


class Run(threading.Thread):
    """Started ranks on the way to their end."""

    def __init__(
        self,
        job: Job,
        away_seconds: float | None = None,
        *,
        backend: Backend | None = None,
        plan: LaunchPlan | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.plan = plan or started(job)
        self.ends: list[AttemptEnd] = []
        self._backend = backend or job.backend
        self._away_seconds = away_seconds
        self.start()
        wait_until(lambda: all(self._connected()), "all ranks to be followed")

    def _connected(self) -> list[bool]:
        return [rank.connected for rank in self.job.state().ranks]

    def run(self) -> None:
        """Run them to their end."""
        self.ends.append(self._backend.run_to_end(self.plan, self._away_seconds))

    def end(self) -> AttemptEnd:
        """Wait for the end."""
        self.join(30)
        [end] = self.ends
        return end


def proven_gone(job: Job) -> list[bool]:
    """Say of each rank whether its state says that it is proven gone."""
    return [rank.proven_gone for rank in job.state().ranks]


def failed_once(job: Job) -> None:
    """Let the first attempt of a job fail on its second machine."""
    run = Run(job)
    job.machines.end("gpu1", code=3)
    run.end()
    job.journal.change_attempt(ended_at=2.0)


# ---- plan ----


def test_a_plan_has_all_machines_in_the_order_of_their_ranks(make_job: MakeJob) -> None:
    plan = planned(make_job())
    assert [(node.rank, node.node) for node in plan.nodes] == list(enumerate(NAMES))
    assert plan.world_size == 3


def test_a_plan_starts_nothing(make_job: MakeJob) -> None:
    job = make_job()
    planned(job)
    assert [job.machines.starts(name) for name in NAMES] == [0, 0, 0]


def test_a_plan_goes_on_from_what_is_found(make_job: MakeJob) -> None:
    plan = make_job().backend.plan(1, lambda: CHECKPOINT)
    assert isinstance(plan, LaunchPlan)
    assert (plan.attempt, plan.resume) == (1, CHECKPOINT)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda machines: machines.cut("gpu1"), NotFit),
        (lambda machines: machines.spoil("gpu1"), NotFit),
        (lambda machines: machines.hold("gpu1"), NodesBusy),
    ],
    ids=["away", "unfit", "held"],
)
def test_a_machine_that_cannot_take_part_refuses_the_job_and_is_named(
    make_job: MakeJob, wrong: Callable[[Any], None], error: Any
) -> None:
    job = make_job()
    wrong(job.machines)
    outcome = not_planned(job)
    assert (outcome.phase, outcome.error) == (Phase.REFUSED, error)
    assert "gpu1" in outcome.words


def test_no_checkpoint_is_looked_for_where_the_machines_are_not_there(
    make_job: MakeJob,
) -> None:
    job = make_job()
    job.machines.cut("gpu1")
    asked: list[bool] = []

    def resume() -> Resume | None:
        asked.append(True)
        return None

    assert isinstance(job.backend.plan(1, resume), Outcome)
    assert asked == []


def test_force_takes_a_machine_that_is_unfit(make_job: MakeJob) -> None:
    job = make_job(force=True)
    job.machines.spoil("gpu1")
    assert len(planned(job).nodes) == 3


def test_force_takes_no_machine_that_is_away_or_held(make_job: MakeJob) -> None:
    job = make_job(force=True)
    job.machines.hold("gpu1")
    assert not_planned(job).error is NodesBusy


def test_a_job_that_was_asked_to_stop_is_not_planned(make_job: MakeJob) -> None:
    job = make_job()
    job.experiment.ask_to_stop()
    outcome = not_planned(job)
    assert (outcome.phase, outcome.error) == (Phase.STOPPED, Interrupted)


# ---- plan a restart ----


def test_a_restart_has_the_next_number_and_all_machines(make_job: MakeJob) -> None:
    job = make_job(max_restarts=1)
    failed_once(job)
    plan = planned(job, 2)
    assert (plan.attempt, len(plan.nodes)) == (2, 3)


def test_a_restart_waits_for_a_machine_that_comes_back(make_job: MakeJob) -> None:
    job = make_job(max_restarts=1)
    failed_once(job)
    job.machines.cut("gpu2")
    back = threading.Timer(0.1, lambda: job.machines.mend("gpu2"))
    back.start()
    assert len(planned(job, 2).nodes) == 3
    back.join()


def test_a_restart_goes_without_a_machine_that_stays_away(make_job: MakeJob) -> None:
    job = make_job(max_restarts=1, min_nodes=2)
    failed_once(job)
    job.machines.cut("gpu2")
    plan = planned(job, 2)
    assert [(node.rank, node.node) for node in plan.nodes] == [(0, "gpu0"), (1, "gpu1")]
    assert job.state().attempts[0].left_behind == ("gpu2",)


def test_what_was_left_behind_is_named_until_it_is_back(make_job: MakeJob) -> None:
    job = make_job(max_restarts=1, min_nodes=2)
    failed_once(job)
    job.machines.cut("gpu2")
    planned(job, 2)
    assert job.backend.still_away() == {"gpu2"}
    job.machines.mend("gpu2")
    wait_until(lambda: not job.backend.still_away(), "gpu2 to be back")


def test_another_agent_takes_up_what_was_left_behind(make_job: MakeJob) -> None:
    job = make_job(max_restarts=1, min_nodes=2)
    failed_once(job)
    job.machines.cut("gpu2")
    planned(job, 2)
    _, later = job.another()
    later.begin()
    assert later.still_away() == {"gpu2"}
    job.machines.mend("gpu2")
    wait_until(lambda: not later.still_away(), "gpu2 to be back")


@pytest.mark.parametrize("min_nodes", [None, 3])
def test_a_restart_with_too_few_machines_is_the_end(
    make_job: MakeJob, min_nodes: int | None
) -> None:
    job = make_job(max_restarts=1, min_nodes=min_nodes)
    failed_once(job)
    job.machines.cut("gpu2")
    outcome = not_planned(job, 2)
    assert (outcome.phase, outcome.error, outcome.final) == (Phase.FAILED, NotFit, True)
    assert "gpu2" in outcome.words


def test_a_stop_ends_the_wait_for_a_restart(make_job: MakeJob) -> None:
    job = make_job(max_restarts=1)
    failed_once(job)
    job.machines.cut("gpu2")
    job.experiment.ask_to_stop()
    assert not_planned(job, 2).phase is Phase.STOPPED


def test_a_restart_first_stops_what_is_left_of_the_attempt_before(
    make_job: MakeJob,
) -> None:
    job = make_job(max_restarts=1)
    run = Run(job, away_seconds=0.1)
    job.machines.cut("gpu2")
    run.end()
    assert job.machines.runs("gpu2")
    job.journal.change_attempt(ended_at=2.0)
    job.machines.mend("gpu2")
    planned(job, 2)
    assert not job.machines.runs("gpu2")
    assert all(rank.proven_gone for rank in job.state().ranks)


# ---- start ----


def test_all_ranks_run_and_the_state_says_so(make_job: MakeJob) -> None:
    job = make_job()
    started(job)
    assert [job.machines.runs(name) for name in NAMES] == [True] * 3
    state = job.state()
    assert state.phase is Phase.RUNNING
    assert state.started_at is not None
    assert state.attempts[-1].ran
    assert [(rank.rank, rank.node) for rank in state.ranks] == list(enumerate(NAMES))


def test_where_one_cannot_start_none_runs(make_job: MakeJob) -> None:
    job = make_job()
    job.machines.refuse("gpu1", busy=False)
    outcome = not_started(job)
    assert (outcome.phase, outcome.error) == (Phase.FAILED, LaunchFailed)
    assert "gpu1" in outcome.words
    assert not any(job.machines.runs(name) for name in NAMES)


def test_where_one_is_taken_by_then_the_job_is_refused(make_job: MakeJob) -> None:
    job = make_job()
    job.machines.refuse("gpu1", busy=True)
    outcome = not_started(job)
    assert (outcome.phase, outcome.error) == (Phase.REFUSED, NodesBusy)
    assert not any(job.machines.runs(name) for name in NAMES)


def test_a_stop_before_the_start_starts_nothing(make_job: MakeJob) -> None:
    job = make_job()
    plan = planned(job)
    job.experiment.ask_to_stop()
    outcome = job.backend.start(plan, begun_before=False)
    assert outcome
    assert (outcome.phase, outcome.error) == (Phase.STOPPED, Interrupted)
    assert not any(job.machines.runs(name) for name in NAMES)


def test_an_attempt_that_never_ran_is_not_noted_as_one_that_did(
    make_job: MakeJob,
) -> None:
    job = make_job()
    job.machines.refuse("gpu1", busy=False)
    not_started(job)
    state = job.state()
    assert state.started_at is None
    assert not state.attempts[-1].ran


def test_an_undo_that_leaves_something_names_it(make_job: MakeJob) -> None:
    job = make_job()
    job.machines.refuse("gpu1", busy=False)
    job.machines.leave("gpu2", (41,))
    outcome = not_started(job)
    assert (outcome.phase, outcome.error) == (Phase.FAILED, StopUnproven)
    assert "gpu2" in outcome.words
    assert "41" in outcome.words
    assert proven_gone(job) == [True, True, False]


def die_while_starting(job: Job) -> None:
    """Leave the state of an agent that was killed before it could note that the ranks run."""
    job.journal.settle()
    state = msgspec.structs.replace(job.journal.state, phase=Phase.PREPARING)
    job.experiment.save_state(state)


def test_ranks_that_an_earlier_agent_began_go_on(make_job: MakeJob) -> None:
    job = make_job()
    plan = started(job)
    die_while_starting(job)
    journal, later = job.another()
    assert later.start(plan, begun_before=True) is None
    assert [job.machines.runs(name) for name in NAMES] == [True] * 3
    assert journal.state.phase is Phase.RUNNING


def test_ranks_that_an_earlier_agent_began_count_as_run_after_an_undo(
    make_job: MakeJob,
) -> None:
    job = make_job()
    plan = started(job)
    job.journal.change_attempt(ran=False)
    die_while_starting(job)
    journal, later = job.another()
    job.machines.refuse("gpu1", busy=False)
    assert later.start(plan, begun_before=True)
    assert journal.state.attempts[-1].ran


# ---- run to the end ----


def test_a_success_is_an_exit_code_of_0_from_each_rank(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    for name in NAMES:
        job.machines.end(name, code=0)
    end = run.end()
    assert sorted((e.rank, e.node, e.code) for e in end.exits) == [
        (0, "gpu0", 0),
        (1, "gpu1", 0),
        (2, "gpu2", 0),
    ]
    assert not any(rank_exit.failed for rank_exit in end.exits)
    assert (end.stopped_for, end.unproven, end.wrote) == (None, None, ())


def test_the_end_of_each_rank_stands_in_the_state(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    for name in NAMES:
        job.machines.end(name, code=0)
    run.end()
    for rank in job.state().ranks:
        assert (rank.exit_code, rank.connected, rank.proven_gone) == (0, False, True)
        assert rank.ended_at is not None


@pytest.mark.parametrize("record", [{"code": 3}, {"signal": 9}])
def test_the_first_failure_stops_the_others(
    make_job: MakeJob, record: dict[str, Any]
) -> None:
    job = make_job()
    run = Run(job)
    job.machines.end("gpu1", **record)
    end = run.end()
    assert {e.node: e.stopped for e in end.exits} == {
        "gpu0": "failure",
        "gpu1": None,
        "gpu2": "failure",
    }
    assert [e.node for e in end.exits if e.failed] == ["gpu1"]
    assert (end.stopped_for, end.unproven) == (None, None)
    assert not any(job.machines.runs(name) for name in NAMES)


def test_a_stop_that_was_asked_for_stops_all(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    job.experiment.ask_to_stop()
    end = run.end()
    assert {e.stopped for e in end.exits} == {"asked"}
    assert (end.stopped_for, end.unproven) == (Reason.ASKED, None)
    assert job.state().phase is Phase.STOPPING
    assert all(rank.proven_gone for rank in job.state().ranks)


@pytest.mark.parametrize(
    ("begin", "phase"),
    [
        (lambda job: job.experiment.ask_to_stop(), Phase.STOPPED),
        (lambda job: job.machines.end("gpu0", code=3), Phase.FAILED),
    ],
    ids=["asked", "failure"],
)
def test_what_lives_on_after_a_stop_is_named(
    make_job: MakeJob, begin: Callable[[Job], None], phase: Phase
) -> None:
    job = make_job()
    job.machines.leave("gpu2", (41, 42))
    run = Run(job)
    begin(job)
    unproven = run.end().unproven
    assert unproven
    assert (unproven.phase, unproven.error) == (phase, StopUnproven)
    assert "gpu2" in unproven.words
    assert "41, 42" in unproven.words
    assert job.state().ranks[2].left_pids == (41, 42)


def test_what_the_ranks_print_and_measure_comes_home(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    job.machines.write("gpu0", log=b"begin\n", metrics=b'{"step": 1}\n')
    job.machines.write("gpu2", log=b"\xff\x00 no text\n")
    job.machines.write("gpu0", log=b"end without a newline")
    for name in NAMES:
        job.machines.end(name, code=0)
    run.end()
    logs = [job.experiment.log(rank).path.read_bytes() for rank in (0, 2)]
    assert logs == [b"begin\nend without a newline", b"\xff\x00 no text\n"]
    assert job.experiment.metrics.path.read_bytes() == b'{"step": 1}\n'


def test_the_names_of_what_a_rank_wrote_are_told(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    job.machines.end("gpu0", code=0, outputs=["model.bin"])
    for name in NAMES[1:]:
        job.machines.end(name, code=0)
    assert run.end().wrote == ("gpu0",)


# ---- a machine that is lost ----


def test_a_machine_out_of_reach_is_waited_for(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    job.machines.cut("gpu2")
    wait_until(lambda: not job.state().ranks[2].connected, "the loss to be seen")
    job.machines.write("gpu2", log=b"while away\n")
    for name in NAMES:
        job.machines.end(name, code=0)
    job.machines.mend("gpu2")
    assert [e.code for e in run.end().exits] == [0, 0, 0]
    assert job.experiment.log(2).path.read_bytes() == b"while away\n"


def test_with_a_limit_a_machine_out_of_reach_is_lost_and_the_others_are_stopped(
    make_job: MakeJob,
) -> None:
    job = make_job()
    run = Run(job, away_seconds=0.1)
    job.machines.cut("gpu2")
    end = run.end()
    exits = {e.node: e for e in end.exits}
    assert exits["gpu2"].lost
    assert exits["gpu2"].failed
    assert [exits[name].stopped for name in ("gpu0", "gpu1")] == ["failure"] * 2
    assert proven_gone(job) == [True, True, False]


def test_a_stop_waits_for_a_machine_out_of_reach(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    job.machines.cut("gpu2")
    job.experiment.ask_to_stop()
    wait_until(
        lambda: proven_gone(job)[:2] == [True, True],
        "the others to be stopped",
    )
    assert run.is_alive()
    job.machines.mend("gpu2")
    end = run.end()
    assert {e.stopped for e in end.exits} == {"asked"}
    assert not job.machines.runs("gpu2")


@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.FAILED])
def test_a_job_that_was_given_up_ends_and_names_the_machine(
    make_job: MakeJob, phase: Phase
) -> None:
    job = make_job()
    run = Run(job)
    job.machines.cut("gpu2")
    if phase is Phase.FAILED:
        job.machines.end("gpu0", code=3)
        wait_until(lambda: job.state().phase is Phase.STOPPING, "the stop to begin")
    job.experiment.ask_to_stop(give_up=True)
    unproven = run.end().unproven
    assert unproven
    assert (unproven.phase, unproven.error) == (phase, StopUnproven)
    assert "gpu2" in unproven.words
    assert job.machines.runs("gpu2")


# ---- another agent ----


def test_an_agent_that_comes_later_follows_to_the_end(make_job: MakeJob) -> None:
    job = make_job()
    plan = started(job)
    job.machines.write("gpu0", log=b"before\n")
    _, later = job.another()
    run = Run(job, backend=later, plan=plan)
    job.machines.write("gpu0", log=b"after\n")
    for name in NAMES:
        job.machines.end(name, code=0)
    assert len(run.end().exits) == 3
    assert job.experiment.log(0).path.read_bytes() == b"before\nafter\n"


def test_an_agent_that_comes_later_stops_as_asked(make_job: MakeJob) -> None:
    job = make_job()
    plan = started(job)
    job.experiment.ask_to_stop()
    _, later = job.another()
    end = later.run_to_end(plan, None)
    assert end.stopped_for is Reason.ASKED
    assert not any(job.machines.runs(name) for name in NAMES)


# ---- stop ----


def test_a_stop_proves_what_it_can_and_leaves_the_rest(make_job: MakeJob) -> None:
    job = make_job()
    started(job)
    job.machines.cut("gpu2")
    job.backend.stop()
    assert [job.machines.runs(name) for name in NAMES] == [False, False, True]
    assert proven_gone(job) == [True, True, False]


def test_a_stop_of_nothing_does_nothing(make_job: MakeJob) -> None:
    job = make_job()
    before = job.state()
    job.backend.stop()
    assert job.state() == before


# ---- fetch ----


def test_there_is_nothing_to_fetch_of_ranks_that_wrote_nothing(
    make_job: MakeJob,
) -> None:
    job = make_job()
    run = Run(job)
    for name in NAMES:
        job.machines.end(name, code=0)
    assert job.backend.fetch(run.plan, run.end(), NAMES) == []


def test_what_cannot_be_fetched_is_told_with_its_machine(make_job: MakeJob) -> None:
    job = make_job()
    run = Run(job)
    for name in NAMES:
        job.machines.end(name, code=0, outputs=["model.bin"] if name == "gpu2" else [])
    end = run.end()
    job.machines.cut("gpu2")
    errors = job.backend.fetch(run.plan, end, NAMES)
    assert errors
    assert all("gpu2" in error.text for error in errors)
    assert job.backend.fetch(run.plan, end, ["gpu0", "gpu1"]) == []


def test_checkpoints_of_a_machine_that_is_away_are_told_as_missing(
    make_job: MakeJob,
) -> None:
    job = make_job()
    plan = started(job)
    assert job.backend.fetch_checkpoints(plan) == []
    job.machines.cut("gpu1")
    [error] = job.backend.fetch_checkpoints(plan)
    assert "gpu1" in error.text


# ---- close ----


def test_a_backend_can_be_closed_and_goes_on_when_it_is_asked_again(
    make_job: MakeJob,
) -> None:
    job = make_job()
    plan = started(job)
    job.backend.close()
    job.backend.close()
    run = Run(job, plan=plan)
    for name in NAMES:
        job.machines.end(name, code=0)
    assert [e.code for e in run.end().exits] == [0, 0, 0]
