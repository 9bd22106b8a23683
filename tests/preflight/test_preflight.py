"""What is wrong with the machines is named with its remedy before a launch, or the launch works despite it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import Lab
from tests.hosts.conftest import home, one_node_is_away
from tests.hosts.helpers import faults, health
from tests.preflight.stage import Misfortune, Stage
from tests.preflight.table import HARMLESS, MISFORTUNES

__all__ = ["home", "one_node_is_away"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "preflight.md"


@pytest.fixture
def stage(home: Lab, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(home, tmp_path)
    yield made
    made.ugro.close()


@pytest.mark.usefixtures("one_node_is_away")
@pytest.mark.parametrize(
    "misfortune", [m for m in MISFORTUNES if m.named], ids=lambda m: m.key
)
def test_it_is_named_with_its_remedy(misfortune: Misfortune, stage: Stage) -> None:
    assert misfortune.named
    with misfortune.make(stage):
        code, answer = health(cluster=stage.cluster_file())
    found = faults(answer)
    node, check, cause, remedy = misfortune.named
    assert code == 5
    assert cause in found[node, check]
    assert remedy in found[node, check]


def test_a_launch_works_despite_all_that_does_no_harm(stage: Stage) -> None:
    with stage.names(), ExitStack() as all_at_once:
        for misfortune in HARMLESS:
            if not misfortune.needs or shutil.which(misfortune.needs):
                all_at_once.enter_context(misfortune.make(stage))
        stage.cluster_file()
        done = stage.ugro.run("launch", "--name", "despite", timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the sum is 6") == 3
    job = stage.ugro.job("despite")
    assert (job.folder / "outputs/0/sum").read_text() == "6\n"
    assert (
        json.loads((job.folder / "config.json").read_text())["plan"]["master_port"]
        == 29501
    )
    nodes = json.loads((stage.ugro.experiments / "cluster_state.json").read_text())[
        "nodes"
    ]
    assert [node["facts"]["resolves_to"] for node in nodes] == [
        "127.0.1.1",
        "10.8.0.5",
        None,
    ]


def test_keys_are_unique() -> None:
    assert len({misfortune.key for misfortune in MISFORTUNES}) == len(MISFORTUNES) > 15


@pytest.mark.parametrize("misfortune", MISFORTUNES, ids=lambda m: m.key)
def test_it_stands_in_the_documentation_as_it_is(misfortune: Misfortune) -> None:
    rows = [
        line.split(" | ")
        for line in DOCUMENT.read_text("utf-8").splitlines()
        if line.startswith("| ")
    ]
    (ours,) = [row[2] for row in rows if row[1] == misfortune.words]
    assert ours.startswith(
        f"`{misfortune.named[1]}` of " if misfortune.named else "works, in "
    )
