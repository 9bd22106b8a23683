"""The typed answers of a node, validated while they are decoded.

    convert(StopAnswer, {"left": [], "exit": None, "seconds": 0.1})   # a StopAnswer, or UNREADABLE

A node may be broken or hostile, and another program may answer in its place; callers of this module
need not expect either. Unknown fields are dropped, so each fact used by a check needs a field with
its limits. The functions in `node/` document the answers; the requests are in `operations.py`.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from ..codec import UNREADABLE, convert, decode
from ..text import printable_lines
from .nvidia import Gpu, GpuProcess, parse_apps, parse_gpus

# Limits for text to be shown or stored: output of a program, a path, a cell of a table.
LongText = Annotated[str, Meta(max_length=20_000)]
Path = Annotated[str, Meta(max_length=4096)]
ShortText = Annotated[str, Meta(max_length=300)]
Output = Annotated[str, Meta(max_length=1 << 20)]
InterfaceName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.@-]{1,15}\Z")]
Pid = Annotated[int, Meta(ge=1, le=1 << 31)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=-1e10, le=1e10)]
# These three become parts of paths and command lines here, when packages are fetched for a node.
Version = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z][0-9A-Za-z.+_-]{0,99}\Z")]
PythonVersion = Annotated[
    str, Meta(pattern=r"\A[0-9]{1,3}\.[0-9]{1,3}([.+][0-9A-Za-z.+]{0,40})?\Z")
]
Machine = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_]{1,32}\Z")]


class Holder(Struct, frozen=True, kw_only=True):
    """The holder of a node: of its lease, or a process left there by a job."""

    job: ShortText | None = None
    token: ShortText | None = None
    node: ShortText | None = None
    """Where it runs, if that is another machine that shares the node's environment."""
    controller: Path | None = None
    pid: Pid | None = None
    command: ShortText | None = None
    since: Seconds | None = None
    user: ShortText | None = None
    """Another user of that machine; None: the one that UGRO logs in as."""


class Process(Struct, frozen=True, kw_only=True):
    """A living process of a job."""

    pid: Pid
    job: ShortText
    token: ShortText
    command: ShortText
    user: ShortText | None = None
    """Another user of that machine, whose processes UGRO cannot end there; None: the one that it logs in as."""


class Interface(Struct, frozen=True, kw_only=True):
    """A network interface; its addresses are in the order seen by gloo and NCCL."""

    addresses: Annotated[list[ShortText], Meta(max_length=1000)]
    mtu: Annotated[int, Meta(ge=0, le=1 << 31)] | None
    mask: ShortText | None = None

    def __post_init__(self) -> None:
        for address in self.addresses:
            ipaddress.ip_address(address)
        if self.mask is not None:
            ipaddress.IPv4Network(f"0.0.0.0/{self.mask}")


class Space(Struct, frozen=True, kw_only=True):
    """The disk space of a folder; a missing folder has the space of its nearest parent."""

    path: Path
    free_bytes: Bytes
    total_bytes: Bytes
    writable: bool
    free_files: Bytes | None = None
    identity: ShortText | None = None


class Ran(Struct, frozen=True, kw_only=True):
    """The exit code and output of a program."""

    code: Int64 | None
    stderr: LongText
    stdout: Output = ""


class Torch(Ran, frozen=True, kw_only=True):
    """The facts about torch, from the environment's own Python."""

    python: Version | None = None
    torch: Version | None = None
    cuda: Version | None = None
    # Unset if no GPU is promised: then torch is not asked.
    cuda_available: bool | UnsetType = UNSET
    files: list[Path] = []

    def __post_init__(self) -> None:
        if self.code == 0 and self.torch and not self.python:
            raise ValueError("torch, but no Python")


class Logout(Struct, frozen=True, kw_only=True):
    """What becomes of a user's processes when the login ends that started them."""

    kills: bool
    lingers: bool
    scope_error: LongText = ""


class Reach(Struct, frozen=True, kw_only=True):
    """The result of an attempt to reach an address."""

    ok: bool
    error: ShortText = ""

    def __post_init__(self) -> None:
        if not self.ok and not self.error:
            raise ValueError("neither reached nor why not")


class PeerVisit(Reach, frozen=True, kw_only=True):
    """The result of one node's attempt to reach another one."""

    tried: Port
    stalled: bool = False


class Peers(Struct, frozen=True, kw_only=True):
    """A node's connections to its peers: the nodes reached, and the nodes heard from."""

    seconds: Seconds
    port: Port
    listens: bool
    reached: dict[ShortText, PeerVisit]
    heard: Annotated[list[ShortText], Meta(max_length=1000)] = []


class Stamp(Struct, frozen=True, kw_only=True):
    """The record in an environment of its recipe and its versions."""

    digest: ShortText
    made_at: Seconds
    python: Version | None
    torch: Version | None
    cuda: Version | None
    manager: ShortText | None = None
    version: Version | None = None


class Built(Struct, frozen=True, kw_only=True):
    """A training environment on a node; empty if it is not managed by UGRO."""

    there: bool | UnsetType = UNSET
    stamp: Stamp | UnsetType | None = UNSET
    program: Path | None = None
    version: Version | None = None
    manifest: Path | None = None
    activate: Path | None = None

    def __post_init__(self) -> None:
        told = any((self.program, self.version, self.manifest, self.activate))
        is_unknown = self.there is UNSET
        has_no_stamp = self.stamp is UNSET
        if is_unknown != has_no_stamp or (is_unknown and told):
            raise ValueError("an environment, but not whether it is there")

    @property
    def is_managed(self) -> bool:
        """Tell whether UGRO makes this environment."""
        return self.there is not UNSET

    @property
    def known_stamp(self) -> Stamp | None:
        """Return the environment's stamp, None if it has none or is not managed."""
        return None if isinstance(self.stamp, UnsetType) else self.stamp


class Model(Struct, frozen=True, kw_only=True):
    """The facts about a model on a node, see `node/model.py`; or the reason for their absence."""

    missing: ShortText = ""
    path: Path = ""
    config: dict[str, Any] = {}
    weights_bytes: Bytes | None = None


class BasePython(Struct, frozen=True, kw_only=True):
    """The Python to make an environment from."""

    path: Path | None
    version: PythonVersion | None


class ProbeAnswer(Struct, frozen=True, kw_only=True):
    """All facts about a node for a health check or a launch."""

    hostname: ShortText
    resolves_to: ShortText | None
    interfaces: dict[InterfaceName, Interface]
    python: Version
    boot_id: ShortText
    cpus: Int64 | None
    project: Space
    shm: Space
    rsync: Path | None
    lease: Holder | None
    jobs: Annotated[list[Process], Meta(max_length=10_000)]
    our_pids: list[Pid]
    torch: Torch
    gpus: Ran
    apps: Ran
    started: Seconds
    ended: Seconds
    home: Space | None = None
    logout: Logout | None = None
    open_files: Int64 | None = None
    visible_cards: ShortText | None = None
    preface: LongText = ""
    port: ShortText = ""
    port_error: ShortText | None = None
    free_port: Port | None = None
    reach: Reach | None = None
    peers: Peers | None = None
    environment: Built | None = None
    model: Model | None = None

    def __post_init__(self) -> None:
        code = self.gpus.code
        if code is not None and abs(code) > 255:
            raise ValueError("no exit code of nvidia-smi")

    @property
    def cards(self) -> tuple[Gpu, ...]:
        """Return the GPUs listed by nvidia-smi."""
        return parse_gpus(self.gpus.stdout)

    @property
    def gpu_processes(self) -> tuple[GpuProcess, ...]:
        """Return the processes using GPU memory."""
        return parse_apps(self.apps.stdout)

    @property
    def holder(self) -> Holder | None:
        """Return the lease's holder, else a job with a living process, None if the node is free."""
        if self.lease is not None:
            return self.lease
        for process in self.jobs:
            return Holder(
                job=process.job,
                token=process.token,
                pid=process.pid,
                command=process.command,
            )
        return None

    def interface_of(self, address: str) -> str | None:
        """Return the name of the interface with an address, None if none has it."""
        for name, interface in self.interfaces.items():
            if address in interface.addresses:
                return name
        return None


class EnvironmentAnswer(Struct, frozen=True, kw_only=True):
    """A node's environment, and the Python and platform to make one from."""

    environment: Built
    torch: Torch
    machine: Machine | None = None
    base: BasePython | None = None


class BuildAnswer(EnvironmentAnswer, frozen=True, kw_only=True):
    """The environment after a successful build."""

    made: bool
    seconds: Seconds
    bytes: Bytes
    kept: Path | None


class BuildFailed(Struct, frozen=True, kw_only=True):
    """The reason for a failed build, and the last output of the installer."""

    phase: ShortText
    tail: LongText
    free_bytes: Bytes | None
    log: Path
    message: LongText


class BuildProgress(Struct, frozen=True, kw_only=True):
    """The progress of a build: bytes written so far, and the installer's last line."""

    phase: ShortText
    seconds: Seconds
    bytes: Bytes
    line: Annotated[str, Meta(max_length=2000)]


class StateAnswer(Struct, frozen=True, kw_only=True):
    """A node's knowledge of a job; `exit` is shown only, never interpreted."""

    known: bool
    supervised: bool
    started: bool
    processes: list[Process]
    paused: tuple[Pid, ...] = ()
    """Those of the processes that a signal has halted: they neither end nor go on."""
    exit: dict[str, Any] | None = None


class ExitRecord(Struct, frozen=True, kw_only=True):
    """The relevant part of a stopped rank's exit record."""

    started_at: Seconds | None = None


class StopAnswer(Struct, frozen=True, kw_only=True):
    """The processes left of a job, and its exit record if there is one."""

    left: list[Process]
    exit: ExitRecord | None = None

    @property
    def ran(self) -> bool:
        """Tell whether the rank had begun."""
        return bool(self.exit and self.exit.started_at)

    @property
    def left_pids(self) -> tuple[int, ...]:
        """Return the pids of the processes alive even after KILL."""
        return tuple(process.pid for process in self.left)


class ResetAnswer(Struct, frozen=True, kw_only=True):
    """The processes ended by a reset, and those still alive."""

    left: list[Process]
    ended: list[Process]


class ManifestsAnswer(Struct, frozen=True, kw_only=True):
    """The manifests of the checkpoints on a node."""

    manifests: Annotated[list[str], Meta(max_length=10_000)]


class CleanedFolder(Struct, frozen=True, kw_only=True):
    """A job's folder on a node; `kept` is the reason to keep it, `streams` the bytes of each file."""

    path: Path
    bytes: Bytes
    removed: bool
    kept: LongText | None
    streams: dict[str, Bytes] | None = None


class CleanAnswer(Struct, frozen=True, kw_only=True):
    """The result for each job folder, and the names of other job folders."""

    folders: dict[str, CleanedFolder]
    others: Annotated[list[ShortText], Meta(max_length=10_000)]


class FolderAnswer(Struct, frozen=True, kw_only=True):
    """The folder, present now."""

    project: Path


class EmptyAnswer(Struct, frozen=True):
    """An answer without any fact of interest."""


def decode_object(line: bytes) -> dict[str, Any]:
    """Decode a line of JSON; raises ValueError for anything but a storable object."""
    answer = decode(object, line)
    if not isinstance(answer, dict):
        raise ValueError("no object")
    return answer


def holder_of(refusal: dict[str, Any]) -> Holder | None:
    """Read the holder of a node from a refusal; return None if it names none."""
    try:
        return convert(Holder, refusal.get("holder"))
    except UNREADABLE:
        return None


def describe_holder(holder: Holder | None) -> str:
    """Describe the holder of a node, as in: held by job exp1 of /a (pid 7 there)."""
    holder = holder or Holder()
    job = shortened(holder.job, 100) if holder.job else None
    words = f"held by job {job}" if job else "held by another job"
    if holder.node:
        words += f" on {shortened(holder.node, 100)}"
    if holder.user:
        words += f" of the user {shortened(holder.user, 100)}"
    if holder.controller:
        words += f" of {shortened(holder.controller, 300)}"
    if holder.pid:
        words += f" (pid {holder.pid} there)"
    return words


def shortened(words: object, characters: int = 2000) -> str:
    """Return text from a node, printable and at most this long."""
    return printable_lines(str(words))[:characters]
