"""What a node can be asked for: each request with the class of its answer.

    ask(host, Stop(folder=plan.folder, token=plan.token, grace_seconds=30.0, reason="stop"))     # a StopAnswer

The node's side of each is the function of its `tag` in `node/`. What is answered by frames is in `frames.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from msgspec import Struct

from .answers import (
    BuildAnswer,
    CleanAnswer,
    Done,
    EnvironmentAnswer,
    MadeFolder,
    ManifestsAnswer,
    ProbeAnswer,
    ResetAnswer,
    StateAnswer,
    StopAnswer,
)

A = TypeVar("A")


class Request(Struct, Generic[A], frozen=True, kw_only=True, tag_field="op"):
    """What a node is asked for; it answers with an `A`."""

    answer: ClassVar[type[Any]]  # A itself
    # Whether "another job has the node" is an answer to it.
    may_be_busy: ClassVar[bool] = False

    @property
    def operation(self) -> str:
        """Its name on the wire, and in messages."""
        return str(self.__struct_config__.tag)


class Visit(Struct, frozen=True, kw_only=True):
    """A node that another one tries to reach, and what its port is chosen by."""

    address: str
    salt: int


class Meetings(Struct, frozen=True, kw_only=True):
    """Whom a node visits, and who visits it; the ports are chosen there, from the range of its kernel."""

    name: str
    salt: int
    visits: dict[str, Visit]
    visited_by: list[str]


class Probe(Request[ProbeAnswer], frozen=True, kw_only=True, tag="probe"):
    """All facts of a node in one go, see `node/probe.py`.

    With `keep_port` the master's process keeps the port that it found, for a launch in the same conversation.
    """

    answer = ProbeAnswer

    interpreter: str
    project: str
    slot: str
    wants_cuda: bool
    role: str  # master or worker
    address: str
    master: str
    port: int
    port_seconds: float
    nonce: str
    keep_port: bool = False
    peers: Meetings | None = None
    model: Mapping[str, Any] | None = None  # see `training/batch_sizes.py`
    environment: Mapping[str, str]  # see `environments/recipe.py`, place_of


class Environment(
    Request[EnvironmentAnswer], frozen=True, kw_only=True, tag="environment"
):
    """The environment that a node has; with `offline` also what packages for it would have to fit."""

    answer = EnvironmentAnswer

    environment: Mapping[str, str]
    interpreter: str
    python: str | None
    offline: bool


class Build(Request[BuildAnswer], frozen=True, kw_only=True, tag="build_environment"):
    """A new environment; the contents of `files` follow the request, in their order. See `ask_with_progress`."""

    answer = BuildAnswer
    may_be_busy = True

    environment: Mapping[str, str]
    interpreter: str
    python: str | None
    offline: bool
    files: Mapping[str, int]  # {name: bytes}
    digest: str
    # When an environment was made that is not to be kept, though made from the same files.
    bad: float | None
    slots: list[str]
    token: str
    controller: str
    silence_seconds: float


class Prepare(Request[Done], frozen=True, kw_only=True, tag="prepare"):
    """A job's folder, and its supervisor with the lease; `node.zip` and the scripts follow the request."""

    answer = Done
    may_be_busy = True

    token: str
    node: str
    folder: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    activation: tuple[str, ...] = ()
    node_bytes: int
    controller: str
    hold_seconds: float
    rendezvous_port: int | None = None


class Start(Request[Done], frozen=True, kw_only=True, tag="start"):
    """The start of a job that is prepared."""

    answer = Done

    folder: str


class Stop(Request[StopAnswer], frozen=True, kw_only=True, tag="stop"):
    """The end of a job's rank; `discard` also removes its folder."""

    answer = StopAnswer

    folder: str
    token: str
    grace_seconds: float
    reason: str
    discard: bool = False


class State(Request[StateAnswer], frozen=True, kw_only=True, tag="state"):
    """What a node knows of a job."""

    answer = StateAnswer

    folder: str
    token: str


class Reset(Request[ResetAnswer], frozen=True, kw_only=True, tag="reset"):
    """The end of everything of UGRO in a slot."""

    answer = ResetAnswer

    slot: str
    grace_seconds: float


class Manifests(Request[ManifestsAnswer], frozen=True, kw_only=True, tag="manifests"):
    """The manifests of a job's checkpoints."""

    answer = ManifestsAnswer

    folder: str


class Clean(Request[CleanAnswer], frozen=True, kw_only=True, tag="clean"):
    """The folders of jobs, as [project, name]: looked at, and with `remove` removed."""

    answer = CleanAnswer

    folders: list[tuple[str, str]]
    remove: bool


class MakeFolder(Request[MadeFolder], frozen=True, kw_only=True, tag="make_folder"):
    """A folder that shall be there."""

    answer = MadeFolder

    project: str
