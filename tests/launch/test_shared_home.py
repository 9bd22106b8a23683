"""Nodes whose homes, or folders of UGRO's, are one and the same, as over NFS. A bind mount stands for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import LabHost
from lab.tools import wait_until
from lab.ugro import Ugro

SHARED = {"home": (".ugro", "ugro"), "project": ("ugro",)}


@pytest.fixture(params=list(SHARED))
def shared(
    request: pytest.FixtureRequest, ugro: Ugro, hosts: list[LabHost], tmp_path: Path
) -> Iterator[Path]:
    """What the first two hosts have in common; their own folders are back afterwards."""
    common = tmp_path / "common"
    names = SHARED[request.param]
    with contextlib.ExitStack() as after:
        for host in ugro.hosts:
            for name in names:
                (common / name).mkdir(parents=True, exist_ok=True)
                place = f"{host.home}/{name}"
                host.run(["mount", "--bind", str(common / name), place])
                after.callback(host.run, ["umount", "--lazy", place])
        after.callback(ugro.close)
        yield common


def test_a_job_runs_on_nodes_that_share_a_home_and_comes_home_whole(
    ugro: Ugro, shared: Path
) -> None:
    health = ugro.run("health")
    assert health.returncode == 0, health.stdout
    done = ugro.launch("together", "--seconds 1")
    assert done.returncode == 0, done.stderr + done.stdout
    job = ugro.job("together")
    assert job.state()["gathered_at"]
    for rank in (0, 1):
        log = (job.folder / "logs" / f"training_rank{rank}.log").read_text()
        assert f"rank {rank} of 2" in log
        assert f"rank {1 - rank} of 2" not in log
        weights = job.folder / "outputs" / str(rank) / "checkpoints" / "last.pt"
        assert weights.read_bytes() == b"weights of rank %d" % rank
    names = sorted(path.name for path in (shared / "ugro/jobs").iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["lab0", "lab1"]
    told = json.loads(ugro.run("clean", "together", "--json").stdout)
    assert [removal["where"] for removal in told["removals"]] == ["lab0", "lab1"]
    assert told["foreign"] == {}
    assert list((shared / "ugro/jobs").iterdir()) == []


def test_a_second_job_on_nodes_that_share_a_home_is_refused_with_the_first_one_named(
    ugro: Ugro, hosts: list[LabHost], shared: Path
) -> None:
    first = ugro.detach("first", "--seconds 60")
    second = ugro.launch("second", "--seconds 1", "--nodes", "lab1")
    assert second.returncode == 6
    assert f"lab1: held by job {first.folder.name}" in second.stderr
    assert ugro.run("stop", "first").returncode == 0
    assert ugro.launch("third", "--seconds 0.1").returncode == 0


def test_a_restart_on_nodes_that_share_a_home_goes_on(
    ugro: Ugro, hosts: list[LabHost], shared: Path
) -> None:
    job = ugro.detach("again", "--seconds 3", "--max-restarts", "1")
    job.wait_for_log("step 1", rank=1)
    hosts[1].kill(job.pid(hosts[1], "rehearse.py"))
    assert job.wait_for("succeeded", "failed")["state"] == "succeeded"
    wait_until(lambda: job.state()["gathered_at"], "the job to be home")
    names = {path.name for path in (shared / "ugro/jobs").iterdir()}
    assert {name.partition("-2")[2] for name in names if "-2" in name} == {
        ".lab0",
        ".lab1",
    }
