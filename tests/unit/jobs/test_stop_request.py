"""A stop that somebody asks for: of what has not ended, until the proof, and not for ever."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.tools import wait_until
from tests.unit.ended import EndedJob
from tests.unit.factories import asked_to_stop
from ugro_tasks.errors import StopUnproven, UgroError
from ugro_tasks.jobs import stop_request
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.stop_request import stop
from ugro_tasks.node.processes import is_paused


@pytest.fixture
def job(tmp_path: Path) -> EndedJob:
    return EndedJob(tmp_path)


def test_a_stop_returns_the_last_state(
    job: EndedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.end(Phase.RUNNING)

    def seen(*_: object) -> Iterator[None]:
        yield None
        job.end(Phase.STOPPED)  # as its agent would

    monkeypatch.setattr(stop_request, "watch", seen)
    assert stop(job.home).phase is Phase.STOPPED
    assert asked_to_stop(job.home)


@pytest.fixture
def unproven(job: EndedJob, monkeypatch: pytest.MonkeyPatch) -> EndedJob:
    """A job whose nodes do not answer a stop in time."""
    job.end(Phase.RUNNING, proven_gone=False)
    monkeypatch.setattr(stop_request, "PATIENCE_SECONDS", -1e9)
    monkeypatch.setattr(stop_request, "watch", lambda *_: iter([None]))
    return job


def test_a_stop_without_proof_says_so(unproven: EndedJob) -> None:
    with pytest.raises(StopUnproven, match=r"gpu0, gpu1, gpu2; the agent goes on"):
        stop(unproven.home)
    assert asked_to_stop(unproven.home)


def test_an_agent_that_was_halted_is_not_said_to_go_on(
    unproven: EndedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["sleep", "60"]) as agent:
        monkeypatch.setattr(Experiments, "agent_pid", lambda _: agent.pid)
        agent.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_paused(agent.pid), "it to be halted")
        with pytest.raises(StopUnproven, match=f"to go on: kill -CONT {agent.pid}"):
            stop(unproven.home)
        agent.kill()


def test_a_job_that_has_ended_is_not_stopped(job: EndedJob) -> None:
    with pytest.raises(UgroError, match="has ended already"):
        stop(job.home)
    assert not asked_to_stop(job.home)
