"""The streams of ranks in the experiment folder: their files, and the rest of them after the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from msgspec import Struct

from ..codec import UNREADABLE, decode
from ..errors import NodeFault
from ..hosts.host import Host
from ..hosts.streams import Frame, rest
from ..jobs.experiment import Experiment
from ..jobs.gpu_use import node_of_sample
from ..jobs.plan import NodePlan
from ..jobs.state import Attempt
from ..jobs.streams import (
    has_more,
    kinds_of,
    sizes_of_attempt,
    stream_names,
    stream_sizes,
)
from ..node.protocol import GPU, LOG, LOST, METRICS, SIZES

NO_BASES: Mapping[str, int] = MappingProxyType({})
SAMPLE_BYTES = 1 << 16  # far more than a line of samples has
# Without a byte from a node that has nothing to do but to read files.
SILENCE_SECONDS = 120.0
WORDS = {LOG: "log", METRICS: "metrics", GPU: "GPU samples"}


class StreamFiles(Protocol):
    """Where the frames of a rank's streams are stored; `offsets` are what is here of each kind."""

    offsets: dict[int, int]

    def store(self, node: str, frame: Frame) -> None:
        """Append the frame. Raises NodeFault if it is not the next one, OSError if the disk is full."""


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
            if kind in kinds_of(plan)
        }

    def store(self, node: str, frame: Frame) -> None:
        """Append the frame. Raises NodeFault if it is not the next one, OSError if the disk is full."""
        _go_on(self.offsets, node, frame)
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


class LateFiles:
    """The files for the rest of an earlier attempt's streams: in the streams themselves others follow."""

    def __init__(
        self, experiment: Experiment, plan: NodePlan, number: int, here: dict[int, int]
    ) -> None:
        self.offsets = dict(here)
        self._files = {
            kind: experiment.late_stream(number, plan.rank, kind) for kind in here
        }

    def store(self, node: str, frame: Frame) -> None:
        """Append the frame. Raises NodeFault if it is not the next one, OSError if the disk is full."""
        _go_on(self.offsets, node, frame)
        file = self._files[frame.kind]
        file.parent.make()
        file.append_stream(frame.payload)


def fetch_streams(
    experiment: Experiment,
    host: Host,
    plan: NodePlan,
    number: int,
    attempts: Sequence[Attempt],
) -> bool:
    """Fetch what a rank's streams have beyond what is here, of the attempt of this number.

    Return False if the job's folder is no longer on the node. Else they are afterwards as large here
    as there and the rank has ended, or it is an error: HostError, or OSError if the disk here is
    full. Two at once do not write the same bytes twice.
    """
    with experiment.log(plan.rank).locked():
        files = _files_of(experiment, plan, number, attempts)
        frames = rest(
            host,
            SILENCE_SECONDS,
            folder=plan.folder,
            token=plan.token,
            offsets=files.offsets,
        )
        for frame in frames:
            if frame.kind == LOST:
                return False
            if frame.kind == SIZES:
                _check_whole(plan, files.offsets, frame)
                return True
            if frame.payload:
                files.store(plan.node, frame)
    raise NodeFault(plan.node, "its streams ended without their sizes")


def _files_of(
    experiment: Experiment, plan: NodePlan, number: int, attempts: Sequence[Attempt]
) -> StreamFiles:
    bases = {attempt.number: attempt.bases for attempt in attempts}
    if number >= max(bases, default=number):
        return RankFiles(experiment, plan, bases.get(number, NO_BASES))
    here = sizes_of_attempt(experiment, plan, number, attempts)
    return LateFiles(experiment, plan, number, here)


class _Sizes(Struct, frozen=True):
    sizes: dict[int, int]
    alive: bool


def _check_whole(plan: NodePlan, here: Mapping[int, int], frame: Frame) -> None:
    """Raise NodeFault where the node has more of a stream than is here, or will have."""
    try:
        told = decode(_Sizes, frame.payload)
    except UNREADABLE as error:
        words = f"the sizes of its streams cannot be read: {error}"
        raise NodeFault(plan.node, words) from error
    more = has_more(here, {kind: told.sizes.get(kind, 0) for kind in kinds_of(plan)})
    if more:
        names = ", ".join(WORDS[kind] for kind in more)
        raise NodeFault(plan.node, f"not all of its {names} came")
    if told.alive:
        fix = f"once it has ended: inv gather; to end it: inv reset --nodes {plan.node}"
        raise NodeFault(plan.node, f"rank {plan.rank} still runs there", fix)


def _go_on(offsets: dict[int, int], node: str, frame: Frame) -> None:
    """Count a frame of a stream; raises NodeFault if it is not the next one."""
    if offsets.get(frame.kind) != frame.offset:
        words = f"stream {frame.kind} goes on at byte {frame.offset} instead of the next one"
        raise NodeFault(node, words)
    offsets[frame.kind] += len(frame.payload)
