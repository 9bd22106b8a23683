"""Nodes that were left behind are told to stop once they are back."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from lab.tools import wait_until
from tests.unit.backends.ssh.fake_hosts import Answer, FakeHost
from tests.unit.factories import make_cluster, make_record, make_scripts
from ugro_tasks.backends.ssh.late_stop import LateStops, left_behind
from ugro_tasks.errors import HostUnreachable
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.state import Attempt, JobState

ALL = ("gpu0", "gpu1", "gpu2")
GONE: dict[str, Any] = {"left": [], "exit": None}
LEFT: dict[str, Any] = {
    "left": [
        {"pid": 41, "job": "exp1", "token": "exp1:gpu1:slot", "command": "python"}
    ],
    "exit": None,
}
AWAY = HostUnreachable("gpu1", "no route to it")


def attempt(
    number: int,
    nodes: tuple[str, ...] = ALL,
    *,
    without: tuple[str, ...] = (),
    ended: bool = True,
) -> Attempt:
    return Attempt(
        number=number,
        nodes=nodes,
        began_at=1.0,
        bases={},
        ended_at=2.0 if ended else None,
        left_behind=without,
    )


class World:
    """The late stops of a job whose first attempt left gpu1 behind."""

    def __init__(self, root: Path, *answers: Answer) -> None:
        cluster = make_cluster(root)
        record = make_record(cluster)
        self.experiment: Experiment = Experiments(root / "experiments").create(
            record, make_scripts(root / "scripts")
        )
        attempts = (
            attempt(1, without=("gpu1",)),
            attempt(2, ("gpu0", "gpu2"), ended=False),
        )
        self.experiment.save_state(JobState(phase=Phase.RUNNING, attempts=attempts))
        self.hosts = [FakeHost(node, *answers) for node in cluster.nodes]
        self.journal = Journal(self.experiment, logging.getLogger("test"))
        self.may_try_again = threading.Event()
        self.stops = LateStops(
            self.journal, Fleet.from_connections(self.hosts), sleep=self._sleep
        )

    def _sleep(self, seconds: float) -> None:
        assert self.may_try_again.wait(30), seconds

    def said(self) -> list[tuple[str | None, str]]:
        self.journal.settle()
        return [(event.node, event.message) for event in self.experiment.events()[0]]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (GONE, "is back; nothing of the job is left there"),
        (LEFT, "is back; still there after KILL: pids 41"),
    ],
)
def test_a_node_that_is_back_is_told_to_stop_the_attempt_that_it_was_part_of(
    tmp_path: Path, answer: dict[str, Any], said: str
) -> None:
    world = World(tmp_path, AWAY, answer)
    world.stops.begin()
    wait_until(lambda: len(world.hosts[1].requests) == 1, "the first try")
    assert world.stops.still_away() == {"gpu1"}
    world.may_try_again.set()
    wait_until(lambda: not world.stops.still_away(), "the node to have answered")
    assert world.said() == [("gpu1", said)]
    record = world.experiment.record()
    assert [
        request["token"].partition(":")[0] for request in world.hosts[1].requests
    ] == [f"{record.job_id}.{record.nonce}"] * 2
    assert [len(host.requests) for host in world.hosts] == [0, 2, 0]


def test_a_node_is_told_by_one_at_a_time(tmp_path: Path) -> None:
    world = World(tmp_path, AWAY, GONE)
    world.stops.begin()
    world.stops.begin()
    world.may_try_again.set()
    wait_until(lambda: not world.stops.still_away(), "the node to have answered")
    assert len(world.hosts[1].requests) == 2


def test_even_a_job_that_was_given_up_has_its_late_stops(tmp_path: Path) -> None:
    world = World(tmp_path, AWAY, AWAY, GONE)
    world.experiment.ask_to_stop(give_up=True)
    world.may_try_again.set()
    world.stops.begin()
    wait_until(lambda: not world.stops.still_away(), "the node to have answered")
    assert world.said() == [("gpu1", "is back; nothing of the job is left there")]


@pytest.mark.parametrize(
    ("attempts", "found"),
    [
        ([], {}),
        ([attempt(1, ended=False)], {}),
        ([attempt(1, without=("gpu1",))], {"gpu1": 1}),
        ([attempt(1), attempt(2, without=("gpu0", "gpu1"))], {"gpu0": 2, "gpu1": 2}),
        ([attempt(1, without=("gpu1",)), attempt(2, ("gpu0", "gpu2"))], {"gpu1": 1}),
        # It came back for the next attempt but one, which is under way.
        (
            [
                attempt(1, without=("gpu1",)),
                attempt(2, ("gpu0", "gpu2")),
                attempt(3, ended=False),
            ],
            {},
        ),
        (
            [attempt(1, without=("gpu1",)), attempt(2, ("gpu0", "gpu2")), attempt(3)],
            {"gpu1": 3},
        ),
    ],
)
def test_who_was_left_behind_and_with_which_attempt(
    attempts: list[Attempt], found: dict[str, int]
) -> None:
    assert left_behind(attempts) == found
