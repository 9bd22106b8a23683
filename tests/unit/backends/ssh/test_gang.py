"""A gang of three: all start or none does, the first failure stops the others, a lost node is waited for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.tools import wait_until
from tests.unit.backends.ssh.fake_hosts import FakeNode
from tests.unit.factories import (
    make_cluster,
    make_node_plan,
    make_plan_of,
    make_record,
    make_scripts,
)
from ugro_tasks.backends.api import AttemptEnd
from ugro_tasks.backends.ssh.gang_loop import Gang
from ugro_tasks.cluster.model import Timeouts
from ugro_tasks.errors import Interrupted, LaunchFailed, NodesBusy, StopUnproven
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.hosts.requests import Talks
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.outcome import Outcome, RankExit
from ugro_tasks.jobs.phase import Phase, Reason
from ugro_tasks.jobs.state import Attempt, JobState

STOP_GRACE_SECONDS = 7.0
BUSY = {"error": "busy", "message": "taken", "holder": {"job": "exp0"}}
NO_ROOM = {"error": "failed", "message": "no space left"}


class World:
    """A gang on three fake nodes."""

    def __init__(self, root: Path) -> None:
        timeouts = Timeouts(stop_grace_seconds=STOP_GRACE_SECONDS)
        cluster = make_cluster(root, timeouts=timeouts)
        scripts = make_scripts(root / "scripts")
        self.experiment = Experiments(root / "experiments").create(
            make_record(cluster), scripts
        )
        self.plan = make_plan_of(tuple(make_node_plan(rank) for rank in range(3)))
        nodes = tuple(node.name for node in cluster.nodes)
        attempt = Attempt(number=1, nodes=nodes, began_at=1.0, bases={})
        self.experiment.save_state(JobState(phase=Phase.QUEUED, attempts=(attempt,)))
        self.nodes = [FakeNode(node) for node in cluster.nodes]
        self.journal = Journal(self.experiment, logging.getLogger("test"))
        self.talks = Talks()
        fleet = Fleet.from_connections(self.nodes)
        self.gang = Gang(self.journal, cluster, fleet, self.plan, self.talks)

    def told(self) -> list[list[str]]:
        return [node.told for node in self.nodes]

    def state(self) -> JobState:
        """Give the state as it is in the folder, with all that was noted."""
        self.journal.settle()
        return self.experiment.state()

    def proven_gone(self) -> list[bool]:
        return [rank.proven_gone for rank in self.state().ranks]

    def said(self) -> list[str]:
        self.journal.settle()
        return [event.message for event in self.experiment.events()[0]]


class Run(threading.Thread):
    """`run_to_end` of a gang whose ranks all run, and what comes of it."""

    def __init__(self, world: World, away_seconds: float | None = None) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.away_seconds = away_seconds
        self.ends: list[AttemptEnd] = []
        assert world.gang.launch(begun_before=False) is None
        self.start()
        wait_until(
            lambda: all(r.connected for r in world.state().ranks),
            "all to be followed",
        )

    def run(self) -> None:
        """See it through."""
        self.ends.append(self.world.gang.run_to_end(self.away_seconds))

    def end(self) -> AttemptEnd:
        """Wait for its end."""
        self.join(30)
        [end] = self.ends
        return end

    def result(self) -> tuple[dict[str, RankExit], bool]:
        """Give {node: how its rank ended}, and whether a stop was asked for; the end is proven."""
        end = self.end()
        assert end.unproven is None
        asked = end.stopped_for is Reason.ASKED
        return {rank_exit.node: rank_exit for rank_exit in end.exits}, asked

    def outcome(self) -> Outcome:
        """Give the outcome of an end that is not proven."""
        end = self.end()
        assert end.unproven
        return end.unproven


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Three nodes on which nothing runs yet."""
    made = World(tmp_path)
    yield made
    made.talks.close()


def undone(world: World, *, begun_before: bool = False) -> Outcome:
    outcome = world.gang.launch(begun_before=begun_before)
    assert outcome
    return outcome


# ---- start ----


def test_all_are_prepared_before_any_is_started(world: World) -> None:
    world.nodes[2].delay_seconds["prepare"] = 0.2
    world.gang.launch(begun_before=False)
    assert world.told() == [["prepare", "start"]] * 3
    assert world.nodes[2].began["prepare"] + 0.2 <= min(
        node.began["start"] for node in world.nodes
    )
    state = world.state()
    assert state.phase is Phase.RUNNING
    assert state.started_at is not None
    assert state.attempts[-1].ran
    assert world.said() == ["rank 0 runs", "rank 1 runs", "rank 2 runs"]


def test_only_rank_0_is_told_of_the_rendezvous(world: World) -> None:
    world.gang.launch(begun_before=False)
    ports = [node.last("prepare")["rendezvous_port"] for node in world.nodes]
    assert ports == [world.plan.master_port, None, None]


# ---- undo ----


@pytest.mark.parametrize("operation", ["prepare", "start"])
def test_where_one_cannot_all_are_undone(world: World, operation: str) -> None:
    world.nodes[1].refuses[operation] = NO_ROOM
    outcome = undone(world)
    assert (outcome.phase, outcome.error) == (Phase.FAILED, LaunchFailed)
    assert outcome.words.startswith(
        f"the {operation} failed, so nothing runs anywhere:\ngpu1: "
    )
    assert [told[-1] for told in world.told()] == ["stop"] * 3
    assert [
        (n.last("stop")["reason"], n.last("stop")["discard"]) for n in world.nodes
    ] == [("undone", True)] * 3
    assert world.proven_gone() == [True] * 3
    if operation == "prepare":
        assert not any("start" in told for told in world.told())


def test_what_another_agent_had_begun_is_stopped_but_not_discarded(
    world: World,
) -> None:
    world.nodes[1].refuses["start"] = NO_ROOM
    undone(world, begun_before=True)
    assert [node.last("stop")["discard"] for node in world.nodes] == [False] * 3
    # gpu0 says that its rank had begun.
    assert world.state().attempts[-1].ran


def test_taken_nodes_refuse_the_job(world: World) -> None:
    for node in world.nodes[1:]:
        node.refuses["prepare"] = BUSY
    outcome = undone(world)
    assert (outcome.phase, outcome.error) == (Phase.REFUSED, NodesBusy)
    assert outcome.words == "gpu1: held by job exp0\ngpu2: held by job exp0"


def test_one_fault_besides_makes_it_a_failure(world: World) -> None:
    world.nodes[1].refuses["prepare"] = BUSY
    world.nodes[2].refuses["prepare"] = NO_ROOM
    assert undone(world).error is LaunchFailed


def test_a_stop_before_the_start_undoes_what_was_prepared(world: World) -> None:
    world.experiment.ask_to_stop()
    outcome = undone(world)
    assert (outcome.phase, outcome.error) == (Phase.STOPPED, Interrupted)
    assert world.told() == [["prepare", "stop"]] * 3


def test_an_undo_that_leaves_something_says_so(world: World) -> None:
    world.nodes[1].refuses["prepare"] = NO_ROOM
    world.nodes[2].left_pids = [41]
    outcome = undone(world)
    assert (outcome.phase, outcome.error) == (Phase.FAILED, StopUnproven)
    assert outcome.words.splitlines()[-1] == "gpu2: still there after KILL: pids 41"
    assert world.proven_gone() == [True, True, False]


# ---- to the end ----


def test_a_success_is_three_exits_without_a_stop(world: World) -> None:
    seen = Run(world)
    for node in world.nodes:
        node.end(code=0, outputs=["model.bin"])
    ends, asked = seen.result()
    assert not asked
    assert [ends[name].code for name in ("gpu0", "gpu1", "gpu2")] == [0, 0, 0]
    assert not any("stop" in told for told in world.told())
    assert seen.end().wrote == tuple(ends)


@pytest.mark.parametrize("record", [{"code": 3}, {"signal": 9}])
def test_the_first_failure_stops_the_others(
    world: World, record: dict[str, Any]
) -> None:
    seen = Run(world)
    world.nodes[1].end(**record)
    ends, asked = seen.result()
    assert not asked
    assert [name for name, end in ends.items() if end.failed] == ["gpu1"]
    assert {name: end.stopped for name, end in ends.items()} == {
        "gpu0": "failure",
        "gpu1": None,
        "gpu2": "failure",
    }
    assert [node.last("stop")["grace_seconds"] for node in world.nodes] == [2.0] * 3
    assert "a rank failed: stopping the others" in world.said()
    assert world.proven_gone() == [True] * 3


def test_an_asked_stop_reaches_all_with_the_grace_of_the_cluster_file(
    world: World,
) -> None:
    seen = Run(world)
    world.experiment.ask_to_stop()
    ends, asked = seen.result()
    assert asked
    assert {end.stopped for end in ends.values()} == {"asked"}
    assert [node.last("stop")["grace_seconds"] for node in world.nodes] == [
        STOP_GRACE_SECONDS
    ] * 3
    assert world.state().phase is Phase.STOPPING


@pytest.mark.parametrize(
    ("begin", "phase"),
    [
        (lambda world: world.experiment.ask_to_stop(), Phase.STOPPED),
        (lambda world: world.nodes[0].end(code=3), Phase.FAILED),
    ],
    ids=["asked", "failure"],
)
def test_a_stop_that_is_not_proven_is_the_outcome(
    world: World, begin: Callable[[World], None], phase: Phase
) -> None:
    world.nodes[2].left_pids = [41, 42]
    seen = Run(world)
    begin(world)
    outcome = seen.outcome()
    assert (outcome.phase, outcome.error) == (phase, StopUnproven)
    assert outcome.words == "gpu2: still there after KILL: pids 41, 42"
    assert world.state().ranks[2].left_pids == (41, 42)


# ---- a lost node ----


def test_a_node_out_of_reach_is_waited_for(world: World) -> None:
    seen = Run(world)
    world.nodes[2].cut()
    wait_until(lambda: not world.state().ranks[2].connected, "the loss to be seen")
    world.nodes[2].mend()
    for node in world.nodes:
        node.end(code=0)
    ends, _ = seen.result()
    assert {end.code for end in ends.values()} == {0}
    assert any(words.startswith("connected again after") for words in world.said())


def test_with_a_limit_a_node_out_of_reach_counts_as_lost_and_the_others_are_stopped(
    world: World,
) -> None:
    seen = Run(world, away_seconds=0.2)
    world.nodes[2].cut()
    ends, asked = seen.result()
    assert not asked
    assert ends["gpu2"].gave_up
    assert ends["gpu2"].lost == "gpu2 has been out of reach for 0.2 s"
    assert [ends[name].stopped for name in ("gpu0", "gpu1")] == ["failure"] * 2
    assert world.proven_gone() == [True, True, False]


def test_a_stop_waits_for_a_node_that_was_cut_off(world: World) -> None:
    seen = Run(world)
    world.nodes[2].cut()
    world.experiment.ask_to_stop()
    wait_until(
        lambda: any("cannot be told to stop" in words for words in world.said()),
        "the first try",
    )
    assert seen.is_alive()
    world.nodes[2].mend()
    ends, asked = seen.result()
    assert asked
    assert ends["gpu2"].stopped == "asked"
    assert world.proven_gone() == [True] * 3


def test_a_job_that_was_given_up_does_not_wait_for_it(world: World) -> None:
    seen = Run(world)
    world.nodes[2].cut()
    world.experiment.ask_to_stop(give_up=True)
    outcome = seen.outcome()
    assert (outcome.phase, outcome.error) == (Phase.STOPPED, StopUnproven)
    assert (
        "it could not be told to stop; later: inv reset --nodes gpu2" in outcome.words
    )
    assert world.proven_gone() == [True, True, False]
