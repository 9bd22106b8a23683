"""The rules of a gang, on three simulated nodes under a clock of their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.unit.backends.ssh.simulation import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    TICK_SECONDS,
    SimulatedNode,
    Simulation,
)
from ugro_tasks.backends.ssh.gang import (
    ChangePhase,
    ChangeRank,
    DoStep,
    Exited,
    Follow,
    GangState,
    Look,
    Member,
    NoteRan,
    Stage,
    Step,
    StopTold,
    TellToStop,
)
from ugro_tasks.backends.ssh.gang_step import FAULTS_MOST, step
from ugro_tasks.backends.ssh.loop import Begin, Say, StopAsked, Tick
from ugro_tasks.backends.ssh.stop import StopOrder, StopResult
from ugro_tasks.errors import (
    HostUnreachable,
    Interrupted,
    LaunchFailed,
    NodeFault,
    NodesBusy,
    StopUnproven,
)
from ugro_tasks.jobs.outcome import RankExit
from ugro_tasks.jobs.phase import Phase, Reason

FOR_EVER = float("inf")
NO_ROOM = NodeFault("gpu1", "no space left")
BUSY = NodesBusy("gpu1: held by job exp0")
RANDOM_ROUNDS = 1_500


def outcome(state: GangState) -> tuple[Phase, Any, str]:
    """Give phase, error and words of a gang whose end is no matter of its exits."""
    assert state.outcome
    return state.outcome.phase, state.outcome.error, state.outcome.words


def orders(simulation: Simulation) -> list[tuple[str, str]]:
    """Give (node, reason) of each time that a node was told to stop."""
    return [(act.node, act.order.reason) for _, act in simulation.of_kind(TellToStop)]


def times_of(simulation: Simulation, kind: type[Any], node: str) -> list[float]:
    """Give the times of the acts of one kind on one node."""
    return [now for now, act in simulation.of_kind(kind) if act.node == node]


def all_end_at(simulation: Simulation, seconds: float) -> None:
    """Let all ranks end well at this time."""
    for node in simulation.nodes:
        simulation.at(seconds, partial(node.end, code=0))


# ---- the start ----


def test_the_steps_are_done_one_after_the_other_and_then_all_are_followed() -> None:
    simulation = Simulation(steps=tuple(Step))
    all_end_at(simulation, 5.0)
    state = simulation.run()
    done = [act for _, act in simulation.acts if isinstance(act, DoStep | Follow)]
    assert done == [
        *[DoStep(step_) for step_ in Step],
        *[Follow(node.name) for node in simulation.nodes],
    ]
    assert state.outcome is None
    assert [rank_exit.code for rank_exit in state.exits] == [0, 0, 0]
    assert orders(simulation) == []


def test_that_all_run_is_written_down_once_and_said_of_each() -> None:
    simulation = Simulation()
    all_end_at(simulation, 5.0)
    simulation.run()
    assert [act for _, act in simulation.of_kind(NoteRan)] == [NoteRan(Phase.RUNNING)]
    assert simulation.said()[:3] == ["rank 0 runs", "rank 1 runs", "rank 2 runs"]


@pytest.mark.parametrize("failing", list(Step))
def test_a_step_that_one_node_cannot_do_is_undone_on_all(failing: Step) -> None:
    simulation = Simulation(steps=tuple(Step))
    simulation.nodes[1].faults[failing] = NO_ROOM
    phase, error, words = outcome(simulation.run())
    assert (phase, error) == (Phase.FAILED, LaunchFailed)
    first, second = words.splitlines()
    assert first == f"the {failing} failed, so nothing runs anywhere:"
    assert second == "gpu1: no space left"
    assert orders(simulation) == [(f"gpu{rank}", "undone") for rank in range(3)]
    assert not any(node.runs for node in simulation.nodes)
    assert list(simulation.of_kind(Follow)) == []


@pytest.mark.parametrize("begun_before", [False, True])
def test_an_undo_discards_what_this_launch_has_laid_out(begun_before: bool) -> None:
    simulation = Simulation(begun_before=begun_before)
    simulation.nodes[1].faults[Step.START] = NO_ROOM
    simulation.run()
    for _, act in simulation.of_kind(TellToStop):
        assert act.order.discard is not begun_before


@pytest.mark.parametrize("begun_before", [False, True])
def test_ranks_that_an_earlier_agent_began_count_as_run(begun_before: bool) -> None:
    simulation = Simulation(begun_before=begun_before)
    simulation.nodes[1].faults[Step.START] = NO_ROOM
    simulation.run()
    ran = [act for _, act in simulation.of_kind(NoteRan)]
    assert ran == ([NoteRan()] if begun_before else [])


@pytest.mark.parametrize(
    ("others", "phase", "error"),
    [
        (BUSY, Phase.REFUSED, NodesBusy),
        (NO_ROOM, Phase.FAILED, LaunchFailed),
    ],
)
def test_only_where_all_that_cannot_are_taken_the_job_is_refused(
    others: Any, phase: Phase, error: Any
) -> None:
    simulation = Simulation()
    simulation.nodes[1].faults[Step.PREPARE] = BUSY
    simulation.nodes[2].faults[Step.PREPARE] = others
    assert outcome(simulation.run())[:2] == (phase, error)


def test_a_stop_during_a_step_undoes_it_once_all_have_answered() -> None:
    simulation = Simulation()
    simulation.at(0.1, simulation.ask_to_stop)
    phase, error, words = outcome(simulation.run())
    assert (phase, error, words) == (Phase.STOPPED, Interrupted, "before it started")
    assert orders(simulation) == [(f"gpu{rank}", "undone") for rank in range(3)]
    assert [act.step for _, act in simulation.of_kind(DoStep)] == [Step.PREPARE]


def test_an_undo_that_is_not_proven_names_the_node_and_what_lives() -> None:
    simulation = Simulation()
    simulation.nodes[1].faults[Step.PREPARE] = NO_ROOM
    simulation.nodes[2].left_pids = (41,)
    phase, error, words = outcome(simulation.run())
    assert (phase, error) == (Phase.FAILED, StopUnproven)
    assert words.splitlines() == [
        "gpu1: no space left",
        "gpu2: still there after KILL: pids 41",
    ]


def test_an_undo_tells_a_node_out_of_reach_three_times() -> None:
    simulation = Simulation()
    simulation.nodes[2].away = [(0.0, FOR_EVER)]
    _, error, words = outcome(simulation.run())
    assert error is StopUnproven
    assert "it could not be told to stop; later: inv reset --nodes gpu2" in words
    assert len(times_of(simulation, TellToStop, "gpu2")) == 3


# ---- the first failure ----


@pytest.mark.parametrize(
    "record", [{"code": 3}, {"signal": 9}, {"lost": "gpu1 was rebooted"}]
)
def test_the_first_failure_stops_all_in_the_same_moment(record: dict[str, Any]) -> None:
    simulation = Simulation()
    simulation.at(5.0, lambda: simulation.nodes[1].end(**record))
    state = simulation.run()
    assert state.outcome is None
    assert [rank_exit.node for rank_exit in state.exits if rank_exit.failed] == ["gpu1"]
    assert [member.exit and member.exit.stopped for member in state.members] == [
        "failure",
        None,
        "failure",
    ]
    assert orders(simulation) == [(f"gpu{rank}", "failure") for rank in range(3)]
    [(first, _), *_, (last, _)] = simulation.of_kind(TellToStop)
    assert first == last <= 5.0 + 2 * TICK_SECONDS


def test_the_nodes_are_told_before_anything_is_written() -> None:
    simulation = Simulation()
    simulation.at(5.0, lambda: simulation.nodes[1].end(code=3))
    simulation.run()
    [(when, _), *_] = simulation.of_kind(TellToStop)
    then = [type(act) for now, act in simulation.acts if now == when]
    assert then[:3] == [TellToStop] * 3
    assert set(then[3:]) == {ChangePhase, ChangeRank, Say}


def test_a_second_failure_changes_nothing() -> None:
    simulation = Simulation()
    simulation.at(5.0, lambda: simulation.nodes[1].end(code=3))
    simulation.at(5.1, lambda: simulation.nodes[2].end(code=4))
    simulation.run()
    assert len(orders(simulation)) == 3


def test_a_rank_that_is_done_early_stops_nobody() -> None:
    simulation = Simulation()
    simulation.at(2.0, lambda: simulation.nodes[1].end(code=0))
    simulation.at(50.0, lambda: simulation.nodes[0].end(code=0))
    simulation.at(90.0, lambda: simulation.nodes[2].end(code=0))
    assert simulation.run().outcome is None
    assert orders(simulation) == []
    assert simulation.now >= 90.0


# ---- a stop ----


def test_an_asked_stop_gives_the_ranks_the_grace_of_the_cluster_file() -> None:
    simulation = Simulation(stop_grace_seconds=7.0)
    simulation.at(5.0, simulation.ask_to_stop)
    state = simulation.run()
    assert state.stopped_for is Reason.ASKED
    assert state.outcome is None
    for _, act in simulation.of_kind(TellToStop):
        assert (act.order.reason, act.order.grace_seconds) == ("asked", 7.0)


@pytest.mark.parametrize(
    ("begin", "phase"),
    [
        (Simulation.ask_to_stop, Phase.STOPPED),
        (lambda simulation: simulation.nodes[0].end(code=3), Phase.FAILED),
    ],
    ids=["asked", "failure"],
)
def test_a_stop_that_is_not_proven_is_the_outcome(
    begin: Callable[[Simulation], None], phase: Phase
) -> None:
    simulation = Simulation()
    simulation.nodes[2].left_pids = (41, 42)
    simulation.at(5.0, lambda: begin(simulation))
    assert outcome(simulation.run()) == (
        phase,
        StopUnproven,
        "gpu2: still there after KILL: pids 41, 42",
    )


def test_an_exit_record_does_not_outdo_what_the_stop_has_shown() -> None:
    """The answer to the stop is of later, whichever of them comes here first."""
    simulation = Simulation(ranks=1)
    [node] = simulation.nodes
    node.left_pids = (41,)
    # So its stream is there again long after the stop.
    node.away = [(4.0, 4.2)]
    node.refuses_login = [(4.0, 8.0)]
    simulation.at(5.0, simulation.ask_to_stop)
    simulation.run()
    [last] = [
        act.changes
        for _, act in simulation.of_kind(ChangeRank)
        if "proven_gone" in act.changes
    ][-1:]
    assert (last["left_pids"], last["proven_gone"]) == ((41,), False)


def test_a_stop_waits_for_a_node_with_growing_pauses_and_says_so_once() -> None:
    simulation = Simulation()
    simulation.nodes[2].away = [(4.0, 60.0)]
    simulation.at(5.0, simulation.ask_to_stop)
    state = simulation.run()
    assert state.outcome is None
    assert simulation.nodes[2].exit
    assert simulation.nodes[2].exit.stopped == "asked"
    times = times_of(simulation, TellToStop, "gpu2")
    pauses = [later - earlier - CONNECT_SECONDS for earlier, later in pairwise(times)]
    expected = [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert pauses[:6] == pytest.approx(expected, abs=2 * TICK_SECONDS)
    waiting = [words for words in simulation.said() if "cannot be told" in words]
    assert len(waiting) == 1


@pytest.mark.parametrize("later_seconds", [0.1, 3.5, 40.0])
def test_a_job_that_was_given_up_ends_by_the_next_answer(later_seconds: float) -> None:
    simulation = Simulation()
    simulation.nodes[2].away = [(4.0, FOR_EVER)]
    simulation.at(5.0, simulation.ask_to_stop)
    given_up_at = 5.0 + later_seconds
    simulation.at(given_up_at, lambda: simulation.ask_to_stop(given_up=True))
    phase, error, words = outcome(simulation.run())
    assert (phase, error) == (Phase.STOPPED, StopUnproven)
    assert "inv reset --nodes gpu2" in words
    assert simulation.now <= given_up_at + CONNECT_SECONDS + TICK_SECONDS


def test_nodes_that_answer_are_waited_for_even_where_the_job_was_given_up() -> None:
    simulation = Simulation()
    simulation.at(5.0, lambda: simulation.ask_to_stop(given_up=True))
    state = simulation.run()
    assert state.outcome is None
    assert [member.stop and member.stop.proven_gone for member in state.members] == [
        True
    ] * 3


# ---- a lost node ----


def test_a_node_out_of_reach_is_waited_for_and_told_of_once_each() -> None:
    simulation = Simulation()
    simulation.nodes[2].away = [(20.0, 3_000.0)]
    all_end_at(simulation, 3_600.0)
    state = simulation.run()
    assert state.outcome is None
    assert orders(simulation) == []
    told = [
        words
        for words in simulation.said()
        if "not in touch" in words or "connected" in words
    ]
    assert len(told) == 2
    assert told[0].endswith("gpu2: no route to it")
    assert told[1].startswith("connected again after 29")


def test_the_pauses_between_tries_grow_and_begin_anew_after_a_steady_connection() -> (
    None
):
    simulation = Simulation()
    # The second time it is there for less than ten seconds.
    simulation.nodes[2].away = [(20.0, 60.0), (65.0, 80.0), (200.0, 210.0)]
    all_end_at(simulation, 300.0)
    simulation.run()
    times = times_of(simulation, Follow, "gpu2")
    after = {
        cut: next(later for later in times if later > cut) - cut
        for cut in (20.0, 65.0, 200.0)
    }
    assert after[20.0] < 1.0
    assert after[65.0] > 3.5
    assert after[200.0] < 1.0


def test_with_a_limit_a_lost_node_is_a_failure_that_stops_the_others() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.nodes[2].away = [(20.0, FOR_EVER)]
    state = simulation.run()
    assert state.outcome is None
    assert state.members[2].exit
    assert state.members[2].exit.gave_up
    assert state.members[2].exit.lost == "gpu2 has been out of reach for 60 s"
    assert [member.exit and member.exit.stopped for member in state.members[:2]] == [
        "failure"
    ] * 2
    assert len(times_of(simulation, TellToStop, "gpu2")) == 3


def test_a_lost_node_that_answers_the_stop_sends_the_rest_of_its_streams() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.nodes[2].away = [(20.0, 85.0)]
    state = simulation.run()
    follows = times_of(simulation, Follow, "gpu2")
    [*_, told] = times_of(simulation, TellToStop, "gpu2")
    assert follows[-1] > told
    # What it is, its rank was lost: that it answers later makes no success of it.
    assert state.members[2].exit
    assert state.members[2].exit.lost
    changes = [
        act.changes for _, act in simulation.of_kind(ChangeRank) if act.rank == 2
    ]
    assert changes[-1] == {"connected": False}


def test_a_failed_job_that_was_given_up_names_the_nodes_that_may_run_on() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.nodes[2].away = [(19.0, FOR_EVER)]
    simulation.at(20.0, lambda: simulation.nodes[0].end(code=3))
    simulation.at(25.0, lambda: simulation.ask_to_stop(given_up=True))
    phase, error, words = outcome(simulation.run())
    assert (phase, error) == (Phase.FAILED, StopUnproven)
    assert "inv reset --nodes gpu2" in words


def test_a_stop_that_is_under_way_again_is_waited_for() -> None:
    gone = StopResult(ran=True)
    unreached = StopResult(unreached=HostUnreachable("gpu2", "no route to it"))
    lost = RankExit(node="gpu2", rank=2, at=1.0, lost="out of reach", gave_up=True)
    state = GangState(
        members=(
            Member(node="gpu0", rank=0, stop=gone),
            Member(node="gpu2", rank=2, exit=lost, stop=unreached, stop_at=5.0),
        ),
        limits=Simulation(away_seconds=60.0).state.limits,
        stage=Stage.STOPPING,
        order=StopOrder(reason="failure"),
        tries=3,
    )
    told_again, acts = step(state, Tick(), 5.0)
    assert [type(act) for act in acts] == [TellToStop]
    ended = RankExit(node="gpu0", rank=0, at=1.0, signal=15, stopped="failure")
    waiting, _ = step(told_again, Exited(ended), 5.1)
    assert waiting.stage is Stage.STOPPING
    over, _ = step(waiting, StopTold("gpu2", gone), 5.2)
    assert over.stage is Stage.CATCHING_UP


# ---- a controller that is offline ----

HOUR_SECONDS = 3_600.0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_offline_controller_loses_no_node(ranks: int) -> None:
    simulation = Simulation(ranks=ranks, away_seconds=60.0)
    simulation.go_offline(20.0, 20.0 + HOUR_SECONDS)
    all_end_at(simulation, HOUR_SECONDS / 2)
    state = simulation.run()
    assert state.outcome is None
    assert [rank_exit.code for rank_exit in state.exits] == [0] * ranks
    assert orders(simulation) == []


def test_that_no_node_answers_is_said_once_each_time() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.go_offline(20.0, 200.0)
    simulation.go_offline(300.0, 500.0)
    all_end_at(simulation, 600.0)
    simulation.run()
    told = [words for words in simulation.said() if "no node answers" in words]
    assert len(told) == 2


def test_the_time_in_which_nobody_answers_does_not_count() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.go_offline(20.0, 320.0)
    simulation.nodes[2].away.append((320.0, 370.0))
    all_end_at(simulation, 500.0)
    state = simulation.run()
    assert [rank_exit.code for rank_exit in state.exits] == [0, 0, 0]


def test_a_node_that_is_away_when_the_others_are_back_is_lost_after_the_limit() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.go_offline(20.0, 320.0)
    simulation.nodes[2].away.append((320.0, FOR_EVER))
    state = simulation.run()
    assert state.members[2].exit
    assert state.members[2].exit.gave_up
    [(stopped, _), *_] = simulation.of_kind(TellToStop)
    assert 320.0 + 60.0 < stopped < 320.0 + 60.0 + 20.0


def test_a_controller_that_went_offline_just_now_gives_no_node_up() -> None:
    """The last look at the others was well; the one of this moment is waited for."""
    simulation = Simulation(away_seconds=30.0)
    simulation.nodes[1].away = [(24.0, 49.5)]
    simulation.at(20.0, partial(simulation.nodes[0].end, code=0))
    simulation.at(20.0, partial(simulation.nodes[2].end, code=0))
    simulation.go_offline(53.0, 90.0)
    # Not asked in between, when it answers.
    simulation.nodes[1].refuses_login = [(49.0, 53.0)]
    simulation.at(95.0, partial(simulation.nodes[1].end, code=0))
    state = simulation.run()
    assert [rank_exit.code for rank_exit in state.exits] == [0, 0, 0]


@pytest.mark.parametrize(
    ("offline_until", "loses"), [(0.0, True), (1_000.0, False)], ids=["on", "off"]
)
def test_nodes_whose_ranks_have_ended_are_asked_whether_they_answer(
    offline_until: float, loses: bool
) -> None:
    simulation = Simulation(away_seconds=60.0)
    for node in simulation.nodes[:2]:
        simulation.at(10.0, partial(node.end, code=0))
    simulation.nodes[2].away.append((20.0, 200.0))
    simulation.at(150.0, lambda: simulation.nodes[2].end(code=0))
    for node in simulation.nodes[:2]:
        node.away.append((15.0, offline_until))
    state = simulation.run()
    assert list(simulation.of_kind(Look))
    assert state.members[2].exit
    assert state.members[2].exit.gave_up is loses


def test_a_job_on_this_machine_and_one_other_does_not_wait_for_it() -> None:
    simulation = Simulation(ranks=2, local=1, away_seconds=60.0)
    simulation.nodes[1].away.append((20.0, FOR_EVER))
    state = simulation.run()
    assert state.members[1].exit
    assert state.members[1].exit.gave_up


def test_with_two_other_machines_this_one_is_no_witness() -> None:
    simulation = Simulation(local=1, away_seconds=60.0)
    simulation.go_offline(20.0, 20.0 + HOUR_SECONDS)
    all_end_at(simulation, HOUR_SECONDS / 2)
    state = simulation.run()
    assert [rank_exit.code for rank_exit in state.exits] == [0, 0, 0]


def test_a_failure_stops_the_others_when_the_controller_is_back() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.go_offline(20.0, 500.0)
    simulation.at(100.0, lambda: simulation.nodes[1].end(code=3))
    state = simulation.run()
    ends = [member.exit and member.exit.stopped for member in state.members]
    assert ends == ["failure", None, "failure"]
    assert not any(node.runs for node in simulation.nodes)


def test_an_offline_controller_goes_on_telling_the_nodes_to_stop() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.at(20.0, lambda: simulation.nodes[1].end(code=3))
    simulation.go_offline(20.15, 500.0)
    state = simulation.run()
    assert not any(node.runs for node in simulation.nodes)
    assert [member.stop and member.stop.proven_gone for member in state.members] == [
        True
    ] * 3


@pytest.mark.parametrize("step_", [Step.PREPARE, Step.START])
def test_an_offline_controller_undoes_a_start_when_it_is_back(step_: Step) -> None:
    simulation = Simulation()
    simulation.nodes[1].faults[step_] = NO_ROOM
    simulation.go_offline(ANSWER_SECONDS * (1 + (step_ is Step.START)) + 0.01, 500.0)
    state = simulation.run()
    assert not any(node.runs for node in simulation.nodes)
    phase, error, _ = outcome(state)
    # What was only prepared ends by itself, and is not waited for.
    proven = LaunchFailed if step_ is Step.START else StopUnproven
    assert (phase, error) == (Phase.FAILED, proven)


def test_a_rank_that_could_not_be_told_to_stop_is_told_when_its_node_is_back() -> None:
    simulation = Simulation(away_seconds=60.0)
    simulation.nodes[2].away.append((19.0, 50.0))
    simulation.at(20.0, lambda: simulation.nodes[0].end(code=3))
    state = simulation.run()
    assert not simulation.nodes[2].runs
    assert state.members[2].exit
    assert state.members[2].exit.stopped == "failure"


# ---- a disk here that takes nothing ----


def take_nothing(simulation: Simulation, since: float, until: float) -> None:
    """Let the disk of this machine take nothing for a while."""

    def change(*, takes_nothing: bool) -> None:
        simulation.disk_takes_nothing = takes_nothing

    simulation.at(since, partial(change, takes_nothing=True))
    simulation.at(until, partial(change, takes_nothing=False))


def test_a_job_is_over_when_its_streams_are_here() -> None:
    simulation = Simulation()
    take_nothing(simulation, 20.0, 500.0)
    all_end_at(simulation, 100.0)
    state = simulation.run()
    assert [rank_exit.code for rank_exit in state.exits] == [0, 0, 0]
    assert state.outcome is None
    assert orders(simulation) == []
    assert 500.0 <= simulation.now < 520.0


def test_a_failure_stops_the_others_whatever_the_disk_here_does() -> None:
    simulation = Simulation()
    take_nothing(simulation, 4.0, 500.0)
    simulation.at(5.0, lambda: simulation.nodes[1].end(code=3))
    simulation.run()
    [(first, _), *_] = simulation.of_kind(TellToStop)
    assert first <= 5.0 + 2 * TICK_SECONDS
    assert simulation.now >= 500.0


def test_a_job_that_was_given_up_waits_for_no_disk() -> None:
    simulation = Simulation()
    take_nothing(simulation, 4.0, FOR_EVER)
    all_end_at(simulation, 5.0)
    simulation.at(60.0, lambda: simulation.ask_to_stop(given_up=True))
    state = simulation.run()
    assert [rank_exit.code for rank_exit in state.exits] == [0, 0, 0]
    assert simulation.now <= 62.0


# ---- a node that answers, and says no ----

UNREADABLE = "PermissionError: output/checkpoints"


@pytest.mark.parametrize("away_seconds", [None, 60.0])
def test_streams_that_a_node_cannot_send_are_given_up_and_the_end_is_waited_for(
    away_seconds: float | None,
) -> None:
    simulation = Simulation(away_seconds=away_seconds)
    simulation.nodes[1].cannot_send = UNREADABLE
    all_end_at(simulation, HOUR_SECONDS)
    state = simulation.run()
    assert [rank_exit.code for rank_exit in state.exits] == [0, 0, 0]
    assert orders(simulation) == []
    assert len(times_of(simulation, Follow, "gpu1")) == FAULTS_MOST + 1
    about = [words for words in simulation.said() if UNREADABLE in words]
    assert [words.partition(",")[0] for words in about] == [
        "not in touch",
        "its streams are given up",
    ]


def test_a_rank_of_which_its_node_can_say_nothing_is_a_failure_with_its_reason() -> (
    None
):
    simulation = Simulation()
    simulation.nodes[1].cannot_send = UNREADABLE
    simulation.nodes[1].cannot_tell_end = True
    state = simulation.run()
    assert not any(node.runs for node in simulation.nodes)
    assert state.members[1].exit
    assert state.members[1].exit.lost == (
        f"gpu1 cannot say how its rank is: gpu1: {UNREADABLE}"
    )
    assert simulation.now < 120.0


@pytest.mark.parametrize("given_up", [False, True])
def test_a_job_with_proof_from_every_node_ends_though_one_does_not_come_back(
    given_up: bool,
) -> None:
    simulation = Simulation(catch_up_seconds=30.0)
    simulation.at(20.0, lambda: simulation.ask_to_stop(given_up=given_up))
    # The order arrives between two cuts.
    simulation.nodes[1].away += [(19.85, 20.05), (20.15, FOR_EVER)]
    state = simulation.run()
    assert state.outcome is None
    assert state.stopped_for is Reason.ASKED
    assert state.members[1].exit
    assert state.members[1].exit.lost == (
        "gpu1 has nothing left of it, and does not say how it ended"
    )
    assert simulation.now < 20.0 + 30.0 + 60.0


def test_a_refused_login_is_tried_at_growing_distances() -> None:
    simulation = Simulation()
    simulation.nodes[2].away.append((20.0, 40.0))
    simulation.nodes[2].refuses_login.append((40.0, 9 * HOUR_SECONDS))
    all_end_at(simulation, 10 * HOUR_SECONDS)
    state = simulation.run(limit_seconds=20 * HOUR_SECONDS)
    assert state.outcome is None
    times = [now for now in times_of(simulation, Follow, "gpu2") if now > 42.0]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    expected = [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]
    assert pauses[:8] == pytest.approx(expected, abs=4.0)
    # The newest reason is said, once.
    assert sum("accepts none of your keys" in words for words in simulation.said()) == 1


# ---- what comes too late ----


def test_a_gang_that_is_over_does_nothing_more() -> None:
    simulation = Simulation()
    all_end_at(simulation, 5.0)
    state = simulation.run()
    for event in (Begin(), Tick(), StopAsked(given_up=True)):
        assert step(state, event, simulation.now) == (state, [])


# ---- whatever happens ----


@pytest.mark.parametrize("part", range(3))
def test_whatever_happens_nothing_runs_on_unnamed(part: int) -> None:
    rounds = range(part, RANDOM_ROUNDS, 3)
    for seed in rounds:
        _check_round(random.Random(seed), seed)


def _check_round(chance: random.Random, seed: int) -> None:
    """Draw faults, run, and hold the end against what is true of the nodes."""
    simulation = Simulation(
        away_seconds=chance.choice([None, 30.0]),
        begun_before=chance.random() < 0.2,
    )
    for node in simulation.nodes:
        _draw(chance, simulation, node)
    if chance.random() < 0.3:
        offline_at = chance.uniform(0.0, 80.0)
        simulation.go_offline(offline_at, offline_at + chance.expovariate(1 / 60.0))
    if chance.random() < 0.2:
        full_at = chance.uniform(0.0, 80.0)
        take_nothing(simulation, full_at, full_at + chance.expovariate(1 / 60.0))
    if chance.random() < 0.4:
        simulation.at(chance.uniform(0.0, 80.0), simulation.ask_to_stop)
    if chance.random() < 0.1:
        given_up_at = chance.uniform(0.0, 200.0)
        simulation.at(given_up_at, lambda: simulation.ask_to_stop(given_up=True))
    state = simulation.run()
    words = state.outcome.words if state.outcome else ""
    lost = {rank_exit.node for rank_exit in state.exits if rank_exit.lost}
    for node in simulation.nodes:
        named = node.name in words or node.name in lost
        assert not node.runs or named, (seed, node.name, state)
    failed = any(rank_exit.failed for rank_exit in state.exits)
    if state.outcome is None and state.stopped_for is None and not failed:
        ends = [node.exit.code if node.exit else None for node in simulation.nodes]
        assert ends == [0, 0, 0], (seed, state)
    if failed:
        assert orders(simulation), (seed, state)


def _draw(chance: random.Random, simulation: Simulation, node: SimulatedNode) -> None:
    if chance.random() < 0.1:
        node.faults[chance.choice([Step.PREPARE, Step.START])] = chance.choice(
            [NodeFault(node.name, "no space left"), NodesBusy(f"{node.name}: taken")]
        )
    if chance.random() < 0.1:
        node.left_pids = (41,)
    if chance.random() < 0.1:
        node.cannot_send = "PermissionError"
        node.cannot_tell_end = chance.random() < 0.3
    if chance.random() < 0.1:
        refused_at = chance.uniform(0.0, 80.0)
        node.refuses_login.append((refused_at, refused_at + 30.0))
    since = 0.0
    for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
        since += chance.expovariate(1 / 20.0)
        until = since + chance.expovariate(1 / 30.0)
        node.away.append((since, until))
        since = until
    code = chance.choice([0, 0, 0, 0, 0, 3])
    simulation.at(chance.uniform(1.0, 120.0), lambda: node.end(code=code))
