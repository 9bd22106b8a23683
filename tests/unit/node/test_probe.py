"""What a probe sees of a slot whose job begins or ends in that moment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.tools import wait_until
from ugro_tasks.node import probe
from ugro_tasks.node.lease import take_lease
from ugro_tasks.node.probe import holders
from ugro_tasks.node.processes import Process, of_slot, supervisor_argv


@pytest.fixture
def slot(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> str:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    return f"probe-{os.getpid()}-{home.name}"


@pytest.fixture
def rank(slot: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"PATH": os.environ["PATH"], "UGRO_TOKEN": f"exp1.c0ffee:gpu0:{slot}"}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        wait_until(lambda: bool(of_slot(slot)), "the rank to be seen")
        yield process
        process.kill()


def test_a_job_that_ended_between_two_looks_has_left_nothing(
    slot: str, rank: subprocess.Popen[bytes]
) -> None:
    seen = of_slot(slot)
    rank.kill()
    rank.wait()
    assert holders(slot, seen) == {"lease": None, "jobs": []}


def test_a_job_that_frees_its_lease_and_then_ends_has_left_nothing(
    slot: str, rank: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process frees its files a moment before it is gone."""
    looks = []

    def look(of: str, ours: list[Process]) -> tuple[None, list[Process]]:
        looks.append(of)
        if len(looks) == 2:
            rank.kill()
            rank.wait()
        return None, [process for process in ours if rank.poll() is None]

    monkeypatch.setattr(probe, "look_at_slot", look)
    assert holders(slot, of_slot(slot)) == {"lease": None, "jobs": []}
    assert looks == [slot, slot]


def test_what_goes_on_without_a_lease_is_told(
    slot: str, rank: subprocess.Popen[bytes]
) -> None:
    found = holders(slot, of_slot(slot))
    assert (found["lease"], [job["pid"] for job in found["jobs"]]) == (None, [rank.pid])


def test_a_supervisor_that_has_yet_to_take_its_lease_is_no_leftover(
    slot: str, tmp_path: Path
) -> None:
    """Under load it takes longer to start than a probe waits."""
    program = tmp_path / "node.zip"
    program.write_text("import time; time.sleep(60)")
    environment = {"PATH": os.environ["PATH"], "UGRO_TOKEN": f"exp1.c0ffee:gpu0:{slot}"}
    argv = supervisor_argv(str(program), str(tmp_path))
    with subprocess.Popen(argv, env=environment) as supervisor:
        wait_until(lambda: bool(of_slot(slot)), "the supervisor to be seen")
        free = holders(slot, of_slot(slot))
        with take_lease(slot, {"job": "exp1"}) or pytest.fail("it is free"):
            taken = holders(slot, of_slot(slot))
        supervisor.kill()
    assert free == {"lease": None, "jobs": []}
    assert [job["pid"] for job in taken["jobs"]] == [supervisor.pid]


def test_what_goes_on_with_a_lease_is_told(
    slot: str, rank: subprocess.Popen[bytes]
) -> None:
    lease = take_lease(slot, {"job": "exp1"})
    assert lease
    with lease:
        found = holders(slot, of_slot(slot))
    assert (found["lease"], [job["pid"] for job in found["jobs"]]) == (
        {"job": "exp1", "pid": os.getpid()},
        [rank.pid],
    )
