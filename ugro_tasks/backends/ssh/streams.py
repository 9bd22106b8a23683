"""One rank's streams, from its node into the experiment folder, byte for byte, over as many connections as it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated

import msgspec

from ...codec import UNREADABLE, decode
from ...errors import NodeFault
from ...hosts.host import Host
from ...hosts.requests import Conversation
from ...hosts.streams import Frame, follow
from ...jobs.experiment import Experiment
from ...jobs.outcome import RankExit
from ...jobs.plan import NodePlan
from ...node.protocol import EXIT, LOST, MANIFEST, NOTICE
from ...outputs.streams import NO_BASES, RankFiles
from ...text import printable
from .disk_thread import DiskThread

# Heartbeats that may be missing before the connection counts as dead.
HEARTBEATS_MISSED = 4


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

    def take(frame: Frame) -> bool:
        if frame.kind == MANIFEST:
            manifest(frame.payload)
        elif frame.kind == NOTICE:
            notice(frame.payload.decode("utf-8", "replace"))
        elif frame.payload:
            disk.do(partial(files.store, plan.node, frame))
        return True

    frames = _frames(host, plan, talk, files.offsets, heartbeat_seconds)
    end = _end_in(frames, host, plan, connected, take)
    assert end  # noqa: S101  (all frames are taken)
    return end


def wait_for_end(
    host: Host,
    plan: NodePlan,
    *,
    seconds: float = math.inf,
    heartbeat_seconds: float,
    connected: Callable[[], None],
) -> RankExit | None:
    """Wait for the end of a rank without storing anything, and give it; None if it runs on after about `seconds`.

    Raises HostError as `follow_rank` does.
    """
    begun = time.monotonic()
    frames = _frames(host, plan, None, {}, heartbeat_seconds)
    return _end_in(
        frames, host, plan, connected, lambda _: time.monotonic() - begun <= seconds
    )


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


def _end_in(
    frames: Iterable[Frame],
    host: Host,
    plan: NodePlan,
    connected: Callable[[], None],
    take: Callable[[Frame], bool],
) -> RankExit | None:
    """Find the end of a rank among its frames; None if `take`, which gets all others, wants no more."""
    for number, frame in enumerate(frames):
        if number == 0:
            connected()
        if frame.kind in {EXIT, LOST}:
            return _end(host, plan, frame)
        if not take(frame):
            return None
    raise NodeFault(plan.node, "its streams ended without an exit record")


# Far beyond any exit code or number of a signal.
Small = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=1 << 31)]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


Words = Annotated[str, msgspec.Meta(max_length=300)]


class _Outlived(msgspec.Struct, frozen=True):
    pid: Small
    command: Words

    def __str__(self) -> str:
        return printable(f"pid {self.pid} ({self.command})")


class _Suspect(msgspec.Struct, frozen=True):
    pid: Small
    command: Words
    why: Words

    def __str__(self) -> str:
        return printable(f"pid {self.pid} ({self.command}): {self.why}")


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
    left_pids: tuple[Small, ...] = ()
    outlived: tuple[_Outlived, ...] = ()
    suspects: tuple[_Suspect, ...] = ()
    outputs: tuple[str, ...] = ()  # the topmost names of what it wrote


class _LostRecord(msgspec.Struct, frozen=True):
    known: bool
    rebooted: bool


def _end(host: Host, plan: NodePlan, frame: Frame) -> RankExit:
    try:
        if frame.kind == EXIT:
            record = decode(_ExitRecord, frame.payload)
            facts = msgspec.structs.asdict(record)
            facts["outlived"] = tuple(map(str, record.outlived))
            facts["suspects"] = tuple(map(str, record.suspects))
            return RankExit(node=plan.node, rank=plan.rank, at=time.time(), **facts)
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
