"""A stop that somebody asks for: of what has not ended, until the proof, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.ended import EndedJob
from tests.unit.factories import asked_to_stop
from ugro_tasks.errors import StopUnproven, UgroError
from ugro_tasks.jobs import stop_request
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.stop_request import stop


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


def test_a_stop_without_proof_says_so(
    job: EndedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.end(Phase.RUNNING, proven_gone=False)
    monkeypatch.setattr(stop_request, "PATIENCE_SECONDS", -1e9)
    monkeypatch.setattr(stop_request, "watch", lambda *_: iter([None]))
    with pytest.raises(StopUnproven, match=r"gpu0, gpu1, gpu2 .*the agent goes on"):
        stop(job.home)
    assert asked_to_stop(job.home)


def test_a_job_that_has_ended_is_not_stopped(job: EndedJob) -> None:
    with pytest.raises(UgroError, match="has ended already"):
        stop(job.home)
    assert not asked_to_stop(job.home)
