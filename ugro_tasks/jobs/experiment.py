"""The experiment folder; no other module knows its file names.

    experiments/
      exp1_20260120_120000/     one job, see `Experiment`
      job_history.jsonl         one line for each ended job
      cluster_state.json        the last probe
      .agent.lock               locked by the agent of this folder, with its pid inside
      .agent.stderr             the last words of an agent that crashed

Files are replaced whole or appended to in whole lines. UGRO's own are readable by their owner only.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from ..cluster.model import Cluster
from ..codec import UNREADABLE, decode
from ..errors import RecordError
from ..files import append_lines, replace_file, tail_of
from .record import JobRecord
from .state import Event, JobState

T = TypeVar("T")
STAMP = re.compile(r"_\d{8}_\d{6}")
STAMP_LENGTH = len("_20260120_120000")
# See `files.replace_file`.
HALF_WRITTEN = re.compile(r"\.(?:config|state)\.json\.(\d+)\.\d+")
LOG_NAME = re.compile(r"training_rank(\d+)\.log")


METRICS_NAME = "metrics.jsonl"
GIVE_UP = "give up"
SAMPLE_NODE = re.compile(rb'"node": "([^"]*)"')
# UGRO's own files in a job's folder; a script's output must not replace them.
OWN_NAMES = (
    "config.json", "state.json", "events.jsonl", METRICS_NAME, "gpu.jsonl", "code", "logs", "ranks", "stop",
)  # fmt: skip


class Experiment:
    """One job's folder. No other class builds a path in it.

    config.json        the JobRecord            state.json     the JobState
    code/              the scripts as launched  events.jsonl   the job's events
    logs/              stdout and stderr of each rank, byte for byte
    metrics.jsonl      one object for each logged step, from rank 0
    gpu.jsonl          GPU samples of all nodes
    checkpoints/ artifacts/ tensorboard/      gathered from rank 0; ranks/<rank>/ from the others
    stop               exists once the job is asked to stop
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
        """Return the job's name: its id without the time stamp."""
        return name_of(self.job_id)

    def log(self, rank: int) -> Path:
        """Return the path of a rank's log."""
        return self.folder / "logs" / f"training_rank{rank}.log"

    def outputs(self, rank: int) -> Path:
        """Return the folder for the gathered outputs of a rank."""
        if rank == 0:
            return self.folder
        return self.folder / "ranks" / str(rank)

    def checkpoint_folder(self, rank: int) -> Path:
        """Return the folder for a rank's checkpoint files; shared files are in rank 0's."""
        return self.outputs(rank) / "checkpoints"

    def record(self) -> JobRecord:
        """Read config.json; raises RecordError if it is damaged or not UGRO's."""
        return _read(self._config, JobRecord)

    def cluster(self) -> Cluster:
        """Return the cluster as it was at launch; raises RecordError."""
        try:
            return Cluster.from_json(self.record().cluster)
        except ValueError as error:
            raise RecordError(
                f"{self._config}: its cluster is none that this UGRO knows: {error}"
            ) from error

    def save_record(self, record: JobRecord) -> None:
        """Replace config.json."""
        replace_file(self._config, msgspec.json.format(msgspec.json.encode(record)))

    def state(self) -> JobState:
        """Read state.json; raises RecordError if it is damaged or not UGRO's."""
        return _read(self._state, JobState)

    def save_state(self, state: JobState) -> None:
        """Replace state.json."""
        replace_file(self._state, msgspec.json.format(msgspec.json.encode(state)))

    def remove_half_written(self) -> None:
        """Remove the temporary files of records, left by killed processes."""
        for path in self.folder.glob(".*.json.*"):
            found = HALF_WRITTEN.fullmatch(path.name)
            if found and not Path("/proc", found[1]).exists():
                with contextlib.suppress(OSError):
                    path.unlink()

    def add_event(self, event: Event) -> None:
        """Append to events.jsonl."""
        append_lines(self._events, msgspec.json.encode(event) + b"\n")

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Return the events from a byte offset on, and the offset after them."""
        raw = tail_of(self._events, offset)
        whole = raw[: raw.rfind(b"\n") + 1]
        return list(_events(whole)), offset + len(whole)

    def ask_to_stop(self, *, give_up: bool = False) -> None:
        """Ask the agent to stop the job, as `inv stop` and Ctrl-C do; raises RecordError.

        With `give_up` the job ends without waiting for unreachable nodes.
        """
        try:
            self._stop.touch(mode=0o600)
            if give_up:
                self._stop.write_text(GIVE_UP)
        except OSError as error:
            raise RecordError(
                f"{self._stop}: {error.strerror}; the job was not asked to stop"
            ) from error

    @property
    def stop_asked(self) -> bool:
        """Return whether the job was asked to stop, or its folder removed."""
        return self._stop.exists() or not self.folder.is_dir()

    @property
    def given_up(self) -> bool:
        """Return whether the job may end without the proof of unreachable nodes."""
        try:
            return self._stop.read_text() == GIVE_UP
        except (OSError, UnicodeError):
            return False

    def code_archive(self) -> bytes:
        """Pack the scripts as launched into a compressed tar."""
        import tarfile  # late: only a launch needs it

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            archive.add(self.code, arcname=".")
        return packed.getvalue()

    def gpu_bytes(self, node: str) -> int:
        """Return the bytes of a node's GPU samples received so far.

        That is the total length of its lines, because they are stored as received.
        """
        *lines, _ = tail_of(self.gpu, 0).split(b"\n")
        own = [line for line in lines if node_of_sample(line) == node]
        return sum(len(line) + 1 for line in own)

    def ranks_gathered(self) -> list[int]:
        """Return rank 0 and every rank with a folder below ranks/."""
        names = [path.name for path in self.folder.glob("ranks/*")]
        others = [int(name) for name in names if name.isdecimal()]
        return sorted({0, *others})

    def checkpoints(self) -> dict[str, dict[int, Path]]:
        """Return {checkpoint: {rank: its folder}}, whole or not."""
        from ..node.protocol import MANIFEST_SUFFIX

        found: dict[str, dict[int, Path]] = {}
        for rank in self.ranks_gathered():
            for path in self.checkpoint_folder(rank).glob("[!.]*"):
                if not path.name.endswith(MANIFEST_SUFFIX):
                    found.setdefault(path.name, {})[rank] = path
        return found

    def logs(self) -> dict[int, Path]:
        """Return {rank: its log} in the order of the ranks, without foreign files."""
        found: dict[int, Path] = {}
        for path in sorted((self.folder / "logs").glob("*")):
            match = LOG_NAME.fullmatch(path.name)
            if match:
                found[int(match[1])] = path
        return dict(sorted(found.items()))


def name_of(job_id: str) -> str:
    """Return the job's name: its id without the time stamp."""
    return job_id[:-STAMP_LENGTH]


def node_of_sample(line: bytes) -> str | None:
    """Return the node of a line of gpu.jsonl, None unless the line names exactly one."""
    nodes = SAMPLE_NODE.findall(line)
    if len(nodes) != 1 or not line.startswith(b"{"):
        return None
    name: bytes = nodes[0]
    return name.decode("utf-8", "replace")


def _read(path: Path, kind: type[T]) -> T:
    try:
        return decode(kind, path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise RecordError(
            f"{path}: not written by UGRO, or damaged: {error}"
        ) from error


def _events(lines: bytes) -> Iterator[Event]:
    for line in lines.splitlines():
        with contextlib.suppress(*UNREADABLE):  # a line that UGRO did not write
            yield decode(Event, line)
