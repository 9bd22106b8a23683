"""What a shell is offered after TAB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.factories import make_record, make_scripts
from ugro_tasks.cli.collection import ns
from ugro_tasks.cli.completion import complete
from ugro_tasks.cli.program import UgroProgram
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.jobs.experiments import Experiments

ROOT = Path(__file__).parents[3]
NODES = {"local0", "local1", "local2"}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of the one job of the folder where the shell is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UGRO_CLUSTER", "local")
    cluster = load_cluster("local")
    record = make_record(cluster, name="exp1")
    return (
        Experiments(cluster.experiments)
        .create(record, make_scripts(tmp_path / "scripts"))
        .job_id
    )


def offered(line: str) -> set[str]:
    return set(complete(ns, UgroProgram().initial_context, line))


def test_jobs_are_offered_where_a_job_is_meant(job: str) -> None:
    jobs = {"exp1", job}
    for line in (
        "ugro logs ",
        "ugro stop ex",
        "ugro status --live ex",
        "ugro clean exp1 ex",
        "ugro launch --resume ",
    ):
        assert jobs <= offered(line), line
    assert not jobs & offered("ugro health ")
    assert not jobs & offered("ugro launch --name ")


def test_nodes_are_offered_after_their_flag(job: str) -> None:
    assert offered("ugro launch --nodes ") == NODES
    assert offered("ugro health --cluster local --nodes loc") == NODES


def test_tasks_and_flags_are_offered_as_ever(job: str) -> None:
    assert offered("ugro ") == set(ns.task_names)
    assert {"--resume", "--no-sync", "-n"} <= offered("ugro launch -")
    assert {"--dry", "--list"} <= offered("ugro --")


def test_nothing_is_said_where_nothing_can_be_known(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ugro_tasks.cli.program", "--complete", "--", "ugro", "logs", "ex"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "UGRO_CLUSTER": "nowhere.yaml", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
