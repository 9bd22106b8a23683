"""The experiment folder: the only module that knows its file names.

    experiments/
      exp1_20260120_120000/     one job, see `Experiment`
      job_history.jsonl         one line a job that ended
      cluster_state.json        what the last probe saw
      .agent.lock               held by the agent of this folder, with its pid inside
      .agent.stderr             where an agent that crashes says why

Files are replaced whole or appended to in whole lines, and those of UGRO's own are readable by their owner only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .cluster import Cluster
from .errors import JobNotFound, RecordError, UsageError
from .files import append_lines, replace_file, tail_of
from .job import UNREADABLE, Code, Event, JobRecord, JobState, Phase

T = TypeVar("T")
STAMP = re.compile(r"_\d{8}_\d{6}")
HALF_WRITTEN = re.compile(r"\.(?:config|state)\.json\.(\d+)\.\d+")  # see `files.replace_file`
LOG_NAME = re.compile(r"training_rank(\d+)\.log")
NOT_CODE = ("__pycache__", "*.pyc", ".git", ".*_cache", ".venv")
CODE_LIMIT_BYTES = 64 << 20
METRICS_NAME = "metrics.jsonl"
GIVE_UP = "give up"
SAMPLE_NODE = re.compile(rb'"node": "([^"]*)"')
# What is UGRO's in a job's folder; a script's output must not take its place.
OWN_NAMES = (
    "config.json", "state.json", "events.jsonl", METRICS_NAME, "gpu.jsonl", "code", "logs", "ranks", "stop",
)  # fmt: skip


class Experiment:
    """One job's folder. No other class builds a path in it.

    config.json        the JobRecord          state.json     the JobState
    code/              the scripts as launched  events.jsonl   what happened to the job
    logs/              stdout+stderr of each rank, byte for byte
    metrics.jsonl      one object a logged step, from rank 0
    gpu.jsonl          GPU samples of all nodes
    checkpoints/ artifacts/ tensorboard/      gathered from rank 0; ranks/<rank>/ from the others
    stop               there once somebody asked for the job to be stopped
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job_id = folder.name
        self.metrics = folder / METRICS_NAME
        self.gpu = folder / "gpu.jsonl"
        self.code = folder / "code"
        self._config = folder / "config.json"
        self._state = folder / "state.json"
        self._events = folder / "events.jsonl"
        self._stop = folder / "stop"

    @property
    def name(self) -> str:
        """The job's name: its id without the time stamp."""
        return self.job_id[:-16]

    def log(self, rank: int) -> Path:
        """Where the output of a rank goes."""
        return self.folder / "logs" / f"training_rank{rank}.log"

    def outputs(self, rank: int) -> Path:
        """Where what a rank wrote is gathered."""
        return self.folder if rank == 0 else self.folder / "ranks" / str(rank)

    def checkpoint_folder(self, rank: int) -> Path:
        """Where the checkpoints of a rank come, or what it alone wrote of them."""
        return self.outputs(rank) / "checkpoints"

    def record(self) -> JobRecord:
        """config.json; raises RecordError where it is not one."""
        return _read(self._config, JobRecord)

    def cluster(self) -> Cluster:
        """The cluster that the job was launched on, as it was then; raises RecordError."""
        try:
            return Cluster.from_json(self.record().cluster)
        except ValueError as error:
            raise RecordError(f"{self._config}: its cluster is none that this UGRO knows: {error}") from error

    def save_record(self, record: JobRecord) -> None:
        """Replace config.json."""
        replace_file(self._config, msgspec.json.format(msgspec.json.encode(record)))

    def state(self) -> JobState:
        """state.json; raises RecordError where it is not one."""
        return _read(self._state, JobState)

    def save_state(self, state: JobState) -> None:
        """Replace state.json."""
        replace_file(self._state, msgspec.json.format(msgspec.json.encode(state)))

    def remove_half_written(self) -> None:
        """Remove what a process that was killed has left of a record that it was about to replace."""
        for path in self.folder.glob(".*.json.*"):
            found = HALF_WRITTEN.fullmatch(path.name)
            if found and not Path("/proc", found[1]).exists():
                with contextlib.suppress(OSError):
                    path.unlink()

    def add_event(self, event: Event) -> None:
        """Append to events.jsonl."""
        append_lines(self._events, msgspec.json.encode(event) + b"\n")

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """The events from a byte offset on, and the offset behind them."""
        raw = tail_of(self._events, offset)
        whole = raw[: raw.rfind(b"\n") + 1]
        return list(_events(whole)), offset + len(whole)

    def ask_to_stop(self, *, give_up: bool = False) -> None:
        """What `inv stop` and Ctrl-C do; the agent sees to the rest. Raises RecordError.

        With `give_up` no node is waited for that cannot be reached.
        """
        try:
            self._stop.touch(mode=0o600)
            if give_up:
                self._stop.write_text(GIVE_UP)
        except OSError as error:
            raise RecordError(f"{self._stop}: {error.strerror}; the job was not asked to stop") from error

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for the job to be stopped, or has removed its folder."""
        return self._stop.exists() or not self.folder.is_dir()

    @property
    def given_up(self) -> bool:
        """Whether the job may end without the proof of nodes that cannot be reached."""
        try:
            return self._stop.read_text() == GIVE_UP
        except (OSError, UnicodeError):
            return False

    def code_archive(self) -> bytes:
        """The scripts as launched, as a compressed tar."""
        import tarfile  # late, as all that only a launch needs

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            archive.add(self.code, arcname=".")
        return packed.getvalue()

    def gpu_bytes(self, node: str) -> int:
        """How much of a node's GPU samples has arrived: the sum of its lines, which are kept as they came."""
        *lines, _ = tail_of(self.gpu, 0).split(b"\n")
        return sum(len(line) + 1 for line in lines if node_of_sample(line) == node)

    def ranks_gathered(self) -> list[int]:
        """The ranks that something may have come from."""
        return sorted({0, *(int(path.name) for path in self.folder.glob("ranks/*") if path.name.isdecimal())})

    def checkpoints(self) -> dict[str, dict[int, Path]]:
        """{checkpoint: {rank: where its part lies}}, be they whole or not."""
        from .node.follow import MANIFEST_SUFFIX

        found: dict[str, dict[int, Path]] = {}
        for rank in self.ranks_gathered():
            for path in self.checkpoint_folder(rank).glob("[!.]*"):
                if not path.name.endswith(MANIFEST_SUFFIX):
                    found.setdefault(path.name, {})[rank] = path
        return found

    def logs(self) -> dict[int, Path]:
        """{rank: its log}, in the order of the ranks; other files in the folder are none of ours."""
        found = {LOG_NAME.fullmatch(path.name): path for path in (self.folder / "logs").glob("*")}
        return dict(sorted((int(match[1]), path) for match, path in found.items() if match))


class Experiments:
    """All jobs of one controller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster_state = folder / "cluster_state.json"
        self._history = folder / "job_history.jsonl"
        self._lock = folder / ".agent.lock"
        self.agent_stderr = folder / ".agent.stderr"

    # ---- jobs ----

    def create(self, record: JobRecord, scripts: Path, metrics: bytes = b"") -> Experiment:
        """A new job, queued; it appears whole. `record` gets its job_id and the hash of its code here.

        `metrics` is what it has from the job that it goes on from.

        Raises RecordError where the folder cannot be written, UsageError where the scripts cannot be taken along.
        """
        import shutil

        self.make_folder()
        ours = f".making-{os.uname().nodename}"
        for left in self.folder.glob(f"{ours}-*"):  # by a command that was killed while it was here
            if not Path("/proc", left.name.split("-")[-2]).exists():
                shutil.rmtree(left, ignore_errors=True)
        making = self.folder / f"{ours}-{os.getpid()}-{time.time_ns()}"
        try:
            code = _snapshot(scripts, making / "code")
            (making / "logs").mkdir()
            while True:
                job_id = f"{record.job_name}_{datetime.now().astimezone():%Y%m%d_%H%M%S}"
                draft = Experiment(making)
                if metrics:
                    replace_file(draft.metrics, metrics)
                draft.save_record(msgspec.structs.replace(record, job_id=job_id, code=code))
                draft.save_state(JobState(phase=Phase.QUEUED))
                try:
                    making.rename(self.folder / job_id)
                except OSError as error:
                    if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                        raise
                    time.sleep(0.1)  # two launches of one name in one second: the next second is free
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
                names = [e.name for e in entries if STAMP.fullmatch(e.name[-16:]) and e.is_dir()]
        except FileNotFoundError:
            return []
        return sorted(names, key=lambda name: (name[-16:], name), reverse=True)

    def find(self, name: str) -> Experiment:
        """The job with this id, or the newest with exactly this name (one that ran before one that was refused).

        Raises JobNotFound with the nearest names.
        """
        ids = self._ids()
        wanted = [name] if name in ids else [job_id for job_id in ids if name == job_id[:-16]]
        found = [self._job(job_id) for job_id in wanted]
        for job in found:
            if len(found) == 1 or _phase(job) is not Phase.REFUSED:
                return job
        if found:
            return found[0]
        import difflib

        known = dict.fromkeys(job_id[:-16] for job_id in ids)
        near = difflib.get_close_matches(name, known, 3, 0.4) or list(known)[:3]
        hint = f"; did you mean {', '.join(near)}?" if near else "; there is none yet: inv launch --name exp1"
        raise JobNotFound(f"no job called {name!r} in {self.folder}{hint}")

    def unfinished(self) -> list[Experiment]:
        """The jobs that are queued or under way, oldest first. A job that cannot be read is not one."""
        ended = self._ended()
        jobs = [self._job(job_id) for job_id in reversed(self._ids()) if job_id not in ended]
        return [job for job in jobs if (phase := _phase(job)) and not phase.finished]

    def complete_history(self) -> None:
        """Add the jobs that have ended while nobody could say so there: their agent was killed in that moment."""
        ended = self._ended()
        for job in [self._job(job_id) for job_id in reversed(self._ids()) if job_id not in ended]:
            with contextlib.suppress(RecordError):
                record, state = job.record(), job.state()
                if state.phase.finished:
                    self.add_to_history(job, record, state)

    # ---- the records beside the jobs ----

    def add_to_history(self, experiment: Experiment, record: JobRecord, state: JobState) -> None:
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
        replace_file(self.cluster_state, msgspec.json.format(msgspec.json.encode(health)))

    def make_folder(self) -> None:
        """Raises RecordError where it cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(
                f"{error.filename}: {error.strerror}; set paths.experiments in the cluster file"
            ) from error

    def _ended(self) -> set[str]:
        # Ids alone, so that a folder of thousands is read quickly; a torn line is not an id that ended.
        return {
            match.decode() for match in re.findall(rb'^{"job_id":"([^"]+)"', tail_of(self._history, 0), re.M)
        }

    # ---- the agent ----

    def take_agent_lock(self) -> io.FileIO | None:
        """The lock of this folder's agent, held for as long as the file is open; None where an agent lives."""
        self.make_folder()
        lock = open(os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def agent_pid(self) -> int | None:
        """The pid of the living agent, None where there is none."""
        try:
            with self._lock.open("rb") as lock:  # to look must be possible on a read-only disk, too
                # Shared: two commands that look at once do not see each other.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(tail_of(self._lock, 0) or 0)
        return None


def node_of_sample(line: bytes) -> str | None:
    """The node that a line of gpu.jsonl is from; None where it is no such line, or names several."""
    nodes = SAMPLE_NODE.findall(line)
    return nodes[0].decode("utf-8", "replace") if len(nodes) == 1 and line.startswith(b"{") else None


def _phase(job: Experiment) -> Phase | None:
    try:
        return job.state().phase
    except RecordError:
        return None


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise RecordError(f"{path}: not written by UGRO, or damaged: {error}") from error


def _events(lines: bytes) -> Iterator[Event]:
    for line in lines.splitlines():
        with contextlib.suppress(*UNREADABLE):  # a line that UGRO did not write
            yield msgspec.json.decode(line, type=Event)


def _snapshot(scripts: Path, target: Path) -> Code:
    """Copy the scripts; gives what they are."""
    import shutil
    import subprocess

    if not scripts.is_dir():
        raise UsageError(f"{scripts}: no such folder; set paths.scripts in the cluster file")
    files = [
        path for path in scripts.rglob("*") if path.is_file() and not _is_ignored(path.relative_to(scripts))
    ]
    size = sum(path.stat().st_size for path in files)
    if size > CODE_LIMIT_BYTES:
        raise UsageError(
            f"{scripts}: {size >> 20} MiB would travel with each launch (limit {CODE_LIMIT_BYTES >> 20} MiB); "
            "keep data elsewhere and pass its path"
        )
    digest = hashlib.sha256()
    for path in sorted(files):
        copy = target / path.relative_to(scripts)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        digest.update(os.fsencode(path.relative_to(scripts)) + b"\0" + copy.read_bytes())
    commit = subprocess.run(
        ["git", "-C", str(scripts), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ) if shutil.which("git") else None  # fmt: skip
    known = commit.stdout.strip() if commit and commit.returncode == 0 else None
    return Code(sha256=digest.hexdigest(), git_commit=known)


def _is_ignored(path: Path) -> bool:
    return any(Path(part).match(pattern) for part in path.parts for pattern in NOT_CODE)
