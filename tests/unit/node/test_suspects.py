"""Processes that may be a rank's: what is suspicious, and what is not. With a real systemd: tests/logind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.tools import wait_until
from ugro_tasks.node.processes import stat_of
from ugro_tasks.node.suspects import suspects, suspicion, younger

TOKEN = "exp1_20260120_120000.c0ffee00:gpu0:suspects"
Start = Callable[..., int]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Start a process that sleeps, in a folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    started = []

    def start(folder: Path, **options: bool) -> int:
        process = subprocess.Popen(["sleep", "60"], cwd=folder, **options)  # type: ignore[call-overload]
        started.append(process)
        pid: int = process.pid
        return pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_what_works_in_the_jobs_folder_is_named(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    (folder / "code").mkdir(parents=True)
    (tmp_path / "job2").mkdir()
    inside = [start(folder), start(folder / "code")]
    outside = [start(tmp_path), start(tmp_path / "job2")]
    named = {one["pid"]: one for one in suspects(TOKEN, str(folder))}
    assert set(inside) <= set(named)
    assert not set(outside) & set(named)
    expected = {"pid": inside[0], "command": "sleep 60", "why": "it is in the job's folder"}  # fmt: skip
    assert named[inside[0]] == expected


def test_a_job_of_ugros_is_no_suspect(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UGRO_TOKEN", TOKEN)
    pid = start(tmp_path)
    assert pid not in [one["pid"] for one in suspects(TOKEN, str(tmp_path))]


def test_what_is_in_a_session_of_the_jobs_is_suspicious(
    start: Start, tmp_path: Path
) -> None:
    pid = start(tmp_path, start_new_session=True)
    assert suspicion(pid, "/nowhere", {pid}) == "it is in a session of the job's"
    assert suspicion(pid, "/nowhere", set()) is None


def test_what_has_ended_is_no_suspect(tmp_path: Path) -> None:
    with subprocess.Popen(["true"], cwd=tmp_path) as process:
        process.wait()
    assert suspicion(process.pid, str(tmp_path), set()) is None


def test_a_zombie_is_no_suspect(tmp_path: Path) -> None:
    with subprocess.Popen(["sh", "-c", "kill -KILL $$"], cwd=tmp_path) as process:
        wait_until(lambda: stat_of(process.pid)[0] == "Z", "it to be a zombie")
        assert process.pid not in list(younger(0))


def test_what_began_before_is_no_suspect(start: Start, tmp_path: Path) -> None:
    pid = start(tmp_path)
    begun = int(stat_of(pid)[19])
    assert pid in list(younger(begun - 1))
    assert pid not in list(younger(begun))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_runs_is_no_suspect(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], user=65534, cwd="/") as process:
        try:
            assert process.pid not in list(younger(0))
        finally:
            process.kill()
