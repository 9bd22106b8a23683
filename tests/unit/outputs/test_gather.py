"""What a gather tells of itself: where the outputs are, whose they are, and whose are cleaned away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.ended import EndedJob
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.outputs.gather import Gathering, gather, would_gather


@pytest.fixture
def job(tmp_path: Path) -> EndedJob:
    made = EndedJob(tmp_path)
    made.end(Phase.SUCCEEDED, cleaned=("gpu1",))
    made.write(2, "notes.txt", b"of rank 2")
    return made


def told(job: EndedJob) -> Gathering:
    return Gathering(
        job_id=job.home.job_id,
        folder=str(job.home.folder),
        nodes=("gpu0", "gpu2"),
        cleaned=("gpu1",),
    )


def test_what_would_be_gathered_is_told_and_left_there(job: EndedJob) -> None:
    assert would_gather(job.home) == told(job)
    assert not job.home.outputs.of(2).exists()


def test_what_was_gathered_is_told_with_how_far_each_node_was(job: EndedJob) -> None:
    heard: list[tuple[str, int]] = []
    found = gather(
        job.home, lambda node, percent: heard.append((node, percent)), verify=False
    )
    assert found == told(job)
    assert job.home.outputs.of(2).file("notes.txt").read() == b"of rank 2"
    assert {node for node, _ in heard} <= {"gpu0", "gpu2"}
    assert ("gpu2", 100) in heard
