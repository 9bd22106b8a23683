"""Who supervises a job, where its folder is there more than once; each holder a file of its own, as processes have."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.unit.factories import make_cluster, make_record, make_scripts
from ugro_tasks.errors import RecordError
from ugro_tasks.jobs import sole_supervision
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.sole_supervision import (
    SoleSupervision,
    forget_long_ended,
    why_not_here,
)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    record = make_record(make_cluster(tmp_path))
    return Experiments(tmp_path / "experiments").create(
        record, make_scripts(tmp_path / "scripts")
    )


@pytest.fixture
def copy(job: Experiment, tmp_path: Path) -> Experiment:
    """The same job in a copy of the folder."""
    shutil.copytree(tmp_path / "experiments", tmp_path / "backup", symlinks=True)
    return Experiments(tmp_path / "backup").find(job.job_id)


def taken(job: Experiment) -> SoleSupervision:
    right = SoleSupervision.take(job)
    assert right
    return right


def notes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state" / "ugro" / "supervised").iterdir())


def test_one_has_the_right_and_the_copy_is_told_where(
    job: Experiment, copy: Experiment, tmp_path: Path
) -> None:
    right = taken(job)
    assert SoleSupervision.take(copy) is None
    assert why_not_here(copy) == (
        f"it is supervised in {job.folder}, of which this folder is a copy"
    )
    with pytest.raises(RecordError, match="of which this folder is a copy"):
        copy.check_supervisable()
    assert why_not_here(job) is None
    job.check_supervisable()
    right.end(ended=False)
    assert notes(tmp_path) == []
    copy.check_supervisable()
    taken(copy).end(ended=False)


def test_a_folder_that_was_moved_is_no_copy(job: Experiment, tmp_path: Path) -> None:
    right = taken(job)
    (tmp_path / "experiments").rename(tmp_path / "archive")
    moved = Experiments(tmp_path / "archive").find(job.job_id)
    moved.check_supervisable()
    right.end(ended=False)


def test_a_folder_that_came_back_from_a_backup_is_no_copy(
    job: Experiment, copy: Experiment, tmp_path: Path
) -> None:
    right = taken(job)
    shutil.rmtree(tmp_path / "experiments")
    (tmp_path / "backup").rename(tmp_path / "experiments")
    Experiments(tmp_path / "experiments").find(job.job_id).check_supervisable()
    right.end(ended=False)


def test_the_right_is_offered_where_the_folder_is_lost(
    job: Experiment, copy: Experiment
) -> None:
    right = taken(job)
    assert right.offer() is False
    assert right.claim() is True
    assert right.offer() is False
    other = taken(copy)
    assert right.offer() is True
    assert right.claim() is False
    other.end(ended=False)
    right.end(ended=False)


def without_locks(*_: object) -> None:
    raise OSError(37, os.strerror(37))


def test_where_nothing_can_be_locked_each_may_supervise(
    job: Experiment, copy: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    first, second = taken(job), taken(copy)
    copy.check_supervisable()
    first.end(ended=False)
    second.end(ended=False)


def test_a_note_that_is_none_hides_nothing(
    job: Experiment, copy: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sole_supervision, "PATIENCE_SECONDS", 0.0)
    right = taken(job)
    [note] = notes(tmp_path)
    note.write_text("nonsense")
    assert why_not_here(copy) is None
    assert SoleSupervision.take(copy) is None
    right.end(ended=False)


def test_no_copy_begins_again_what_has_ended(
    job: Experiment, copy: Experiment, tmp_path: Path
) -> None:
    taken(job).end(ended=True)
    with pytest.raises(RecordError, match=f"it has ended in {job.folder}, of which"):
        copy.check_supervisable()
    job.check_supervisable()
    [note] = notes(tmp_path)
    forget_long_ended()
    assert note.exists()
    os.utime(note, (0, 0))
    forget_long_ended()
    assert notes(tmp_path) == []
    copy.check_supervisable()
