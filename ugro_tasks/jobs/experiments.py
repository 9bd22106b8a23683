"""The experiments folder: creating, finding and listing jobs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from ..errors import JobNotFound, RecordError
from ..files import File, Folder, Held, process_lives
from ..node.files import NO_LOCKS
from .experiment import Experiment, is_id, name_of, stamp_of
from .phase import Phase
from .record import JobRecord
from .record_file import FORMAT
from .snapshot import snapshot
from .state import JobState

LOCK = ".agent.lock"
HISTORY = "job_history.jsonl"
# One of each who shares the folder.
HISTORIES = re.compile(r"job_history(\.\d+)?\.jsonl")
# How a line of a history begins.
HISTORY_LINE = '{"job_id":"'
# More than two clocks on this planet differ.
ZONES_SECONDS = 27 * 3600.0


class Experiments:
    """All jobs of one controller."""

    def __init__(self, folder: Path, files: Folder | None = None) -> None:
        self.folder = folder
        self.files = files or Folder(folder)

    def held(self) -> Experiments:
        """Return the same folder, kept open for an agent: see `Experiment.held`. Raises OSError."""
        return Experiments(self.folder, self.files.held())

    def is_lost(self) -> bool:
        """Return whether the folder that is kept open is of no use, and not where its path leads to.

        One that was moved, or taken out of the tree, is of use.
        """
        root = self.files.root
        if not isinstance(root, Held) or root.is_at_its_path():
            return False
        if root.was_deleted:
            return True
        try:
            with os.scandir(root) as entries:
                return next(entries, None) is None
        except OSError:
            return True

    def take_up_again(self) -> None:
        """Keep open what the path leads to now; raises OSError."""
        root = self.files.root
        if isinstance(root, Held):
            root.take_up_again()

    # ---- jobs ----

    def create(
        self, record: JobRecord, scripts: Path, metrics: bytes = b""
    ) -> Experiment:
        """Create a queued job with its id and the hash of its code; it appears by one rename.

        `metrics` are the lines inherited from the job it resumes.

        Raises RecordError if the folder cannot be written, UsageError if the scripts cannot be
        copied.
        """
        import shutil

        self.make_folder()
        ours = f".making-{os.uname().nodename}"
        for left in self.folder.glob(f"{ours}-*"):
            # Left by a command that was killed here.
            if not process_lives(left.name.split("-")[-2]):
                shutil.rmtree(left, ignore_errors=True)
        making = self.folder / f"{ours}-{os.getpid()}-{time.time_ns()}"
        draft = Experiment(making)
        try:
            draft.files.make()
            code = snapshot(scripts, draft.code)
            draft.files.folder("logs").make()
            draft.files.folder("outputs").make()
            draft.make_room_for_stop()
            if metrics:
                draft.metrics.replace(metrics)
            return self._publish(draft, msgspec.structs.replace(record, code=code))
        except OSError as error:
            raise RecordError(
                f"{error.filename or self.folder}: {error.strerror}; the job was not created"
            ) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _publish(self, draft: Experiment, record: JobRecord) -> Experiment:
        """Rename the draft to an id of this second in UTC, or of the next if that is taken.

        It is later than each other job of its name, also where the clock was set back.
        """
        newest = self._by_submission(_named(record.name, self._ids()))
        last = newest[0][0] if newest else 0.0
        while True:
            at = max(time.time(), last + 0.001)
            job_id = f"{record.name}_{datetime.fromtimestamp(at, UTC):%Y%m%d_%H%M%S}"
            draft.save_record(msgspec.structs.replace(record, job_id=job_id))
            state = JobState(format=FORMAT, phase=Phase.QUEUED, submitted_at=at)
            draft.save_state(state)
            try:
                self.files.move(draft.job_id, self.files, job_id)
            except OSError as error:
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                    raise
                last = at + 0.1
                time.sleep(0.1)
            else:
                self.files.sync()
                return self._job(job_id)

    def all(self) -> Iterator[Experiment]:
        """Iterate over all jobs, the newest first."""
        return map(self._job, self._ids())

    def _job(self, job_id: str) -> Experiment:
        return Experiment(self.folder / job_id, self.files.folder(job_id))

    def _ids(self) -> list[str]:
        """Return the ids of all jobs, the newest first as far as their times tell.

        Ids only: of thousands of folders, a command needs one or twenty.
        """
        return _newest_first(
            [entry.name for entry in self._entries() if _is_job(entry)]
        )

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.files.root) as entries:
                return list(entries)
        except FileNotFoundError:
            return []

    def _own(self, name: str) -> File:
        """Return this user's file of a name: in a shared folder, the first user has the plain one."""
        file = self.files.file(name)
        if file.owner() in {None, os.geteuid()}:
            return file
        stem, dot, suffix = name.rpartition(".")
        return self.files.file(f"{stem}.{os.geteuid()}{dot}{suffix}")

    def find(self, name: str) -> Experiment:
        """Return the job with this id, or the one of this name submitted last, refused ones last.

        Raises JobNotFound with the nearest names.
        """
        ids = self._ids()
        if name in ids:
            return self._job(name)
        found = [job for _, job in self._by_submission(_named(name, ids))]
        if not found:
            hint = self._linked(name) or _nearest_names(name, ids)
            raise JobNotFound(f"no job called {name!r} in {self.folder}; {hint}")
        for job in found:
            if _phase(job) is not Phase.REFUSED:
                return job
        return found[0]

    def _linked(self, name: str) -> str | None:
        """Return what is to be done about a link in place of the folder of a job, None without one."""
        for entry in self.files.entries():
            if entry.is_link and name in {entry.name, name_of(entry.name)}:
                return (
                    f"{entry.name} is a link, which is not followed. Move the folder it leads to here, "
                    "or set paths.experiments to the one it is in"
                )
        return None

    def _by_submission(self, ids: list[str]) -> list[tuple[float, Experiment]]:
        """Return (time of submission, job) for these ids, the last one first.

        The times in ids were local before format 2, so those within ZONES_SECONDS of the newest are read.
        """
        jobs = [(_seconds_in(job_id), self._job(job_id)) for job_id in ids]
        newest = jobs[0][0] if jobs else 0.0
        found = []
        for at, job in jobs:
            if newest - at < ZONES_SECONDS:
                with contextlib.suppress(RecordError):
                    found.append((job.state().submitted_at, job))
                    continue
            found.append((at, job))
        return sorted(found, key=lambda pair: pair[0], reverse=True)

    def unfinished(self) -> list[Experiment]:
        """Return the jobs that are queued or under way, oldest first, without unreadable ones."""
        found = []
        for job in self._not_in_history():
            phase = _phase(job)
            if phase and not phase.finished:
                found.append(job)
        return found

    def to_supervise(self) -> tuple[list[Experiment], dict[str, str]]:
        """Return the jobs an agent of this user works on, and {job id: why it leaves another alone}.

        Both are of jobs that are under way, or whose state cannot be read.
        """
        ours = []
        left_alone = {}
        for job in self._not_in_history():
            try:
                phase = job.state().phase
                if phase.known and not phase.supervised:
                    continue
                job.check_supervisable()
            except RecordError as error:
                left_alone[job.job_id] = error.text
            else:
                ours.append(job)
        return ours, left_alone

    def complete_history(self) -> None:
        """Add finished jobs missing in the history because their agent was killed."""
        for job in self._not_in_history():
            with contextlib.suppress(RecordError):
                record = job.record()
                state = job.state()
                if state.phase.finished:
                    self.add_to_history(job, record, state)

    # ---- the records beside the jobs ----

    def add_to_history(
        self, experiment: Experiment, record: JobRecord, state: JobState
    ) -> None:
        """Append a line about a finished job; raises OSError."""
        line = {
            "job_id": experiment.job_id,
            "format": FORMAT,
            "kind": record.kind,
            "job_name": record.name,
            "state": state.phase,
            "nodes": record.nodes,
            "started_at": record.started_at,
            "seconds": state.seconds,
            "cause": state.cause.message if state.cause else None,
        }
        self._own(HISTORY).append_lines(msgspec.json.encode(line) + b"\n")

    def save_cluster_state(self, health: Any) -> None:
        """Store the results of this user's last probe; raises OSError."""
        content = msgspec.json.format(msgspec.json.encode(health))
        self._own("cluster_state.json").replace(content)

    def make_folder(self) -> None:
        """Create the experiments folder; raises RecordError if that fails."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(
                f"{error.filename}: {error.strerror}; set paths.experiments in the cluster file"
            ) from error

    def _not_in_history(self) -> list[Experiment]:
        """Return the jobs without an entry in the history, oldest first."""
        entries = self._entries()
        ended: set[str] = set()
        for entry in entries:
            if HISTORIES.fullmatch(entry.name):
                # Of others who share the folder, it may not be readable.
                with contextlib.suppress(OSError):
                    ended.update(_ids_in(self.files.file(entry.name).read()))
        ids = [entry.name for entry in entries if _is_job(entry)]
        left = [job_id for job_id in ids if job_id not in ended]
        return [self._job(job_id) for job_id in reversed(_newest_first(left))]

    # ---- the agent ----

    @property
    def agent_stderr(self) -> File:
        """Return the file with the last words of an agent that crashed."""
        return self._own(".agent.stderr")

    def take_agent_lock(self) -> io.FileIO | None:
        """Take the lock of this user's agent of the folder; None if an agent runs.

        The lock is held as long as the returned file is open. Raises RecordError if the file system has no locks.
        """
        self.make_folder()
        lock = self._own(LOCK).open_to_change()
        with contextlib.ExitStack() as after:
            after.enter_context(lock)
            if not self._locks(lock, fcntl.LOCK_EX):
                return None
            after.pop_all()
        return lock

    def agent_pid(self) -> int | None:
        """Return the pid of this user's running agent, None without one.

        Raises RecordError if the file system has no locks, without which there can be none.
        """
        file = self._own(LOCK)
        try:
            # Opened for reading, because the disk may be read-only.
            with file.open() as lock:
                # Shared, so that two commands at once are not taken for an agent.
                is_free = self._locks(lock, fcntl.LOCK_SH)
        except FileNotFoundError:
            return None
        return None if is_free else int(file.read() or 0)

    def prepare_for_agent(self) -> None:
        """Make what an agent needs; raises RecordError if this folder can have none."""
        try:
            self.make_folder()
            with self._own(LOCK).open_to_change() as lock:
                self._locks(lock, fcntl.LOCK_SH)
        except OSError as error:
            raise RecordError(f"{error.filename}: {error.strerror}") from error

    def _locks(self, lock: IO[bytes] | io.FileIO, how: int) -> bool:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise RecordError(
                f"{self.folder}: its file system has no locks ({error.strerror}), and an agent needs one. "
                "Let paths.experiments be on a local disk, or mount that one with locks"
            ) from error
        return True


def _is_job(entry: os.DirEntry[str]) -> bool:
    return is_id(entry.name) and entry.is_dir(follow_symlinks=False)


def _ids_in(history: bytes) -> Iterator[str]:
    """Yield the ids in a history."""
    # Quicker than parsing thousands of lines, and a torn one is none.
    begin = len(HISTORY_LINE)
    for line in history.decode("utf-8", "replace").split("\n"):
        if line.startswith(HISTORY_LINE):
            yield line[begin : line.find('"', begin)]


def _newest_first(ids: list[str]) -> list[str]:
    # Two sorts by strings are quicker than one by pairs.
    return sorted(sorted(ids, reverse=True), key=stamp_of, reverse=True)


def _named(name: str, ids: list[str]) -> list[str]:
    return [job_id for job_id in ids if name_of(job_id) == name]


def _seconds_in(job_id: str) -> float:
    """Return the time in an id in Unix seconds, read as UTC; 0.0 if it is none."""
    try:
        moment = datetime.strptime(f"{stamp_of(job_id)}+0000", "_%Y%m%d_%H%M%S%z")
    except ValueError:
        return 0.0
    return moment.timestamp()


def _nearest_names(name: str, ids: list[str]) -> str:
    import difflib  # late: only a mistake needs it

    known = dict.fromkeys(map(name_of, ids))
    near = difflib.get_close_matches(name, known, 3, 0.4) or list(known)[:3]
    if near:
        return f"did you mean {', '.join(near)}?"
    return "there is none yet: inv launch --name exp1"


def _phase(job: Experiment) -> Phase | None:
    try:
        return job.state().phase
    except RecordError:
        return None
