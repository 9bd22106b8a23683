"""One rank's streams, from its node into the experiment folder, byte for byte, over as many connections as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated

import msgspec

from ...codec import UNREADABLE, decode
from ...errors import NodeFault
from ...hosts.host import Host
from ...hosts.requests import Conversation
from ...hosts.streams import Frame, follow
from ...jobs.experiment import Experiment
from ...jobs.gpu_use import node_of_sample
from ...jobs.outcome import RankExit
from ...jobs.plan import NodePlan
from ...jobs.streams import stream_names, stream_sizes
from ...node.protocol import EXIT, GPU, LOG, LOST, MANIFEST, METRICS, NOTICE
from .disk_thread import DiskThread

NO_BASES: Mapping[str, int] = MappingProxyType({})


# Heartbeats that may be missing before the connection counts as dead.
HEARTBEATS_MISSED = 4
SAMPLE_BYTES = 1 << 16  # far more than a line of samples has


class RankFiles:
    """The files of a rank's streams. A file's size is the offset for the rest of its stream.

    `bases` is {stream: bytes of its file from earlier attempts}.
    """

    def __init__(
        self,
        experiment: Experiment,
        plan: NodePlan,
        bases: Mapping[str, int] = NO_BASES,
    ) -> None:
        self._gpu, self._gpu_rest = experiment.gpu, b""
        self._files = {LOG: experiment.log(plan.rank)}
        if plan.rank == 0:
            self._files[METRICS] = experiment.metrics
        names = stream_names(plan)
        for kind, file in self._files.items():
            # The node has what a power cut took.
            file.cut_nuls(bases.get(names[kind], 0))
        now = stream_sizes(experiment, [plan])
        self.offsets = {
            kind: max(0, now[name] - bases.get(name, 0))
            for kind, name in names.items()
            if kind == GPU or kind in self._files
        }

    def store(self, node: str, frame: Frame) -> None:
        """Append the frame. Raises NodeFault if it is not the next one, OSError if the disk is full."""
        if self.offsets.get(frame.kind) != frame.offset:
            raise NodeFault(
                node,
                f"stream {frame.kind} goes on at byte {frame.offset} instead of the next one",
            )
        self.offsets[frame.kind] += len(frame.payload)
        if frame.kind == GPU:
            # One file for all nodes: whole lines only, and by their node they are counted.
            lines, newline, self._gpu_rest = (
                self._gpu_rest + frame.payload
            ).rpartition(b"\n")
            whole = lines.split(b"\n") if newline else []
            if (
                any(node_of_sample(line) != node for line in whole)
                or len(self._gpu_rest) > SAMPLE_BYTES
            ):
                raise NodeFault(
                    node,
                    f"it sends samples of no card of its own: {(lines or self._gpu_rest)[:100]!r}",
                )
            self._gpu.append_lines(lines + newline, leaving_room=True)
            return
        self._files[frame.kind].append_stream(frame.payload)


def follow_rank(
    host: Host,
    experiment: Experiment,
    plan: NodePlan,
    *,
    disk: DiskThread,
    talk: Conversation | None = None,
    bases: Mapping[str, int] = NO_BASES,
    heartbeat_seconds: float,
    connected: Callable[[], None],
    manifest: Callable[[bytes], object],
    notice: Callable[[str], object],
) -> RankExit:
    """Fill the rank's files until its end is known, and give that end.

    Raises HostError if the connection breaks before, OSError if the disk here does not take what comes; the next call
    asks for the bytes not stored. `talk` is the open conversation with the node, if there is one. `connected` is called
    at the first frame, `manifest` with each manifest of a checkpoint, `notice` with words about what cannot be sent.
    """
    files = disk.do(lambda: RankFiles(experiment, plan, bases))
    frames = _frames(host, plan, talk, files.offsets, heartbeat_seconds)
    for number, frame in enumerate(frames):
        if number == 0:
            connected()
        if frame.kind in {EXIT, LOST}:
            return _end(host, plan, frame)
        if frame.kind == MANIFEST:
            manifest(frame.payload)
        elif frame.kind == NOTICE:
            notice(frame.payload.decode("utf-8", "replace"))
        elif frame.payload:
            disk.do(partial(files.store, plan.node, frame))
    raise NodeFault(plan.node, "its streams ended without an exit record")


def wait_for_end(
    host: Host,
    plan: NodePlan,
    *,
    seconds: float | None,
    heartbeat_seconds: float,
    connected: Callable[[], None],
) -> RankExit | None:
    """Wait for the end of a rank without storing anything, and give it; None if it runs on after about `seconds`.

    Without a limit (None) it waits for as long as the connection lasts.

    Raises HostError as `follow_rank` does.
    """
    begun = time.monotonic()
    frames = _frames(host, plan, None, {}, heartbeat_seconds)
    for number, frame in enumerate(frames):
        if number == 0:
            connected()
        if frame.kind in {EXIT, LOST}:
            return _end(host, plan, frame)
        if seconds is not None and time.monotonic() - begun > seconds:
            return None
    raise NodeFault(plan.node, "its streams ended without an exit record")


def _frames(
    host: Host,
    plan: NodePlan,
    talk: Conversation | None,
    offsets: Mapping[int, int],
    heartbeat_seconds: float,
) -> Iterator[Frame]:
    return follow(
        host,
        HEARTBEATS_MISSED * heartbeat_seconds,
        talk,
        folder=plan.folder,
        token=plan.token,
        offsets=offsets,
        heartbeat_seconds=heartbeat_seconds,
    )


# Far beyond any exit code or number of a signal.
Small = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=1 << 31)]


Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _ExitRecord(msgspec.Struct, frozen=True):
    code: Small | None = None
    signal: Small | None = None
    error: str | None = None
    stopped: str | None = None
    stopped_by: str | None = None
    interrupted: Small | None = None
    shutting_down: bool = False
    log_bytes: Size | None = None
    oom_kills: Small = 0
    outputs: tuple[str, ...] = ()  # the topmost names of what it wrote


class _LostRecord(msgspec.Struct, frozen=True):
    known: bool
    rebooted: bool


def _end(host: Host, plan: NodePlan, frame: Frame) -> RankExit:
    try:
        if frame.kind == EXIT:
            record = decode(_ExitRecord, frame.payload)
            return RankExit(
                node=plan.node,
                rank=plan.rank,
                at=time.time(),
                **msgspec.structs.asdict(record),
            )
        lost = decode(_LostRecord, frame.payload)
    except UNREADABLE as error:
        raise NodeFault(
            host.node.name, f"its exit record cannot be read: {error}"
        ) from error
    return RankExit(
        node=plan.node,
        rank=plan.rank,
        at=time.time(),
        lost=f"{plan.node} {_why_lost(lost)}",
    )


def _why_lost(record: _LostRecord) -> str:
    if record.rebooted:
        return "was rebooted"
    if record.known:
        return "lost its supervisor"
    return "has no folder of this job"
