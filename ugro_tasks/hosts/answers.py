"""What a node may answer to each request: checked here, so that nobody above has to expect anything else.

    checked("stop", {"left": [], "exit": None, "seconds": 0.1})     # the same, or ValueError

A node may be broken, or another program may answer for it. Keys that are not named here pass: a fact that a check
learns to use belongs here, too, or the check must expect anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from ..cluster.model import Node
from ..codec import convert, decode
from ..text import printable_lines

# A program's words, a path, a word of a table: as long as they may be where anybody shows or stores them.
Words = Annotated[str, Meta(max_length=20_000)]
Path = Annotated[str, Meta(max_length=4096)]
Word = Annotated[str, Meta(max_length=300)]
Output = Annotated[str, Meta(max_length=1 << 20)]
Interface = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.@-]{1,15}\Z")]
Pid = Annotated[int, Meta(ge=1, le=1 << 31)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Number = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=-1e10, le=1e10)]
# These three become parts of paths and of command lines of this machine, where it fetches packages for a node.
Version = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z][0-9A-Za-z.+_-]{0,99}\Z")]
PythonVersion = Annotated[str, Meta(pattern=r"\A[0-9]{1,3}\.[0-9]{1,3}([.+][0-9A-Za-z.+]{0,40})?\Z")]
Machine = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_]{1,32}\Z")]


class _Held(Struct, kw_only=True):
    """Of a lease, or a process."""

    job: Word | None = None
    token: Word | None = None
    controller: Path | None = None
    pid: Pid | None = None
    command: Word | None = None
    since: Seconds | None = None


class _Process(Struct, kw_only=True):
    pid: Pid
    job: Word
    token: Word
    command: Word


class _Interface(Struct, kw_only=True):
    addresses: Annotated[list[Word], Meta(max_length=1000)]
    mtu: Annotated[int, Meta(ge=0, le=1 << 31)] | None
    mask: Word | None = None

    def __post_init__(self) -> None:
        for address in self.addresses:
            ipaddress.ip_address(address)
        if self.mask is not None:
            ipaddress.IPv4Network(f"0.0.0.0/{self.mask}")


class _Space(Struct, kw_only=True):
    path: Path
    free_bytes: Bytes
    total_bytes: Bytes
    writable: bool
    free_files: Bytes | None = None
    identity: Word | None = None


class _Ran(Struct, kw_only=True):
    """What a program came to."""

    code: Number | None
    stderr: Words
    stdout: Output = ""


class _Torch(_Ran, kw_only=True):
    python: Version | None = None
    torch: Version | None = None
    cuda: Version | None = None
    cuda_available: bool = False
    files: list[Path] = []

    def __post_init__(self) -> None:
        if self.code == 0 and self.torch and not self.python:
            raise ValueError("torch, but no Python")


class _Reach(Struct, kw_only=True):
    ok: bool
    error: Word = ""

    def __post_init__(self) -> None:
        if not self.ok and not self.error:
            raise ValueError("neither reached nor why not")


class _Visit(_Reach, kw_only=True):
    tried: Port
    stalled: bool = False


class _Peers(Struct, kw_only=True):
    seconds: Seconds
    port: Port
    listens: bool
    reached: dict[Word, _Visit]
    heard: Annotated[list[Word], Meta(max_length=1000)] = []


class _Stamp(Struct, kw_only=True):
    digest: Word
    made_at: Seconds
    python: Version | None
    torch: Version | None
    cuda: Version | None
    manager: Word | None = None
    version: Version | None = None


class _Built(Struct, kw_only=True):
    """Of a training environment; {} where nobody makes it."""

    there: bool | UnsetType = UNSET
    stamp: _Stamp | UnsetType | None = UNSET
    program: Path | None = None
    version: Version | None = None
    manifest: Path | None = None
    activate: Path | None = None

    def __post_init__(self) -> None:
        told = any((self.program, self.version, self.manifest, self.activate))
        if (self.there is UNSET) != (self.stamp is UNSET) or (self.there is UNSET and told):
            raise ValueError("an environment, but not whether it is there")


class _Model(Struct, kw_only=True):
    missing: Word = ""
    path: Path = ""
    config: dict[str, Any] = {}
    weights_bytes: Bytes | None = None


class _Base(Struct, kw_only=True):
    path: Path | None
    version: PythonVersion | None


class Probe(Struct, kw_only=True):
    """See `node/probe.py`."""

    hostname: Word
    resolves_to: Word | None
    interfaces: dict[Interface, _Interface]
    python: Version
    boot_id: Word
    cpus: Number | None
    project: _Space
    shm: _Space
    rsync: Path | None
    lease: _Held | None
    jobs: Annotated[list[_Process], Meta(max_length=10_000)]
    our_pids: list[Pid]
    torch: _Torch
    gpus: _Ran
    apps: _Ran
    started: Seconds
    ended: Seconds
    home: _Space | None = None
    open_files: Number | None = None
    visible_cards: Word | None = None
    preface: Words = ""
    port: Word = ""
    port_error: Word | None = None
    free_port: Port | None = None
    reach: _Reach | None = None
    peers: _Peers | None = None
    environment: _Built | None = None
    model: _Model | None = None

    def __post_init__(self) -> None:
        if self.gpus.code is not None and abs(self.gpus.code) > 255:
            raise ValueError("no exit code of nvidia-smi")


class Environment(Struct, kw_only=True):
    """See `node/environment.py`."""

    environment: _Built
    torch: _Torch
    machine: Machine | None = None
    base: _Base | None = None


class Build(Environment, kw_only=True):
    """See `node/build.py`; of a build that did not fail."""

    made: bool
    seconds: Seconds
    bytes: Bytes
    kept: Path | None


class _Failed(Struct, kw_only=True):
    phase: Word
    tail: Words
    free_bytes: Bytes | None
    log: Path
    message: Words


class _Progress(Struct, kw_only=True):
    phase: Word
    seconds: Seconds
    bytes: Bytes
    line: Annotated[str, Meta(max_length=2000)]


class State(Struct, kw_only=True):
    """See `node/jobs.py`; so too for those below."""

    known: bool
    supervised: bool
    started: bool
    processes: list[_Process]
    exit: dict[str, Any] | None = None


class _Exit(Struct, kw_only=True):
    started_at: Seconds | None = None


class Stop(Struct, kw_only=True):
    """What is left of a job, and how it ended, where that is known."""

    left: list[_Process]
    exit: _Exit | None = None


class Reset(Struct, kw_only=True):
    """What was ended, and what is left of it."""

    left: list[_Process]
    ended: list[_Process]


class Manifests(Struct, kw_only=True):
    """See `node/follow.py`."""

    manifests: Annotated[list[str], Meta(max_length=10_000)]


class CleanedFolder(Struct, kw_only=True):
    """A job's folder on a node; `kept` says why it stays."""

    path: Path
    bytes: Bytes
    removed: bool
    kept: Words | None


class Clean(Struct, kw_only=True):
    """See `node/cleaning.py`."""

    folders: dict[str, CleanedFolder]
    others: Annotated[list[Word], Meta(max_length=10_000)]


class Done(Struct):
    """Whatever it says is not used."""


SHAPES: dict[str, type[Struct]] = {
    "probe": Probe, "environment": Environment, "build_environment": Build, "state": State, "stop": Stop,
    "reset": Reset, "manifests": Manifests, "clean": Clean, "prepare": Done, "start": Done, "make_folder": Done,
}  # fmt: skip
# What a node may refuse because another job has it; of any other request, "busy" would be no answer.
MAY_BE_BUSY = {"prepare", "build_environment"}


def decoded(line: bytes) -> dict[str, Any]:
    """The object in a line of JSON; raises ValueError for anything else, also for text that cannot be stored."""
    answer = decode(object, line)
    if not isinstance(answer, dict):
        raise ValueError("no object")
    return answer


def checked(operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, if it is one to this request; raises ValueError."""
    builds = operation == "build_environment"
    if builds and "progress" in answer:
        convert(_Progress, answer["progress"])
    elif builds and answer.get("error") == "failed":
        convert(_Failed, answer)
    elif "error" not in answer:
        convert(SHAPES[operation], answer)
    return answer


def shortened(words: object, characters: int = 2000) -> str:
    """What a node said, no more of it than anybody would read."""
    return printable_lines(str(words))[:characters]


def interface_of(node: Node, facts: Mapping[str, Any]) -> str | None:
    """The interface that owns the node's address."""
    return next((name for name, i in facts["interfaces"].items() if node.address in i["addresses"]), None)
