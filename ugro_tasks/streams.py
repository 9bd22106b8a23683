"""One rank's streams, from its node into the experiment folder, byte for byte, over as many connections as it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import msgspec

from .errors import HostError, NodeFault
from .experiments import Experiment, append_lines
from .hosts import Host
from .job import UNREADABLE, NodePlan
from .node.follow import EXIT, GPU, LOG, LOST, METRICS
from .remote import Frame, follow

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
# Heartbeats that may be missing before the connection counts as dead.
HEARTBEATS_MISSED = 4


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a rank ended: torchrun's exit code or the signal that killed it, and what it left in its error file.

    `lost` stands for an exit record that nobody could write: the supervisor was killed, or the node rebooted.
    """

    node: str
    rank: int
    at: float
    code: int | None = None
    signal: int | None = None
    error: str | None = None
    stopped: str | None = None
    lost: str | None = None
    outputs: tuple[str, ...] = ()  # the topmost names of what it wrote

    @property
    def failed(self) -> bool:
        """Whether the rank ended badly and not because UGRO told it to."""
        return self.stopped is None and self.code != 0


def retry_pause(attempt: int) -> float:
    """Seconds to wait before a node that could not be reached is tried again; `attempt` counts from 0."""
    return RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]


class RankFiles:
    """Where a rank's streams go. The size of a file is the offset at which its stream goes on."""

    def __init__(self, experiment: Experiment, plan: NodePlan) -> None:
        self._gpu, self._gpu_rest = experiment.gpu, b""
        self._files = {LOG: experiment.log(plan.rank)}
        if plan.rank == 0:
            self._files[METRICS] = experiment.metrics
        self.offsets = {
            kind: path.stat().st_size if path.exists() else 0 for kind, path in self._files.items()
        }
        self.offsets[GPU] = experiment.gpu_bytes(plan.node)

    def store(self, node: str, frame: Frame) -> None:
        """Append the frame; raises NodeFault where it is not the next one, OSError where the disk is full."""
        if self.offsets.get(frame.kind) != frame.offset:
            raise NodeFault(
                node, f"stream {frame.kind} goes on at byte {frame.offset} instead of the next one"
            )
        self.offsets[frame.kind] += len(frame.payload)
        if frame.kind == GPU:
            # One file for all nodes: whole lines only.
            lines, newline, self._gpu_rest = (self._gpu_rest + frame.payload).rpartition(b"\n")
            append_lines(self._gpu, lines + newline)
            return
        descriptor = os.open(self._files[frame.kind], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            left = memoryview(frame.payload)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)


def follow_rank(
    host: Host,
    experiment: Experiment,
    plan: NodePlan,
    *,
    heartbeat_seconds: float,
    connected: Callable[[bool], None],
    say: Callable[[str], None],
) -> End:
    """Fill the rank's files until its end is known, and give that end.

    `connected` is told when the node is lost and found; `say` gets a line about each.
    """
    attempt, away_since = 0, 0.0
    while True:
        try:
            files = RankFiles(experiment, plan)
            for number, frame in enumerate(_frames(host, plan, files, heartbeat_seconds)):
                if number == 0:
                    connected(True)
                    if away_since:
                        say(f"connected again after {time.monotonic() - away_since:.0f} s")
                    attempt, away_since = 0, 0.0
                if frame.kind in {EXIT, LOST}:
                    return _end(host, plan, frame)
                if frame.payload:
                    files.store(plan.node, frame)
        except (HostError, OSError) as error:
            # An OSError is this machine's: a full disk, say. What was not stored is asked for again.
            if not away_since:
                away_since = time.monotonic()
                connected(False)
                say(f"not in touch, trying again; the rank goes on meanwhile. {error}")
            host.close()
            time.sleep(retry_pause(attempt))
            attempt += 1


def _frames(host: Host, plan: NodePlan, files: RankFiles, heartbeat_seconds: float) -> Iterator[Frame]:
    return follow(
        host,
        HEARTBEATS_MISSED * heartbeat_seconds,
        folder=plan.folder,
        token=plan.token,
        offsets=files.offsets,
        heartbeat_seconds=heartbeat_seconds,
    )


class _ExitRecord(msgspec.Struct, frozen=True):
    code: int | None = None
    signal: int | None = None
    error: str | None = None
    stopped: str | None = None
    outputs: tuple[str, ...] = ()  # the topmost names of what it wrote


class _LostRecord(msgspec.Struct, frozen=True):
    known: bool
    rebooted: bool


def _end(host: Host, plan: NodePlan, frame: Frame) -> End:
    try:
        if frame.kind == EXIT:
            record = msgspec.json.decode(frame.payload, type=_ExitRecord)
            return End(node=plan.node, rank=plan.rank, at=time.time(), **msgspec.structs.asdict(record))
        lost = msgspec.json.decode(frame.payload, type=_LostRecord)
    except UNREADABLE as error:
        raise NodeFault(host.node.name, f"its exit record cannot be read: {error}") from error
    why = (
        "was rebooted"
        if lost.rebooted
        else "lost its supervisor"
        if lost.known
        else "has no folder of this job"
    )
    return End(node=plan.node, rank=plan.rank, at=time.time(), lost=f"{plan.node} {why}")
