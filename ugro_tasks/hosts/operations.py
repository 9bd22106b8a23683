"""The requests to a node, each with the class of its answer.

    stop = Stop(folder=plan.folder, token=plan.token, grace_seconds=30.0, reason="stop")
    ask(host, stop)   # a StopAnswer

A request's `tag` is the name of a function in `node/`. Requests answered by frames are in
`streams.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from msgspec import Struct

from .answers import (
    BuildAnswer,
    CleanAnswer,
    EmptyAnswer,
    EnvironmentAnswer,
    FolderAnswer,
    ManifestsAnswer,
    ProbeAnswer,
    ResetAnswer,
    StateAnswer,
    StopAnswer,
)

A = TypeVar("A")


class Request(Struct, Generic[A], frozen=True, kw_only=True, tag_field="op"):
    """A request to a node; its answer is an `A`."""

    # The class A itself.
    answer: ClassVar[type[Any]]
    # Whether "another job has the node" is a possible answer.
    may_be_busy: ClassVar[bool] = False

    @property
    def operation(self) -> str:
        """Return the request's name, on the wire and in messages."""
        return str(self.__struct_config__.tag)


class Visit(Struct, frozen=True, kw_only=True):
    """A node to be reached by another one, and the salt of its port."""

    address: str
    salt: int


class Meetings(Struct, frozen=True, kw_only=True):
    """The nodes to visit, and the nodes expected to visit this one.

    The ports are chosen on the nodes, from the range of their kernel.
    """

    name: str
    salt: int
    visits: dict[str, Visit]
    visited_by: list[str]


class Probe(Request[ProbeAnswer], frozen=True, kw_only=True, tag="probe"):
    """A request for all facts of a node, see `node/probe.py`.

    With `keep_port`, the master's process keeps the port it found, for a launch in the same
    conversation.
    """

    answer = ProbeAnswer

    interpreter: str
    project: str
    slot: str
    wants_cuda: bool
    # "master" or "worker".
    role: str
    address: str
    master: str
    port: int
    port_seconds: float
    nonce: str
    keep_port: bool = False
    peers: Meetings | None = None
    # See `training/batch_sizes.py`.
    model: Mapping[str, Any] | None = None
    # See `place_of` in `environments/recipe.py`.
    environment: Mapping[str, str]


class Environment(
    Request[EnvironmentAnswer], frozen=True, kw_only=True, tag="environment"
):
    """A request for the node's environment; with `offline`, also for its platform."""

    answer = EnvironmentAnswer

    environment: Mapping[str, str]
    interpreter: str
    python: str | None
    offline: bool


class Build(Request[BuildAnswer], frozen=True, kw_only=True, tag="build_environment"):
    """A request for a new environment; the contents of `files` follow it, in their order.

    See `ask_with_progress`.
    """

    answer = BuildAnswer
    may_be_busy = True

    environment: Mapping[str, str]
    interpreter: str
    python: str | None
    offline: bool
    # {name: size in bytes}
    files: Mapping[str, int]
    digest: str
    # The creation time of an environment to replace even though it is made from the same files.
    bad: float | None
    slots: list[str]
    token: str
    controller: str
    silence_seconds: float


class Prepare(Request[EmptyAnswer], frozen=True, kw_only=True, tag="prepare"):
    """A request to lay out a job's folder and start its supervisor, which takes the lease.

    `node.zip` and the scripts follow the request.
    """

    answer = EmptyAnswer
    may_be_busy = True

    token: str
    node: str
    folder: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    activation: tuple[str, ...] = ()
    environment_work: str | None = None
    node_bytes: int
    controller: str
    hold_seconds: float
    rendezvous_port: int | None = None


class Start(Request[EmptyAnswer], frozen=True, kw_only=True, tag="start"):
    """A request to start a prepared job."""

    answer = EmptyAnswer

    folder: str


class Stop(Request[StopAnswer], frozen=True, kw_only=True, tag="stop"):
    """A request to end a job's rank; with `discard`, also to remove its folder."""

    answer = StopAnswer

    folder: str
    token: str
    grace_seconds: float
    reason: str
    discard: bool = False


class State(Request[StateAnswer], frozen=True, kw_only=True, tag="state"):
    """A request for the state of a job."""

    answer = StateAnswer

    folder: str
    token: str


class Reset(Request[ResetAnswer], frozen=True, kw_only=True, tag="reset"):
    """A request to end all processes of UGRO in a slot, or those of one job."""

    answer = ResetAnswer

    slot: str
    job: str | None = None
    """The job's id."""
    grace_seconds: float
    by: str
    """The person who asks, for the ranks' exit records."""


class Manifests(Request[ManifestsAnswer], frozen=True, kw_only=True, tag="manifests"):
    """A request for the manifests of a job's checkpoints."""

    answer = ManifestsAnswer

    folder: str


class Clean(Request[CleanAnswer], frozen=True, kw_only=True, tag="clean"):
    """A request to inspect job folders, given as [project, name]; with `remove`, to remove them."""

    answer = CleanAnswer

    folders: list[tuple[str, str]]
    remove: bool


class MakeFolder(Request[FolderAnswer], frozen=True, kw_only=True, tag="make_folder"):
    """A request to make the project's folder."""

    answer = FolderAnswer

    project: str
