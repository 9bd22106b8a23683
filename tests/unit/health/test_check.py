"""The health of a cluster now: judged while nothing waits for it to be loaded, and kept."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.factories import make_cluster
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.errors import HostUnreachable
from ugro_tasks.health import check as health_check
from ugro_tasks.health.check import check, keep
from ugro_tasks.health.probe import Answers


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Nobody of it can be reached."""
    made = make_cluster(tmp_path, 2)
    away = {
        node.name: HostUnreachable(node.name, "no route", "plug it in")
        for node in made.nodes
    }
    answers = Answers(probed_at=time.time(), seconds=0.5, of={**away})
    monkeypatch.setattr(health_check, "probe", lambda _fleet, _cluster: answers)
    yield made
    log = logging.getLogger("ugro.health")
    for handler in log.handlers[:]:
        handler.close()
        log.removeHandler(handler)


def test_what_the_nodes_say_is_judged(cluster: Cluster) -> None:
    found = check(cluster)
    assert [(node.node, node.reachable) for node in found.nodes] == [
        ("gpu0", False),
        ("gpu1", False),
    ]
    assert not cluster.experiments.exists()


def test_what_is_kept_is_the_state_and_a_line_a_fault(cluster: Cluster) -> None:
    cluster.experiments.mkdir()
    keep(cluster, check(cluster))
    state = json.loads((cluster.experiments / "cluster_state.json").read_text())
    assert [node["node"] for node in state["nodes"]] == ["gpu0", "gpu1"]
    lines = (cluster.logs / "health.log").read_text().splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        "ugro.health - INFO - lab: not fit in 0.5 s",
        "ugro.health - WARNING - gpu0: reachable: no route",
        "ugro.health - WARNING - gpu1: reachable: no route",
    ]
