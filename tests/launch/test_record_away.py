"""The record of a job is taken away in mid-run: ranks go on, failures and stops act, and it is whole at last."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import LabHost
from lab.tools import remove_in_use, wait_until
from lab.ugro import Job, Ugro
from tests.chaos.home import fill

Undo = Callable[[], None]
DISK = "16m"
DISK_FILES = 400
# On an idle machine it is one or two; by themselves the other ranks go on for minutes.
SOON_SECONDS = 15


class Disk:
    """The disk of an experiments folder: a tmpfs that is mounted there, and at a second place that nobody looks at."""

    def __init__(self, experiments: Path) -> None:
        self.experiments = experiments
        self.spare = experiments.parent / "spare"
        experiments.mkdir()
        self.spare.mkdir()
        size = f"size={DISK},nr_inodes={DISK_FILES}"
        self.run("mount", "-t", "tmpfs", "-o", size, "none", str(self.spare))
        self.mount()

    def run(self, *argv: str) -> None:
        subprocess.run(argv, check=True, capture_output=True, timeout=30)

    def mount(self) -> None:
        self.run("mount", "--bind", str(self.spare), str(self.experiments))

    def close(self) -> None:
        for place in (self.experiments, self.spare):
            while os.path.ismount(place):
                self.run("umount", "--lazy", str(place))

    # ---- what may happen to it; each gives what undoes it ----

    def unmount(self, _job: Job) -> Undo:
        self.run("umount", "--lazy", str(self.experiments))
        return self.mount

    def fill_up(self, _job: Job) -> Undo:
        def resize(size: int | str) -> None:
            self.run("mount", "-o", f"remount,size={size}", str(self.spare))

        fill(self.spare, resize)
        return lambda: resize(DISK)

    def take_inodes(self, _job: Job) -> Undo:
        taken = self.spare / "taken"
        taken.mkdir()
        with contextlib.suppress(OSError):
            for number in range(DISK_FILES):
                (taken / str(number)).touch()
        return lambda: shutil.rmtree(taken)

    def make_read_only(self, _job: Job) -> Undo:
        """Make it so for commands; the agent has it open as it was."""
        place = str(self.experiments)
        self.run("mount", "--bind", place, place)
        self.run("mount", "-o", "remount,bind,ro", place)
        return lambda: self.run("umount", "--lazy", place)

    def move_job(self, job: Job) -> Undo:
        archive = self.experiments / "archive"
        archive.mkdir()
        job.folder.rename(archive / job.folder.name)

        def undo() -> None:
            (archive / job.folder.name).rename(job.folder)

        return undo

    def replace_job(self, job: Job) -> Undo:
        """Move and rename the job's folder, and put another one in its place."""
        moved = self.experiments / "elsewhere" / "deep"
        moved.mkdir(parents=True)
        job.folder.rename(moved / "renamed")
        job.folder.mkdir()

        def undo() -> None:
            job.folder.rmdir()
            (moved / "renamed").rename(job.folder)

        return undo


TAKEN = (
    Disk.unmount,
    Disk.make_read_only,
    Disk.fill_up,
    Disk.take_inodes,
    Disk.move_job,
    Disk.replace_job,
)
any_way = pytest.mark.parametrize("take", TAKEN, ids=lambda take: take.__name__)


@pytest.fixture
def disk(ugro: Ugro) -> Iterator[Disk]:
    made = Disk(ugro.experiments)
    yield made
    ugro.close()
    made.close()


def running(ugro: Ugro, seconds: float, *more: str) -> Job:
    job = ugro.detach("exp1", f"--seconds {seconds}", *more)
    job.wait_for_log("step 1", rank=1)
    return job


@any_way
def test_the_ranks_go_on_and_the_record_is_whole_when_it_is_back(
    ugro: Ugro, disk: Disk, take: Callable[[Disk, Job], Undo]
) -> None:
    job = running(ugro, 8)
    undo = take(disk, job)
    time.sleep(3)  # an agent that takes this for a stop has acted by now
    assert len(job.left()) >= 6
    wait_until(lambda: not job.left(), "the ranks to end by themselves", 60)
    undo()
    state = job.wait_for("succeeded", "failed", "stopped")
    assert (state["state"], len(state["attempts"])) == ("succeeded", 1)
    assert all(there == here for there, here in job.digests())


@any_way
def test_a_failure_stops_the_others_all_the_same(
    ugro: Ugro, hosts: list[LabHost], disk: Disk, take: Callable[[Disk, Job], Undo]
) -> None:
    job = running(ugro, 600)
    undo = take(disk, job)
    hosts[1].kill(job.pid(hosts[1], "rehearse.py"))
    assert job.seconds_until_gone(limit=SOON_SECONDS) < SOON_SECONDS
    undo()
    state = job.wait_for("failed")
    assert state["cause"]["node"] == "lab1"
    assert all(there == here for there, here in job.digests())


@pytest.mark.parametrize("take", [Disk.fill_up, Disk.take_inodes])
def test_a_stop_acts_all_the_same(
    ugro: Ugro, disk: Disk, take: Callable[[Disk, Job], Undo]
) -> None:
    job = running(ugro, 600)
    undo = take(disk, job)
    stop = ugro.start("stop", "exp1")
    assert job.seconds_until_gone(limit=SOON_SECONDS) < SOON_SECONDS
    undo()
    out, err = stop.communicate(timeout=60)
    assert stop.returncode == 0, out + err
    assert job.wait_for("stopped")["reason"] == "asked"


def test_a_deleted_record_is_said_and_ends_no_rank(ugro: Ugro, disk: Disk) -> None:
    job = running(ugro, 8)
    remove_in_use(job.folder)
    time.sleep(3)
    assert len(job.left()) >= 6
    wait_until(lambda: not job.left(), "the ranks to end by themselves", 60)
    assert f"inv stop {job.folder.name}" in (ugro.folder / "logs/agent.log").read_text()
    assert not job.folder.exists()


def test_a_disk_that_takes_no_request_keeps_no_stop_from_the_nodes(
    ugro: Ugro, disk: Disk
) -> None:
    job = running(ugro, 600)
    undo = disk.make_read_only(job)
    done = ugro.run("stop", "exp1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Read-only file system" in done.stderr
    assert "ended pid" in done.stdout
    assert not job.left()
    undo()
    assert job.wait_for("stopped", "failed")["reason"] == "reset"


@pytest.mark.parametrize("back", [False, True])
def test_a_job_without_a_record_is_stopped_by_its_id(
    ugro: Ugro, disk: Disk, back: bool
) -> None:
    job = running(ugro, 600)
    archive = ugro.folder / "archive"
    if back:
        undo = disk.move_job(job)
    else:
        shutil.move(job.folder, archive)  # to another disk, so it is deleted here
    assert job.folder.name in ugro.run("health").stdout
    done = ugro.run("stop", job.folder.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended pid" in done.stdout
    wait_until(lambda: not job.left(), "the ranks to end", SOON_SECONDS)
    again = ugro.run("stop", job.folder.name)
    assert again.returncode == 4
    assert "no node has anything of it" in again.stderr
    if back:
        undo()
        assert job.wait_for("stopped", "failed")["reason"] == "reset"
