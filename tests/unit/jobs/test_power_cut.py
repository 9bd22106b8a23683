"""A power cut at any moment: whatever reached the disk, a job's records are there and none is nonsense.

The writes, renames and fsyncs of a launch, a restart and an end are recorded. For each moment
between them, each outcome is made that a file system may leave: a rename is on the disk for sure
once its folder was synchronised, and maybe before; content that was not synchronised may be
missing, empty or full of NULs.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ugro_tasks.files
from tests.unit.factories import (
    make_cluster,
    make_node_plan,
    make_plan_of,
    make_record,
    make_scripts,
)
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.journal import Journal
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.record import JobRecord
from ugro_tasks.jobs.state import Attempt, JobState, RankState

NAMES = ("config.json", "state.json")


class Write(NamedTuple):
    """A temporary file with its content, perhaps synchronised."""

    path: str
    content: bytes
    durable: bool


class Rename(NamedTuple):
    """A temporary file that got its name."""

    before: str
    after: str


class Sync(NamedTuple):
    """All renames in the folder up to here are on the disk."""


Act = Write | Rename | Sync


class Recorder:
    """The module `os` for `files.py`; it notes what matters for a power cut."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.synced = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, before: str, after: str, **options: Any) -> None:
        os.replace(before, after, **options)  # noqa: PTH105
        self.acts.append(Rename(before, after))

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.acts.append(Sync())
        else:
            self.synced = True

    @contextlib.contextmanager
    def written(self, *args: Any, durably: bool = False) -> Iterator[str]:
        _, _, content, _ = args
        self.synced = False
        with WRITTEN(*args, durably=durably) as temporary:
            self.acts.append(Write(temporary, content, self.synced))
            yield temporary


WRITTEN = ugro_tasks.files._written


class Life(NamedTuple):
    """A job's folder before, what was done in it, and each record as it was saved, in order."""

    before: Path
    job_id: str
    acts: list[Act]
    records: list[JobRecord]
    states: list[JobState]


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    """Return a launch, a restart and an end."""
    experiments = Experiments(tmp_path / "experiments")
    cluster = make_cluster(tmp_path)
    job = experiments.create(
        make_record(cluster, max_restarts=1), make_scripts(tmp_path / "scripts")
    )
    before = tmp_path / "before" / job.job_id
    shutil.copytree(job.folder, before)
    recorder = Recorder()
    monkeypatch.setattr(ugro_tasks.files, "os", recorder)
    monkeypatch.setattr(ugro_tasks.files, "_written", recorder.written)
    records = [job.record()]
    states = [job.state()]
    journal = Journal(job, logging.getLogger("power"))
    save_record = job.save_record
    save_state = job.save_state

    def note_record(record: JobRecord) -> None:
        records.append(record)
        save_record(record)

    def note_state(state: JobState) -> None:
        states.append(state)
        save_state(state)

    monkeypatch.setattr(job, "save_record", note_record)
    monkeypatch.setattr(job, "save_state", note_state)
    plan = make_plan_of(tuple(make_node_plan(rank) for rank in range(3)))
    for number in (1, 2):
        journal.save(plan=plan)
        attempt = Attempt(number=number, nodes=("a",), began_at=1.0, bases={})
        journal.change(attempts=(*journal.state.attempts, attempt))
        ranks = tuple(RankState(rank=rank, node=f"gpu{rank}") for rank in range(3))
        journal.change(phase=Phase.PREPARING, ranks=ranks)
        journal.change(phase=Phase.RUNNING, started_at=2.0)
        for rank in range(3):
            journal.change_rank(rank, exit_code=number - 2, proven_gone=True)
        journal.change_attempt(ended_at=3.0)
        if number == 1:
            journal.change(phase=Phase.QUEUED)
    journal.change(phase=Phase.SUCCEEDED, ended_at=4.0)
    return Life(before, job.job_id, recorder.acts, records, states)


def outcomes(acts: list[Act]) -> Iterator[tuple[dict[str, bytes], dict[str, int]]]:
    """Yield each {name: content} a cut after these acts may leave, and {name: writes surely there}."""
    last_sync = max(
        (n for n, act in enumerate(acts) if isinstance(act, Sync)), default=-1
    )
    contents = {act.path: act for act in acts if isinstance(act, Write)}
    sure: dict[str, bytes] = {}
    count = dict.fromkeys(NAMES, 0)
    written: dict[str, Write] = {}
    for act in acts[: last_sync + 1]:
        if isinstance(act, Write):
            written[act.path] = act
        elif isinstance(act, Rename):
            sure[act.after] = written[act.before].content
            if act.after in count:
                count[act.after] += 1
    maybe = [act for act in acts[last_sync + 1 :] if isinstance(act, Rename)]
    for kept in itertools.product((False, True), repeat=len(maybe)):
        found = dict(sure)
        torn = []
        for act, is_kept in zip(maybe, kept, strict=True):
            if is_kept:
                write = contents[act.before]
                found[act.after] = write.content
                if not write.durable:
                    torn.append(act.after)
        yield found, count
        for name, left in itertools.product(torn, (b"", b"\0" * 100)):
            yield found | {name: left}, count


def test_after_a_power_cut_each_record_is_there_and_as_new_as_was_made_sure(
    life: Life, tmp_path: Path
) -> None:
    tried = 0
    for moment in range(len(life.acts) + 1):
        for found, sure in outcomes(life.acts[:moment]):
            tried += 1
            folder = tmp_path / "cut" / life.job_id
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(life.before, folder)
            for name, content in found.items():
                (folder / name).write_bytes(content)
            job = Experiment(folder)
            # The first ones are from before the acts.
            assert job.signed_record() in life.records[sure["config.json"] :]
            assert job.state() in life.states[sure["state.json"] :]
            job.mend_torn_records()
            assert job.mend_torn_records() == []
    assert tried > 1.5 * len(life.acts)


def test_all_records_are_made_sure_before_the_next_act(life: Life) -> None:
    for record in NAMES:
        named = [
            number
            for number, act in enumerate(life.acts)
            if isinstance(act, Rename) and act.after == record
        ]
        assert named
        for number in named:
            assert isinstance(life.acts[number + 1], Sync)
    assert all(act.durable for act in life.acts if isinstance(act, Write))
