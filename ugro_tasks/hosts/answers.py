"""What a node may answer to each request: checked while it is read, so that nobody above has to expect anything else.

    convert(StopAnswer, {"left": [], "exit": None, "seconds": 0.1})     # a StopAnswer, or UNREADABLE

A node may be broken, or another program may answer for it. What is not named here is left out: a fact that a check
learns to use needs a field, and the field says what it may be. Each answer is told of in `node/`, in the function of
its request; the requests are in `operations.py`.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from ..codec import UNREADABLE, convert, decode
from ..text import printable_lines
from .nvidia import Gpu, GpuProcess, parse_apps, parse_gpus

# A program's words, a path, a word of a table: as long as they may be where anybody shows or stores them.
Words = Annotated[str, Meta(max_length=20_000)]
Path = Annotated[str, Meta(max_length=4096)]
Word = Annotated[str, Meta(max_length=300)]
Output = Annotated[str, Meta(max_length=1 << 20)]
InterfaceName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.@-]{1,15}\Z")]
Pid = Annotated[int, Meta(ge=1, le=1 << 31)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Number = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=-1e10, le=1e10)]
# These three become parts of paths and of command lines of this machine, where it fetches packages for a node.
Version = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z][0-9A-Za-z.+_-]{0,99}\Z")]
PythonVersion = Annotated[
    str, Meta(pattern=r"\A[0-9]{1,3}\.[0-9]{1,3}([.+][0-9A-Za-z.+]{0,40})?\Z")
]
Machine = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_]{1,32}\Z")]


class Held(Struct, frozen=True, kw_only=True):
    """Who has a node: the holder of its lease, or a process that a job left there."""

    job: Word | None = None
    token: Word | None = None
    controller: Path | None = None
    pid: Pid | None = None
    command: Word | None = None
    since: Seconds | None = None


class Process(Struct, frozen=True, kw_only=True):
    """A living process of a job."""

    pid: Pid
    job: Word
    token: Word
    command: Word


class Interface(Struct, frozen=True, kw_only=True):
    """A network interface; its addresses are in the order in which gloo and NCCL see them."""

    addresses: Annotated[list[Word], Meta(max_length=1000)]
    mtu: Annotated[int, Meta(ge=0, le=1 << 31)] | None
    mask: Word | None = None

    def __post_init__(self) -> None:
        for address in self.addresses:
            ipaddress.ip_address(address)
        if self.mask is not None:
            ipaddress.IPv4Network(f"0.0.0.0/{self.mask}")


class Space(Struct, frozen=True, kw_only=True):
    """The room in a folder, or where it would be."""

    path: Path
    free_bytes: Bytes
    total_bytes: Bytes
    writable: bool
    free_files: Bytes | None = None
    identity: Word | None = None


class Ran(Struct, frozen=True, kw_only=True):
    """What a program came to."""

    code: Number | None
    stderr: Words
    stdout: Output = ""


class Torch(Ran, frozen=True, kw_only=True):
    """What the environment's own Python tells of torch."""

    python: Version | None = None
    torch: Version | None = None
    cuda: Version | None = None
    cuda_available: bool | UnsetType = UNSET  # not asked where no GPU is promised
    files: list[Path] = []

    def __post_init__(self) -> None:
        if self.code == 0 and self.torch and not self.python:
            raise ValueError("torch, but no Python")


class Reach(Struct, frozen=True, kw_only=True):
    """Whether a node reached an address, or why not."""

    ok: bool
    error: Word = ""

    def __post_init__(self) -> None:
        if not self.ok and not self.error:
            raise ValueError("neither reached nor why not")


class Visited(Reach, frozen=True, kw_only=True):
    """Whether a node reached another one on the port that it tried."""

    tried: Port
    stalled: bool = False


class Peers(Struct, frozen=True, kw_only=True):
    """Whom a node reached and from whom it heard."""

    seconds: Seconds
    port: Port
    listens: bool
    reached: dict[Word, Visited]
    heard: Annotated[list[Word], Meta(max_length=1000)] = []


class Stamp(Struct, frozen=True, kw_only=True):
    """What an environment was made from, and what came of it."""

    digest: Word
    made_at: Seconds
    python: Version | None
    torch: Version | None
    cuda: Version | None
    manager: Word | None = None
    version: Version | None = None


class Built(Struct, frozen=True, kw_only=True):
    """A training environment as it lies on a node; empty where nobody makes it."""

    there: bool | UnsetType = UNSET
    stamp: Stamp | UnsetType | None = UNSET
    program: Path | None = None
    version: Version | None = None
    manifest: Path | None = None
    activate: Path | None = None

    def __post_init__(self) -> None:
        told = any((self.program, self.version, self.manifest, self.activate))
        if (self.there is UNSET) != (self.stamp is UNSET) or (
            self.there is UNSET and told
        ):
            raise ValueError("an environment, but not whether it is there")

    @property
    def is_managed(self) -> bool:
        """Whether UGRO makes this environment."""
        return self.there is not UNSET

    @property
    def known_stamp(self) -> Stamp | None:
        """What it was made from, where that is known."""
        return None if isinstance(self.stamp, UnsetType) else self.stamp


class Model(Struct, frozen=True, kw_only=True):
    """A model on a node, see `node/model.py`; or why nothing is known of it."""

    missing: Word = ""
    path: Path = ""
    config: dict[str, Any] = {}
    weights_bytes: Bytes | None = None


class BasePython(Struct, frozen=True, kw_only=True):
    """The Python that an environment would be made from."""

    path: Path | None
    version: PythonVersion | None


class ProbeAnswer(Struct, frozen=True, kw_only=True):
    """All that a health check or a launch wants to know of a node."""

    hostname: Word
    resolves_to: Word | None
    interfaces: dict[InterfaceName, Interface]
    python: Version
    boot_id: Word
    cpus: Number | None
    project: Space
    shm: Space
    rsync: Path | None
    lease: Held | None
    jobs: Annotated[list[Process], Meta(max_length=10_000)]
    our_pids: list[Pid]
    torch: Torch
    gpus: Ran
    apps: Ran
    started: Seconds
    ended: Seconds
    home: Space | None = None
    open_files: Number | None = None
    visible_cards: Word | None = None
    preface: Words = ""
    port: Word = ""
    port_error: Word | None = None
    free_port: Port | None = None
    reach: Reach | None = None
    peers: Peers | None = None
    environment: Built | None = None
    model: Model | None = None

    def __post_init__(self) -> None:
        if self.gpus.code is not None and abs(self.gpus.code) > 255:
            raise ValueError("no exit code of nvidia-smi")

    @property
    def cards(self) -> tuple[Gpu, ...]:
        """The GPUs that nvidia-smi tells of."""
        return parse_gpus(self.gpus.stdout)

    @property
    def gpu_processes(self) -> tuple[GpuProcess, ...]:
        """The processes that have memory of a GPU."""
        return parse_apps(self.apps.stdout)

    @property
    def holder(self) -> Held | None:
        """Who has the node: the holder of its lease, or a job of which something still runs; None where it is free."""
        if self.lease is not None:
            return self.lease
        for process in self.jobs:
            return Held(
                job=process.job,
                token=process.token,
                pid=process.pid,
                command=process.command,
            )
        return None

    def interface_of(self, address: str) -> str | None:
        """Find the interface that owns an address."""
        for name, interface in self.interfaces.items():
            if address in interface.addresses:
                return name
        return None


class EnvironmentAnswer(Struct, frozen=True, kw_only=True):
    """What a node has as its environment, and what one could be made from."""

    environment: Built
    torch: Torch
    machine: Machine | None = None
    base: BasePython | None = None


class BuildAnswer(EnvironmentAnswer, frozen=True, kw_only=True):
    """The environment after a build that did not fail."""

    made: bool
    seconds: Seconds
    bytes: Bytes
    kept: Path | None


class BuildFailed(Struct, frozen=True, kw_only=True):
    """Why a build failed, and what the installer said last."""

    phase: Word
    tail: Words
    free_bytes: Bytes | None
    log: Path
    message: Words


class BuildProgress(Struct, frozen=True, kw_only=True):
    """How a build goes: bytes written so far; `line` is what the installer said last."""

    phase: Word
    seconds: Seconds
    bytes: Bytes
    line: Annotated[str, Meta(max_length=2000)]


class StateAnswer(Struct, frozen=True, kw_only=True):
    """What a node knows of a job; its `exit` is shown and not read."""

    known: bool
    supervised: bool
    started: bool
    processes: list[Process]
    exit: dict[str, Any] | None = None


class ExitRecord(Struct, frozen=True, kw_only=True):
    """What counts of a rank's exit record where it was stopped."""

    started_at: Seconds | None = None


class StopAnswer(Struct, frozen=True, kw_only=True):
    """What is left of a job, and how it ended, where that is known."""

    left: list[Process]
    exit: ExitRecord | None = None

    @property
    def ran(self) -> bool:
        """Whether the rank had begun."""
        return bool(self.exit and self.exit.started_at)

    @property
    def left_pids(self) -> tuple[int, ...]:
        """The processes that live even after KILL."""
        return tuple(process.pid for process in self.left)


class ResetAnswer(Struct, frozen=True, kw_only=True):
    """What was ended, and what is left of it."""

    left: list[Process]
    ended: list[Process]


class ManifestsAnswer(Struct, frozen=True, kw_only=True):
    """The manifests of the checkpoints that lie on a node."""

    manifests: Annotated[list[str], Meta(max_length=10_000)]


class CleanedFolder(Struct, frozen=True, kw_only=True):
    """A job's folder on a node; `kept` says why it stays."""

    path: Path
    bytes: Bytes
    removed: bool
    kept: Words | None


class CleanAnswer(Struct, frozen=True, kw_only=True):
    """What became of each job's folder, and which others there are."""

    folders: dict[str, CleanedFolder]
    others: Annotated[list[Word], Meta(max_length=10_000)]


class MadeFolder(Struct, frozen=True, kw_only=True):
    """The folder that is there now."""

    project: Path


class Done(Struct, frozen=True):
    """What else such an answer says is not used."""


def decoded(line: bytes) -> dict[str, Any]:
    """Decode a line of JSON; raises ValueError for all but an object, also for text that cannot be stored."""
    answer = decode(object, line)
    if not isinstance(answer, dict):
        raise ValueError("no object")
    return answer


def holder_of(refusal: dict[str, Any]) -> Held | None:
    """Read who has the node, from the refusal of a request; None where it does not say that."""
    try:
        return convert(Held, refusal.get("holder"))
    except UNREADABLE:
        return None


def describe_holder(holder: Held | None) -> str:
    """Say who has a node, as in: held by job exp1 of /a (pid 7 there)."""
    if holder is None or not holder.job:
        return "held by another job"
    words = f"held by job {shortened(holder.job, 100)}"
    if holder.controller:
        words += f" of {shortened(holder.controller, 300)}"
    if holder.pid:
        words += f" (pid {holder.pid} there)"
    return words


def shortened(words: object, characters: int = 2000) -> str:
    """What a node said, no more of it than anybody would read."""
    return printable_lines(str(words))[:characters]
