"""The gate of an attempt, with probes that see what a test tells them to and a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.factories import make_cluster, make_probe, make_record
from ugro_tasks.backends.ssh.gate import (
    Act,
    Admitted,
    EnvironmentsMade,
    Event,
    GateState,
    Look,
    MakeEnvironments,
    Probe,
    Probed,
    StopRemains,
    step,
)
from ugro_tasks.backends.ssh.loop import Begin, Common, Say, StopAsked, Tick
from ugro_tasks.cluster.model import Timeouts
from ugro_tasks.errors import (
    EnvironmentFault,
    Interrupted,
    NodesBusy,
    NotFit,
    UgroError,
)
from ugro_tasks.health.node_checks import Check
from ugro_tasks.health.report import ClusterHealth, NodeHealth
from ugro_tasks.jobs.outcome import Outcome
from ugro_tasks.jobs.phase import Phase

RETURN_SECONDS = 10.0
ALL = ("gpu0", "gpu1", "gpu2")
Seen = dict[str, str]  # {node: "away", "held" or "unfit"}; all others are well


class World:
    """A gate, what its probes saw one after the other, and what it did meanwhile, under a clock of its own."""

    def __init__(
        self, root: Path, *seen: Seen, force: bool = False, min_nodes: int | None = None
    ) -> None:
        timeouts = Timeouts(return_seconds=RETURN_SECONDS)
        self.cluster = make_cluster(root, timeouts=timeouts)
        self.record = make_record(
            self.cluster, force=force, min_nodes=min_nodes, sync=True
        )
        self.seen = list(seen)
        self.late: dict[str, str] = {}
        self.fault: UgroError | None = None
        self.probed: list[tuple[str, ...]] = []
        self.made: list[tuple[str, ...]] = []
        self.said: list[str] = []
        self.now = 0.0
        self.pauses: list[float] = []
        self.remains_stopped = 0
        # When a stop is asked for: at this look, or while environments are made.
        self.stop_at_probe = 0
        self.stop_while_made = False

    def first(self) -> Admitted | Outcome:
        return self._run(Look.FIRST)

    def again(self) -> Admitted | Outcome:
        return self._run(Look.BACK)

    def _run(self, look: Look) -> Admitted | Outcome:
        state = GateState(record=self.record, cluster=self.cluster, look=look)
        events: list[Event | Common] = [Begin()]
        while state.result is None:
            if not events:
                assert state.look_at is not None, "nothing is under way"
                self.pauses.append(round(state.look_at - self.now, 3))
                self.now = state.look_at
                events.append(Tick())
            state, acts = step(state, events.pop(0), self.now)
            for act in acts:
                events += self._carry_out(act)
        assert not events
        return state.result

    def _carry_out(self, act: Act) -> list[Event | Common]:
        match act:
            case Say():
                self.said.append(act.words)
                return []
            case MakeEnvironments():
                self.made.append(act.nodes)
                asked = [StopAsked()] if self.stop_while_made else []
                return [*asked, EnvironmentsMade(self.fault)]
            case StopRemains():
                self.remains_stopped += 1
                return self._look(tuple(node.name for node in self.cluster.nodes))
            case Probe():
                return self._look(act.nodes)

    def _look(self, names: tuple[str, ...]) -> list[Event | Common]:
        self.probed.append(names)
        seen = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        nodes = tuple(
            node_health(rank, name, seen.get(name)) for rank, name in enumerate(names)
        )
        health = ClusterHealth(
            cluster="lab", probed_at=1.0, seconds=0.1, nodes=nodes, across=()
        )
        late = self.late if not self.made else {}
        asked = [StopAsked()] if len(self.probed) == self.stop_at_probe else []
        return [*asked, Probed(health, late)]


def node_health(rank: int, name: str, wrong: str | None) -> NodeHealth:
    checks = {
        "away": Check(
            name="reachable", ok=False, value="no route to it", fix="look at the cable"
        ),
        "unfit": Check(name="disk", ok=False, value="1 GiB free", fix="inv clean"),
    }
    check = checks.get(wrong or "")
    interfaces = {"eth0": {"addresses": [f"10.0.0.{rank + 1}"], "mtu": 1500}}
    return NodeHealth(
        node=name,
        rank=rank,
        address=f"10.0.0.{rank + 1}",
        reachable=wrong != "away",
        held_by="held by job exp0" if wrong == "held" else None,
        checks=(check,) if check else (),
        facts=make_probe(interfaces=interfaces, free_port=29500),
    )


def admitted(result: Admitted | Outcome) -> Admitted:
    assert isinstance(result, Admitted), result
    return result


def refused(result: Admitted | Outcome | None) -> Outcome:
    assert isinstance(result, Outcome), result
    return result


# ---- the first attempt ----


def test_fit_nodes_are_admitted_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    assert admitted(world.first()).nodes == ALL
    assert len(world.probed) == 1


@pytest.mark.parametrize(
    ("wrong", "error"), [("away", NotFit), ("unfit", NotFit), ("held", NodesBusy)]
)
def test_what_is_wrong_at_first_refuses_the_job(
    tmp_path: Path, wrong: str, error: type[UgroError]
) -> None:
    outcome = refused(World(tmp_path, {"gpu1": wrong}).first())
    assert (outcome.phase, outcome.error) == (Phase.REFUSED, error)
    assert outcome.words.startswith("gpu1: ")


@pytest.mark.parametrize(
    ("wrong", "let_in"), [("unfit", True), ("away", False), ("held", False)]
)
def test_force_takes_what_is_unfit_but_there_and_free(
    tmp_path: Path, wrong: str, let_in: bool
) -> None:
    world = World(tmp_path, {"gpu1": wrong}, force=True)
    if let_in:
        assert admitted(world.first()).nodes == ALL
    else:
        assert refused(world.first()).phase is Phase.REFUSED


def test_a_stop_counts_for_more_than_what_is_wrong(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu1": "away"})
    world.stop_at_probe = 1
    outcome = refused(world.first())
    assert (outcome.phase, outcome.error) == (Phase.STOPPED, Interrupted)
    assert outcome.words == "before it started"


# ---- environments ----

LATE = {"gpu1": "made from another lock", "gpu2": "not made yet"}


def test_environments_that_are_behind_are_made_and_the_nodes_looked_at_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, {})
    world.late = LATE
    assert admitted(world.first()).nodes == ALL
    assert world.made == [("gpu1", "gpu2")]
    assert world.probed == [ALL, ALL]
    assert world.said[0] == "environment: made from another lock; it is rebuilt"


@pytest.mark.parametrize("wrong", ["away", "unfit", "held"])
def test_nothing_is_made_where_something_else_is_wrong(
    tmp_path: Path, wrong: str
) -> None:
    world = World(tmp_path, {"gpu0": wrong})
    world.late = LATE
    assert refused(world.first()).phase is Phase.REFUSED
    assert world.made == []


def test_what_is_wrong_once_they_are_made_refuses_the_job(tmp_path: Path) -> None:
    world = World(tmp_path, {}, {"gpu2": "away"})
    world.late = LATE
    assert refused(world.first()).error is NotFit
    assert world.made == [("gpu1", "gpu2")]


def test_an_environment_that_cannot_be_made_refuses_the_job(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.late = LATE
    world.fault = EnvironmentFault("gpu2: no such package: trch")
    outcome = refused(world.first())
    assert (outcome.phase, outcome.error) == (Phase.REFUSED, world.fault)
    assert len(world.probed) == 1


def test_a_stop_while_they_are_made_counts_for_more_than_their_fault(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, {})
    world.late = LATE
    world.fault = EnvironmentFault("gpu2: interrupted")
    world.stop_while_made = True
    outcome = refused(world.first())
    assert (outcome.phase, outcome.error) == (Phase.STOPPED, Interrupted)
    assert outcome.words.startswith("while environments were made")


# ---- a restart ----


def test_nodes_that_come_back_are_waited_for_with_growing_pauses(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, *[{"gpu1": "away"}] * 3, {"gpu2": "held"}, {})
    let_in = admitted(world.again())
    assert let_in.nodes == ALL
    assert let_in.left_behind == ()
    assert world.pauses == [0.5, 1.0, 2.0, 4.0]
    assert world.remains_stopped == 5
    assert world.said == ["waiting for gpu1, for 10 s at most"]


def test_after_a_while_it_goes_on_without_those_that_stay_away(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu1": "away"}, min_nodes=2)
    let_in = admitted(world.again())
    assert let_in.nodes == ("gpu0", "gpu2")
    assert let_in.left_behind == ("gpu1",)
    assert RETURN_SECONDS < world.now <= RETURN_SECONDS + 4.0
    assert world.said[-1] == "going on without gpu1"


def test_who_is_unfit_for_its_new_part_is_left_behind_as_well(tmp_path: Path) -> None:
    world = World(tmp_path, *[{"gpu0": "away"}] * 6, {"gpu1": "unfit"}, {}, min_nodes=1)
    let_in = admitted(world.again())
    assert world.probed[-2:] == [("gpu1", "gpu2"), ("gpu2",)]
    assert let_in.nodes == ("gpu2",)
    assert let_in.left_behind == ("gpu0", "gpu1")


def test_what_is_unfit_counts_only_once_all_are_there(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu0": "unfit", "gpu1": "away"}, {"gpu0": "unfit"}, {})
    assert admitted(world.again()).left_behind == ()
    assert world.said == ["waiting for gpu1, for 10 s at most"]


@pytest.mark.parametrize(
    ("away", "min_nodes"), [(["gpu1"], None), (["gpu1"], 3), (["gpu1", "gpu2"], 2)]
)
def test_with_fewer_nodes_than_allowed_the_job_ends(
    tmp_path: Path, away: Sequence[str], min_nodes: int | None
) -> None:
    world = World(tmp_path, dict.fromkeys(away, "away"), min_nodes=min_nodes)
    outcome = refused(world.again())
    assert (outcome.phase, outcome.error, outcome.final) == (Phase.FAILED, NotFit, True)
    first, *lines = outcome.words.splitlines()
    assert first == f"{', '.join(away)} did not come back:"
    assert lines == [f"{name}: reachable: no route to it" for name in away]


ALL_AWAY = dict.fromkeys(ALL, "away")


def test_while_no_node_answers_all_are_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, *[ALL_AWAY] * 20, {"gpu1": "away"}, {}, min_nodes=1)
    assert admitted(world.again()).nodes == ALL
    assert world.now > 5 * RETURN_SECONDS
    assert world.said == [
        "no node answers: is this machine offline? All are waited for",
        "waiting for gpu1, for 10 s at most",
    ]


def test_the_wait_for_a_node_begins_when_another_one_answers(tmp_path: Path) -> None:
    world = World(tmp_path, *[ALL_AWAY] * 20, {"gpu1": "away"}, min_nodes=2)
    assert admitted(world.again()).left_behind == ("gpu1",)
    offline_seconds = sum(world.pauses[:20])
    assert world.now - offline_seconds >= RETURN_SECONDS - 4.0


def test_a_machine_that_goes_offline_at_the_last_look_waits_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, *[{"gpu1": "away"}] * 6, ALL_AWAY, {}, min_nodes=1)
    assert admitted(world.again()).nodes == ALL


def test_a_lone_node_is_waited_for_until_it_is_back_or_a_stop_is_asked_for(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, {"gpu1": "away"})
    world.cluster = world.cluster.subset(["gpu1"])
    world.stop_at_probe = 50
    outcome = refused(world.again())
    assert outcome.phase is Phase.STOPPED
    assert world.now > 5 * RETURN_SECONDS


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu1": "away"})
    world.stop_at_probe = 3
    outcome = refused(world.again())
    assert (outcome.phase, outcome.words) == (Phase.STOPPED, "before it started again")
    assert world.pauses == [0.5, 1.0]


def test_a_stop_in_a_pause_does_not_wait_for_the_next_look(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu1": "away"})
    state = GateState(record=world.record, cluster=world.cluster, look=Look.BACK)
    begun, _ = step(state, Begin(), 0.0)
    health = ClusterHealth(
        cluster="lab",
        probed_at=1.0,
        seconds=0.1,
        nodes=(node_health(0, "gpu0", None), node_health(1, "gpu1", "away")),
        across=(),
    )
    waiting, _ = step(begun, Probed(health), 0.0)
    assert waiting.look_at == 0.5
    stopped, acts = step(waiting, StopAsked(), 0.1)
    assert refused(stopped.result).phase is Phase.STOPPED
    assert acts == []


def test_where_all_are_there_an_asked_stop_is_left_to_the_start(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.stop_at_probe = 1
    assert admitted(world.again()).nodes == ALL
