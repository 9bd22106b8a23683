"""The experiments folder: all jobs, how one is made, found and listed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from ..errors import JobNotFound, RecordError
from ..files import append_lines, replace_file, tail_of
from .experiment import STAMP, Experiment
from .record import JobRecord
from .snapshot import _snapshot
from .state import JobState, Phase


class Experiments:
    """All jobs of one controller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster_state = folder / "cluster_state.json"
        self._history = folder / "job_history.jsonl"
        self._lock = folder / ".agent.lock"
        self.agent_stderr = folder / ".agent.stderr"

    # ---- jobs ----

    def create(
        self, record: JobRecord, scripts: Path, metrics: bytes = b""
    ) -> Experiment:
        """A new job, queued; it appears whole. `record` gets its job_id and the hash of its code here.

        `metrics` is what it has from the job that it goes on from.

        Raises RecordError where the folder cannot be written, UsageError where the scripts cannot be taken along.
        """
        import shutil

        self.make_folder()
        ours = f".making-{os.uname().nodename}"
        for left in self.folder.glob(f"{ours}-*"):
            # By a command that was killed while it was here.
            if not Path("/proc", left.name.split("-")[-2]).exists():
                shutil.rmtree(left, ignore_errors=True)
        making = self.folder / f"{ours}-{os.getpid()}-{time.time_ns()}"
        try:
            code = _snapshot(scripts, making / "code")
            (making / "logs").mkdir()
            while True:
                job_id = (
                    f"{record.job_name}_{datetime.now().astimezone():%Y%m%d_%H%M%S}"
                )
                draft = Experiment(making)
                if metrics:
                    replace_file(draft.metrics, metrics)
                draft.save_record(
                    msgspec.structs.replace(record, job_id=job_id, code=code)
                )
                draft.save_state(JobState(phase=Phase.QUEUED))
                try:
                    making.rename(self.folder / job_id)
                except OSError as error:
                    if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                        raise
                    # Two launches of one name in one second: the next second is free.
                    time.sleep(0.1)
                else:
                    return Experiment(self.folder / job_id)
        except OSError as error:
            raise RecordError(
                f"{error.filename or self.folder}: {error.strerror}; the job was not created"
            ) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def all(self) -> Iterator[Experiment]:
        """Every job folder, the newest first."""
        return map(self._job, self._ids())

    def _job(self, job_id: str) -> Experiment:
        return Experiment(self.folder / job_id)

    def _ids(self) -> list[str]:
        """Of all jobs, the newest first. Ids alone: there may be thousands, of which one or twenty are wanted."""
        try:
            with os.scandir(self.folder) as entries:
                names = [
                    e.name
                    for e in entries
                    if STAMP.fullmatch(e.name[-16:]) and e.is_dir()
                ]
        except FileNotFoundError:
            return []
        return sorted(names, key=lambda name: (name[-16:], name), reverse=True)

    def find(self, name: str) -> Experiment:
        """The job with this id, or the newest with exactly this name (one that ran before one that was refused).

        Raises JobNotFound with the nearest names.
        """
        ids = self._ids()
        wanted = (
            [name]
            if name in ids
            else [job_id for job_id in ids if name == job_id[:-16]]
        )
        found = [self._job(job_id) for job_id in wanted]
        for job in found:
            if len(found) == 1 or _phase(job) is not Phase.REFUSED:
                return job
        if found:
            return found[0]
        import difflib

        known = dict.fromkeys(job_id[:-16] for job_id in ids)
        near = difflib.get_close_matches(name, known, 3, 0.4) or list(known)[:3]
        hint = (
            f"; did you mean {', '.join(near)}?"
            if near
            else "; there is none yet: inv launch --name exp1"
        )
        raise JobNotFound(f"no job called {name!r} in {self.folder}{hint}")

    def unfinished(self) -> list[Experiment]:
        """The jobs that are queued or under way, oldest first. A job that cannot be read is not one."""
        jobs = self._not_in_history()
        return [job for job in jobs if (phase := _phase(job)) and not phase.finished]

    def complete_history(self) -> None:
        """Add the jobs that have ended while nobody could say so there: their agent was killed in that moment."""
        for job in self._not_in_history():
            with contextlib.suppress(RecordError):
                record, state = job.record(), job.state()
                if state.phase.finished:
                    self.add_to_history(job, record, state)

    # ---- the records beside the jobs ----

    def add_to_history(
        self, experiment: Experiment, record: JobRecord, state: JobState
    ) -> None:
        """One line about a job that ended."""
        line = {
            "job_id": experiment.job_id,
            "job_name": record.job_name,
            "state": state.phase,
            "nodes": record.nodes,
            "started_at": record.started_at,
            "seconds": state.seconds,
            "cause": state.cause.message if state.cause else None,
        }
        append_lines(self._history, msgspec.json.encode(line) + b"\n")

    def save_cluster_state(self, health: Any) -> None:
        """What the last probe saw."""
        self.make_folder()
        replace_file(
            self.cluster_state, msgspec.json.format(msgspec.json.encode(health))
        )

    def make_folder(self) -> None:
        """Raises RecordError where it cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(
                f"{error.filename}: {error.strerror}; set paths.experiments in the cluster file"
            ) from error

    def _not_in_history(self) -> list[Experiment]:
        """The jobs of whose end nothing is written there, oldest first."""
        ended = self._ended()
        return [
            self._job(job_id) for job_id in reversed(self._ids()) if job_id not in ended
        ]

    def _ended(self) -> set[str]:
        # Ids alone, so that a folder of thousands is read quickly; a torn line is not an id that ended.
        return {
            match.decode()
            for match in re.findall(
                rb'^{"job_id":"([^"]+)"', tail_of(self._history, 0), re.M
            )
        }

    # ---- the agent ----

    def take_agent_lock(self) -> io.FileIO | None:
        """The lock of this folder's agent, held for as long as the file is open; None where an agent lives."""
        self.make_folder()
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        lock = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def agent_pid(self) -> int | None:
        """The pid of the living agent, None where there is none."""
        try:
            with self._lock.open(
                "rb"
            ) as lock:  # to look must be possible on a read-only disk, too
                # Shared: two commands that look at once do not see each other.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(tail_of(self._lock, 0) or 0)
        return None


def _phase(job: Experiment) -> Phase | None:
    try:
        return job.state().phase
    except RecordError:
        return None
