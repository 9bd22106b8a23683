"""A power cut at any moment of a launch, a restart and an end: the next agent brings the job to its end.

A job that was cut off before its launch had returned may be missing, but is never there in part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.agent.power_cut import (
    Act,
    Synced,
    Tree,
    materialise,
    outcomes,
    recorded,
)
from tests.unit.agent.world import DONE, FAILED, World
from tests.unit.backends.ssh.fake_hosts import FakeNode
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.node.protocol import LOG, METRICS
from ugro_tasks.reports.results import results
from ugro_tasks.reports.status import all_jobs, one_job

# The outcomes are too many for one test.
PARTS = 24
# What a node knows of its rank.
NODE_FACTS = ("exits", "exit", "runs", "folder", "_started")
LINE = b"a line of its log\n" * 9
METRICS_LINE = b'{"step": 1, "loss": 2.0}\n'
STREAMS = {LOG: LINE, METRICS: METRICS_LINE}


class Life(NamedTuple):
    """What was done in an experiments folder, and what the nodes knew after each act."""

    world: World
    root: int
    acts: list[Act]
    situations: list[list[dict[str, Any]]]

    def may_have_returned(self, done: int) -> bool:
        """Whether the launch may have, which synchronises the folder of all jobs last."""
        return Synced(self.root) in self.acts[:done]


class Cut(NamedTuple):
    """One outcome: how many acts were done before, and what is left."""

    done: int
    tree: Tree


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Return a launch, a restart and an end."""
    folder = tmp_path_factory.mktemp("power")
    (folder / "experiments").mkdir()
    nodes: list[FakeNode] = []

    def known() -> list[dict[str, Any]]:
        return [
            {name: getattr(node, name) for name in NODE_FACTS}
            | {"exits": list(node.exits)}
            for node in nodes
        ]

    with (
        pytest.MonkeyPatch.context() as patch,
        recorded(folder / "experiments", known, patch) as recorder,
    ):
        world = World(folder, max_restarts=1)
        nodes += world.nodes
        world.exits(None, DONE)
        world.nodes[1].exits = [FAILED, DONE]
        for node in world.nodes:
            node.streams = dict(STREAMS)
        assert world.run().phase is Phase.SUCCEEDED
    return Life(world, recorder.root, recorder.acts, recorder.situations)


@pytest.fixture(scope="module")
def cuts(life: Life) -> list[Cut]:
    """Return all outcomes that differ."""
    found: list[Cut] = []
    seen = set()
    for done in range(len(life.acts) + 1):
        for tree in outcomes(life.root, life.acts[:done]):
            key = frozenset(tree.items())
            if key not in seen:
                seen.add(key)
                found.append(Cut(done, tree))
    return found


def test_there_are_many_moments_and_outcomes(life: Life, cuts: list[Cut]) -> None:
    assert len(life.acts) > 200
    assert len(cuts) > 3 * len(life.acts)
    complete = {name for cut in cuts for name in cut.tree if name.endswith(".json")}
    assert {Path(name).name for name in complete} == {
        "config.json",
        "state.json",
        "cluster_state.json",
    }


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_a_power_cut_leaves_the_next_agent_brings_the_job_to_its_end(
    life: Life, cuts: list[Cut], tmp_path: Path, part: int
) -> None:
    for number, cut in enumerate(cuts[part::PARTS]):
        folder = tmp_path / str(number)
        materialise(cut.tree, folder)
        goes_on(life, cut, Experiments(folder))


def goes_on(life: Life, cut: Cut, experiments: Experiments) -> None:
    """Let the next agent go on with what it finds."""
    jobs = list(experiments.all())
    if not jobs:
        assert not life.may_have_returned(cut.done)
        return
    [job] = jobs
    before = job.state()
    ours, left_alone = experiments.to_supervise()
    assert left_alone == {}
    assert bool(ours) is not before.phase.finished
    world = life.world.again(experiments, job)
    if ours:
        revive(world.nodes, life.situations[cut.done - 1])
        world.run()
    state = job.state()
    assert (state.phase, state.exit_code) == (Phase.SUCCEEDED, 0), world.said()
    ran = sum(attempt.ran for attempt in state.attempts)
    for rank in range(3):
        assert job.log(rank).read() == LINE * ran, world.said()
    assert results(job).metrics.best["loss"].value == 2.0
    one_job(job, live=False)
    all_jobs(experiments, None)
    # Nothing is left to be mended.
    assert job.mend_torn_records() == []


def revive(nodes: list[FakeNode], known: list[dict[str, Any]]) -> None:
    """Let nodes know what they knew before the power cut, which was not theirs."""
    for node, facts in zip(nodes, known or [{"exits": [DONE]}] * 3, strict=True):
        for name, value in facts.items():
            setattr(node, name, value)
        node.exits = list(node.exits)
        node.streams = dict(STREAMS)
