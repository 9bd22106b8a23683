"""The experiment folder; no other module knows its file names.

    experiments/
      exp1_20260120_120000/     one job, see `Experiment`
      job_history.jsonl         one line for each ended job
      cluster_state.json        the last probe
      .agent.lock               locked by the agent of this folder, with its pid inside
      .agent.stderr             the last words of an agent that crashed

Files are replaced whole or appended to in whole lines. UGRO's own are readable by their owner only.
No path is followed through a link, see `files.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from ..cluster.model import Cluster
from ..codec import UNREADABLE, decode
from ..errors import RecordError
from ..files import File, Folder
from .gpu_samples import GpuSamples
from .outputs import HALF_WRITTEN, Outputs
from .record import JobRecord
from .snapshot import pack
from .state import Event, JobState

T = TypeVar("T")
STAMP = re.compile(r"_\d{8}_\d{6}")
STAMP_LENGTH = len("_20260120_120000")
LOG_NAME = re.compile(r"training_rank(\d+)\.log")
METRICS_NAME = "metrics.jsonl"
GIVE_UP = b"give up"


class Experiment:
    """One job's folder. No other class builds a path in it.

    config.json        the JobRecord            state.json     the JobState
    code/              the scripts as launched  events.jsonl   the job's events
    logs/              stdout and stderr of each rank, byte for byte
    metrics.jsonl      one object for each logged step, from rank 0
    gpu.jsonl          GPU samples of all nodes
    manifests/<rank>/  one file for each checkpoint of a rank that is here whole
    outputs/<rank>/    the files written by a rank; nothing of UGRO's own is in there
    checkpoints artifacts tensorboard      links to those of rank 0
    stop               exists once the job is asked to stop

    The folder of a job made before format 2 has no outputs/, see `outputs.py`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job_id = folder.name
        self.files = Folder(folder.parent, folder.name)
        self.metrics = self.files.file(METRICS_NAME)
        self.gpu = self.files.file("gpu.jsonl")
        self.code = self.files.folder("code")
        self._config = self.files.file("config.json")
        self._state = self.files.file("state.json")
        self._events = self.files.file("events.jsonl")
        self._stop = self.files.file("stop")
        self.outputs = Outputs(self.files)
        self._samples = GpuSamples(self.gpu)

    @property
    def name(self) -> str:
        """Return the job's name: its id without the time stamp."""
        return name_of(self.job_id)

    def log(self, rank: int) -> File:
        """Return a rank's log."""
        return self.files.file(f"logs/training_rank{rank}.log")

    def record(self) -> JobRecord:
        """Read config.json; raises RecordError if it is damaged or not UGRO's."""
        return _read(self._config, JobRecord)

    def cluster(self) -> Cluster:
        """Return the cluster as it was at launch; raises RecordError."""
        try:
            return Cluster.from_json(self.record().cluster)
        except ValueError as error:
            raise RecordError(
                f"{self._config.path}: its cluster is none that this UGRO knows: {error}"
            ) from error

    def save_record(self, record: JobRecord) -> None:
        """Replace config.json."""
        self._config.replace(msgspec.json.format(msgspec.json.encode(record)))

    def state(self) -> JobState:
        """Read state.json; raises RecordError if it is damaged or not UGRO's."""
        return _read(self._state, JobState)

    def save_state(self, state: JobState) -> None:
        """Replace state.json."""
        self._state.replace(msgspec.json.format(msgspec.json.encode(state)))

    def remove_half_written(self) -> None:
        """Remove the temporary files of records, left by killed processes."""
        for entry in self.files.entries():
            found = HALF_WRITTEN.fullmatch(entry.name)
            if found and not Path("/proc", found[1]).exists():
                with contextlib.suppress(OSError):
                    self.files.remove(entry.name)

    def add_event(self, event: Event) -> None:
        """Append to events.jsonl."""
        self._events.append(msgspec.json.encode(event) + b"\n")

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Return the events from a byte offset on, and the offset after them."""
        raw = self._events.read(offset)
        whole = raw[: raw.rfind(b"\n") + 1]
        return list(_events(whole)), offset + len(whole)

    def ask_to_stop(self, *, give_up: bool = False) -> None:
        """Ask the agent to stop the job, as `inv stop` and Ctrl-C do; raises RecordError.

        With `give_up` the job ends without waiting for unreachable nodes.
        """
        try:
            self._stop.replace(GIVE_UP if give_up else b"")
        except OSError as error:
            raise RecordError(
                f"{self._stop.path}: {error.strerror}; the job was not asked to stop"
            ) from error

    @property
    def stop_asked(self) -> bool:
        """Return whether the job was asked to stop, or its folder removed."""
        return self._stop.exists() or not self.folder.is_dir()

    @property
    def given_up(self) -> bool:
        """Return whether the job may end without the proof of unreachable nodes."""
        try:
            return self._stop.read() == GIVE_UP
        except OSError:
            return False

    def code_archive(self) -> bytes:
        """Pack the scripts as launched into a compressed tar; raises RecordError if they changed."""
        return pack(self.code, self.record().code)

    def gpu_bytes(self, node: str) -> int:
        """Return the bytes of a node's GPU samples received so far."""
        return self._samples.bytes_of(node)

    def logs(self) -> dict[int, File]:
        """Return {rank: its log} in the order of the ranks, without foreign files."""
        ranks = []
        for entry in self.files.folder("logs").entries():
            match = LOG_NAME.fullmatch(entry.name)
            if match and entry.is_file:
                ranks.append(int(match[1]))
        return {rank: self.log(rank) for rank in sorted(ranks)}


def name_of(job_id: str) -> str:
    """Return the job's name: its id without the time stamp."""
    return job_id[:-STAMP_LENGTH]


def _read(file: File, kind: type[T]) -> T:
    try:
        with file.open() as opened:
            return decode(kind, opened.read())
    except OSError as error:
        raise RecordError(f"{file.path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise RecordError(
            f"{file.path}: not written by UGRO, or damaged: {error}"
        ) from error


def _events(lines: bytes) -> Iterator[Event]:
    for line in lines.splitlines():
        with contextlib.suppress(*UNREADABLE):  # a line that UGRO did not write
            yield decode(Event, line)
