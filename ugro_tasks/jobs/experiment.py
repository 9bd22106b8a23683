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
# See `files.replace_file`.
HALF_WRITTEN = re.compile(r"\.(?:config|state)\.json\.(\d+)\.\d+")
LOG_NAME = re.compile(r"training_rank(\d+)\.log")


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
            raise RecordError(
                f"{self._config}: its cluster is none that this UGRO knows: {error}"
            ) from error

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
            raise RecordError(
                f"{self._stop}: {error.strerror}; the job was not asked to stop"
            ) from error

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
        return sorted(
            {
                0,
                *(
                    int(path.name)
                    for path in self.folder.glob("ranks/*")
                    if path.name.isdecimal()
                ),
            }
        )

    def checkpoints(self) -> dict[str, dict[int, Path]]:
        """{checkpoint: {rank: where its part lies}}, be they whole or not."""
        from ..node.protocol import MANIFEST_SUFFIX

        found: dict[str, dict[int, Path]] = {}
        for rank in self.ranks_gathered():
            for path in self.checkpoint_folder(rank).glob("[!.]*"):
                if not path.name.endswith(MANIFEST_SUFFIX):
                    found.setdefault(path.name, {})[rank] = path
        return found

    def logs(self) -> dict[int, Path]:
        """{rank: its log}, in the order of the ranks; other files in the folder are none of ours."""
        found = {
            LOG_NAME.fullmatch(path.name): path
            for path in (self.folder / "logs").glob("*")
        }
        return dict(
            sorted((int(match[1]), path) for match, path in found.items() if match)
        )


def node_of_sample(line: bytes) -> str | None:
    """The node that a line of gpu.jsonl is from; None where it is no such line, or names several."""
    nodes = SAMPLE_NODE.findall(line)
    return (
        nodes[0].decode("utf-8", "replace")
        if len(nodes) == 1 and line.startswith(b"{")
        else None
    )


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
