"""The gate of an attempt, with probes that see what a test tells them to and a clock of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.unit.factories import make_cluster, make_record, make_scripts
from ugro_tasks.backends.ssh.gate import Admitted, Gate
from ugro_tasks.cluster.model import Cluster, Timeouts
from ugro_tasks.errors import Interrupted, NodesBusy, NotFit, UgroError
from ugro_tasks.health.node_checks import Check
from ugro_tasks.health.report import ClusterHealth, NodeHealth
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.outcome import CutShort, Outcome
from ugro_tasks.jobs.state import Phase

RETURN_SECONDS = 10.0
Seen = dict[str, str]  # {node: "away", "held" or "unfit"}; all others are well


class World:
    """A gate, what its probes saw one after the other, and what it did meanwhile."""

    def __init__(
        self, root: Path, *seen: Seen, force: bool = False, min_nodes: int | None = None
    ) -> None:
        timeouts = Timeouts(return_seconds=RETURN_SECONDS)
        self.cluster = make_cluster(root, timeouts=timeouts)
        record = make_record(self.cluster, force=force, min_nodes=min_nodes, sync=False)
        self.experiment = Experiments(root / "experiments").create(
            record, make_scripts(root / "scripts")
        )
        self.seen = list(seen)
        self.probed: list[tuple[str, ...]] = []
        self.now = 0.0
        self.pauses: list[float] = []
        self.remains_stopped = 0
        self.on_probe: Callable[[], None] = lambda: None
        journal = Journal(self.experiment, logging.getLogger("test"))
        fleet = Fleet.of(self.cluster)
        self.gate = Gate(
            journal,
            self.cluster,
            fleet,
            self._probe,
            clock=self._clock,
            sleep=self._sleep,
        )

    def again(self) -> Admitted:
        return self.gate.admit_again(self._stop_remains)

    def said(self) -> list[str]:
        return [event.message for event in self.experiment.events()[0]]

    def _probe(self, fleet: Fleet, cluster: Cluster) -> ClusterHealth:
        assert [host.node for host in fleet] == list(cluster.nodes)
        names = tuple(node.name for node in cluster.nodes)
        self.probed.append(names)
        self.on_probe()
        seen = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        nodes = tuple(
            node_health(rank, name, seen.get(name)) for rank, name in enumerate(names)
        )
        return ClusterHealth(
            cluster="lab", probed_at=1.0, seconds=0.1, nodes=nodes, across=()
        )

    def _clock(self) -> float:
        return self.now

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def _stop_remains(self) -> None:
        self.remains_stopped += 1


def node_health(rank: int, name: str, wrong: str | None) -> NodeHealth:
    checks = {
        "away": Check(
            name="reachable", ok=False, value="no route to it", fix="look at the cable"
        ),
        "unfit": Check(name="disk", ok=False, value="1 GiB free", fix="inv clean"),
    }
    check = checks.get(wrong or "")
    return NodeHealth(
        node=name,
        rank=rank,
        address=f"10.0.0.{rank + 1}",
        reachable=wrong != "away",
        held_by="held by job exp0" if wrong == "held" else None,
        checks=(check,) if check else (),
    )


def names_of(admitted: Admitted) -> list[str]:
    assert [host.node for host in admitted.fleet] == list(admitted.cluster.nodes)
    return [node.name for node in admitted.cluster.nodes]


def refused(admit: Callable[[], Admitted]) -> Outcome:
    with pytest.raises(CutShort) as cut_short:
        admit()
    return cut_short.value.outcome


# ---- the first attempt ----


def test_fit_nodes_are_admitted_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    assert names_of(world.gate.admit_first()) == ["gpu0", "gpu1", "gpu2"]
    assert len(world.probed) == 1


@pytest.mark.parametrize(
    ("wrong", "error"), [("away", NotFit), ("unfit", NotFit), ("held", NodesBusy)]
)
def test_what_is_wrong_at_first_refuses_the_job(
    tmp_path: Path, wrong: str, error: type[UgroError]
) -> None:
    outcome = refused(World(tmp_path, {"gpu1": wrong}).gate.admit_first)
    assert (outcome.phase, outcome.error) == (Phase.REFUSED, error)
    assert outcome.words.startswith("gpu1: ")


@pytest.mark.parametrize(
    ("wrong", "admitted"), [("unfit", True), ("away", False), ("held", False)]
)
def test_force_takes_what_is_unfit_but_there_and_free(
    tmp_path: Path, wrong: str, admitted: bool
) -> None:
    world = World(tmp_path, {"gpu1": wrong}, force=True)
    if admitted:
        assert names_of(world.gate.admit_first()) == ["gpu0", "gpu1", "gpu2"]
    else:
        assert refused(world.gate.admit_first).phase is Phase.REFUSED


def test_a_stop_counts_for_more_than_what_is_wrong(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu1": "away"})
    world.on_probe = world.experiment.ask_to_stop
    outcome = refused(world.gate.admit_first)
    assert (outcome.phase, outcome.error) == (Phase.STOPPED, Interrupted)
    assert outcome.words == "before it started"


# ---- a restart ----


def test_nodes_that_come_back_are_waited_for_with_growing_pauses(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, *[{"gpu1": "away"}] * 3, {"gpu2": "held"}, {})
    admitted = world.again()
    assert names_of(admitted) == ["gpu0", "gpu1", "gpu2"]
    assert admitted.left_behind == ()
    assert world.pauses == [0.5, 1.0, 2.0, 4.0]
    assert world.remains_stopped == 5
    assert world.said() == ["waiting for gpu1, for 10 s at most"]


def test_after_a_while_it_goes_on_without_those_that_stay_away(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu1": "away"}, min_nodes=2)
    admitted = world.again()
    assert names_of(admitted) == ["gpu0", "gpu2"]
    assert [node.rank for node in admitted.cluster.nodes] == [0, 1]
    assert admitted.left_behind == ("gpu1",)
    assert RETURN_SECONDS < world.now <= RETURN_SECONDS + 4.0
    assert world.said()[-1] == "going on without gpu1"


def test_who_is_unfit_for_its_new_part_is_left_behind_as_well(tmp_path: Path) -> None:
    world = World(tmp_path, *[{"gpu0": "away"}] * 6, {"gpu1": "unfit"}, {}, min_nodes=1)
    admitted = world.again()
    assert world.probed[-2:] == [("gpu1", "gpu2"), ("gpu2",)]
    assert names_of(admitted) == ["gpu2"]
    assert admitted.left_behind == ("gpu0", "gpu1")


def test_what_is_unfit_counts_only_once_all_are_there(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu0": "unfit", "gpu1": "away"}, {"gpu0": "unfit"}, {})
    assert world.again().left_behind == ()
    assert world.said() == ["waiting for gpu1, for 10 s at most"]


@pytest.mark.parametrize(
    ("away", "min_nodes"), [(["gpu1"], None), (["gpu1"], 3), (["gpu1", "gpu2"], 2)]
)
def test_with_fewer_nodes_than_allowed_the_job_ends(
    tmp_path: Path, away: Sequence[str], min_nodes: int | None
) -> None:
    world = World(tmp_path, dict.fromkeys(away, "away"), min_nodes=min_nodes)
    outcome = refused(world.again)
    assert (outcome.phase, outcome.error, outcome.final) == (Phase.FAILED, NotFit, True)
    first, *lines = outcome.words.splitlines()
    assert first == f"{', '.join(away)} did not come back:"
    assert lines == [f"{name}: reachable: no route to it" for name in away]


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    world = World(tmp_path, {"gpu1": "away"})
    world.on_probe = lambda: (
        world.experiment.ask_to_stop() if len(world.probed) == 3 else None
    )
    outcome = refused(world.again)
    assert (outcome.phase, outcome.words) == (Phase.STOPPED, "before it started again")
    assert world.pauses == [0.5, 1.0]


def test_where_all_are_there_an_asked_stop_is_left_to_the_start(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.experiment.ask_to_stop()
    assert names_of(world.again()) == ["gpu0", "gpu1", "gpu2"]
