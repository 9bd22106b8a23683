"""Schedules: a job, and all that happens to its nodes, to their answers and to its agents."""

from __future__ import annotations

from hypothesis import strategies as st
from msgspec import Struct

# By when whatever lasts has ended.
LATEST_SECONDS = 100
# How many writes of a job may be its agent's last.
WRITES_MOST = 24

OF_A_NODE_FOR_A_WHILE = ("away", "refused", "lost answers", "late answers", "twice")
OF_A_NODE = ("exit 0", "exit 3", "signal", "interrupted", "reset")
# A cable of this machine that is out, a disk that takes nothing, a record that cannot be read until it is restored.
OF_THIS_MACHINE_FOR_A_WHILE = ("offline", "disk", "unreadable")
# A power cut tears one of the records, and leaves its copy.
OF_THIS_MACHINE = ("stop", "give up", "kill", "power cut")
IN_A_WRITE = "killed in a write"


class Happening(Struct, frozen=True):
    """Something that happens, at a time and perhaps for a while, in seconds.

    An agent that is killed in a write has done as many before as `at` says.
    """

    kind: str
    at: float
    node: int = 0
    seconds: float = 0.0


class Schedule(Struct, frozen=True):
    """A job and all that happens to it."""

    happenings: tuple[Happening, ...]
    ranks: int = 3
    local: int = 0
    """How many of them are on this machine."""
    restarts: int = 0
    min_nodes: int | None = None
    cannot_send: tuple[int, ...] = ()
    """The nodes that cannot send the streams of their ranks."""
    stubborn: tuple[int, ...] = ()
    """The nodes on which something lives even after KILL."""


_seconds = st.integers(0, 2 * LATEST_SECONDS).map(lambda half: half / 2)
_nodes = st.integers(0, 2)
_happenings = st.one_of(
    st.builds(
        Happening,
        kind=st.sampled_from(OF_A_NODE_FOR_A_WHILE + OF_THIS_MACHINE_FOR_A_WHILE),
        at=_seconds,
        node=_nodes,
        seconds=_seconds,
    ),
    st.builds(
        Happening,
        kind=st.sampled_from(OF_A_NODE + OF_THIS_MACHINE),
        at=_seconds,
        node=_nodes,
    ),
    st.builds(
        Happening,
        kind=st.just(IN_A_WRITE),
        at=st.integers(0, WRITES_MOST).map(float),
        node=_nodes,
    ),
)
_few = st.one_of(st.just(()), st.just(()), st.lists(_nodes, max_size=1).map(tuple))
schedules = st.builds(
    Schedule,
    happenings=st.lists(_happenings, max_size=8).map(tuple),
    ranks=st.integers(1, 3),
    local=st.integers(0, 1),
    restarts=st.integers(0, 2),
    min_nodes=st.one_of(st.none(), st.integers(1, 2)),
    cannot_send=_few,
    stubborn=_few,
)
