"""File systems without locks, as NFS and some FUSE ones are. A preloaded library stands for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import LabHost
from lab.ugro import Ugro

SOURCE = Path(__file__).with_name("no_locks.c")
pytestmark = pytest.mark.needs("cc")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Build the library; the hosts see it at the same path."""
    built = tmp_path / "no_locks.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, SOURCE], check=True)
    return built


@pytest.fixture
def without_locks(ugro: Ugro, library: Path) -> Iterator[Ugro]:
    """UGRO with nodes on which nothing can be locked, whatever a login starts."""
    for host in ugro.hosts:
        host.path(".bashrc").write_text(f"export LD_PRELOAD={library}\n")
    yield ugro
    for host in ugro.hosts:
        host.remove(".bashrc")


def test_nodes_without_locks_run_a_job_and_refuse_a_second_one(
    without_locks: Ugro, hosts: list[LabHost]
) -> None:
    refused = hosts[0].ssh(["flock", "/tmp", "true"], check=False)
    assert "No locks available" in refused.stderr
    job = without_locks.detach("first", "--seconds 5")
    second = without_locks.launch("second", "--seconds 1", "--nodes", "lab1")
    assert second.returncode == 6
    assert f"lab1: held by job {job.folder.name}" in second.stderr
    assert job.wait_for("succeeded", "failed")["state"] == "succeeded"
    assert all(there == here for there, here in job.digests())
    assert without_locks.launch("third", "--seconds 0").returncode == 0


def test_an_experiments_folder_without_locks_is_a_fault_of_its_own(
    ugro: Ugro, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ugro, "environ", {"LD_PRELOAD": str(library)})
    done = ugro.launch("exp1")
    assert done.returncode == 12
    assert "its file system has no locks (No locks available)" in done.stderr
    assert "Let paths.experiments be on a local disk" in done.stderr
    assert list(ugro.experiments.glob("exp1_*")) == []
    assert ugro.agent_pid() == 0
