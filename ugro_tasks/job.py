"""A job as data: what was asked for, what will run where, and how far it has come.

These records are the JSON of the experiment folder (`experiments.py`) and of `--json`. Times are Unix seconds.
"""

from __future__ import annotations

import re
import time
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct, field

from .errors import UsageError
from .threadsafe import threadsafe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SCRIPT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*\.py")
# What decoding a record that is damaged, or that a hostile node sent, can raise.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
# No more than anybody could mean: a damaged record must not cost hours.
Rank = Annotated[int, msgspec.Meta(ge=0, le=9999)]
Mebibytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Number = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Phase(StrEnum):
    """Where a job is. The first four are unfinished; no job leaves the others again."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REFUSED = "refused"  # by the health gate or a busy node: nothing of it ever ran

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in {Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.REFUSED}


class Resume(Struct, frozen=True, kw_only=True):
    """A checkpoint that a run goes on from."""

    job_id: str  # whose experiment folder holds it
    checkpoint: str  # its name there, e.g. checkpoint-50
    step: int


class JobSpec(Struct, frozen=True, kw_only=True):
    """What a user asks for."""

    name: str
    script: str
    model: str
    dataset: str
    epochs: int
    learning_rate: float
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # see settings.py
    force: bool = False
    sync: bool = True  # bring environments that are behind up to date before the start
    max_restarts: int = 0  # of the whole gang, after a failed rank or a lost node
    min_nodes: int | None = None  # a restart may go on with so few; None: all are needed
    resume: Resume | None = None

    def _words(self) -> dict[str, tuple[str, ...]]:
        """{flag: the words that come from it}."""
        env = tuple(self.env.values())
        return {"--model": (self.model,), "--dataset": (self.dataset,), "--args": self.args, "--env": env}

    def checked(self) -> JobSpec:
        """The same spec; raises UsageError, naming every value that cannot be used."""
        from .node.supervisor import MISLEADING  # late: only a launch needs it

        faults = [
            fault
            for wrong, fault in (
                (
                    not NAME.fullmatch(self.name),
                    f"--name {self.name!r}: use letters, digits, '.', '_' and '-' (64 at most)",
                ),
                (
                    not SCRIPT.fullmatch(self.script) or ".." in self.script.split("/"),
                    f"--script {self.script!r}: name a .py file inside the scripts folder",
                ),
                (not 1 <= self.epochs <= 1_000_000, f"--epochs {self.epochs}: use a whole number from 1 on"),
                (
                    not 0 < self.learning_rate < 1e3,
                    f"--lr {self.learning_rate:g}: use a number above 0, e.g. 2e-4",
                ),
                (
                    not self.model or self.model.startswith("-"),
                    f"--model {self.model!r}: use a name or a path",
                ),
                (
                    not self.dataset or self.dataset.startswith("-"),
                    f"--dataset {self.dataset!r}: use a name or a path",
                ),
                *(
                    (not VARIABLE.fullmatch(key), f"--env {key!r}: not a variable's name; use KEY=VALUE")
                    for key in self.env
                ),
                *(
                    (MISLEADING.match(key), f"--env {key}: UGRO or torchrun sets this itself")
                    for key in self.env
                ),
                *(
                    (
                        not _can_travel(word),
                        f"{flag} {word!r}: a NUL byte or no UTF-8; a program cannot be given that",
                    )
                    for flag, words in self._words().items()
                    for word in words
                ),
            )
            if wrong
        ]
        if faults:
            raise UsageError("\n".join(faults))
        return self


def _can_travel(word: str) -> bool:
    try:
        return b"\0" not in word.encode()
    except UnicodeEncodeError:
        return False


class Memory(Struct, frozen=True, kw_only=True):
    """What a rank is expected to need of its card, in MiB; memory.py says how that is found."""

    weights_mib: Mebibytes
    trained_mib: Mebibytes  # what is trained beside the weights, gradients, and the optimizer's moments
    activations_mib: Mebibytes
    overhead_mib: Mebibytes  # CUDA and its libraries
    total_mib: Mebibytes
    card_mib: Mebibytes = 0
    taken_mib: Mebibytes = 0  # of the card, by others
    fit: Literal["fits", "tight", "too large"] = "fits"  # tight: it depends on how good the estimate is

    @property
    def room_mib(self) -> int:
        """What of the card is free for the rank."""
        return self.card_mib - self.taken_mib


class NodePlan(Struct, frozen=True, kw_only=True):
    """What one node runs: torchrun's argv and what its environment gains."""

    node: str
    rank: Rank
    address: str
    interface: str
    token: str  # UGRO_TOKEN: what the rank's processes are found by
    folder: str  # on the node; a leading ~/ is the remote user's home, here and in argv and env
    argv: tuple[str, ...]
    env: dict[str, str]
    activation: tuple[
        str, ...
    ] = ()  # what tells the variables of an environment of pixi's; `env` goes over them
    batch_size: Size = 1  # sequences in a micro-step of this rank
    memory: Memory | None = None  # None: there is no estimate,
    memory_unknown: str | None = None  # for this reason; None: for this script there never is


class LaunchPlan(Struct, frozen=True, kw_only=True):
    """What a launch does, node by node, in the order of the ranks."""

    job_id: str
    world_size: int
    master_address: str
    master_port: int
    nodes: tuple[NodePlan, ...]
    effective_batch: Size | None = None  # sequences in a step of all ranks; None: a matter of the script
    attempt: Number = 1  # counts the restarts
    resume: Resume | None = None


class Code(Struct, frozen=True, kw_only=True):
    """The scripts as launched."""

    sha256: str
    git_commit: str | None


@threadsafe
class JobRecord(Struct, frozen=True, kw_only=True):
    """config.json: the spec, where it goes, and the plan once there is one."""

    job_id: str
    nonce: str  # tells it from a job of the same id and another controller
    job_name: str
    model: str
    dataset: str
    epochs: int
    learning_rate: float
    script: str
    args: tuple[str, ...]
    env: dict[str, str]
    force: bool
    started_at: str  # ISO 8601, local time: when the launch was asked for
    nodes: tuple[str, ...]
    code: Code
    cluster: dict[str, Any]  # the Cluster that it runs on, as in the file at that time
    ugro_version: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    sync: bool = True
    max_restarts: int = 0
    min_nodes: int | None = None
    resume: Resume | None = None
    plan: LaunchPlan | None = None  # of the last attempt

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        shared = {name: getattr(self, name) for name in JobSpec.__struct_fields__ if name != "name"}
        return JobSpec(name=self.job_name, **shared)


class Cause(Struct, frozen=True, kw_only=True):
    """Why a job did not succeed: what happened, on which node, and what its rank said last."""

    message: str
    node: str | None = None
    rank: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    last_lines: tuple[str, ...] = ()


class RankState(Struct, frozen=True, kw_only=True):
    """One rank, as last heard of."""

    rank: Rank
    node: str
    connected: bool = False
    exit_code: int | None = None
    signal: int | None = None
    lost: str | None = None
    ended_at: float | None = None
    left_pids: tuple[int, ...] = ()  # of the job, alive after a stop
    proven_gone: bool = False  # the node has shown that nothing of the job lives there


class Attempt(Struct, frozen=True, kw_only=True):
    """One start of the whole gang: the first, or a restart."""

    number: Number
    nodes: tuple[str, ...]
    began_at: float
    bases: dict[str, int]  # {stream: bytes of its file here that are older than the attempt}
    resume: Resume | None = None
    ended_at: float | None = None
    cause: Cause | None = None
    left_behind: tuple[str, ...] = ()  # nodes that could not be told to stop
    ran: bool = False  # its ranks have begun, or may have
    gathered: bool = False  # all that its ranks wrote is home


@threadsafe
class JobState(Struct, frozen=True, kw_only=True):
    """state.json: how far the job has come."""

    phase: Phase = field(name="state")
    submitted_at: float = field(default_factory=time.time)
    started_at: float | None = None  # all ranks run
    ended_at: float | None = None
    ranks: tuple[RankState, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    cause: Cause | None = None
    exit_code: int = 0  # what `inv launch` ends with; see errors.py
    gathered_at: float | None = (
        None  # since when all that the ranks wrote is home; None: perhaps not all of it
    )
    cleaned: tuple[str, ...] = ()  # nodes on which `inv clean` has removed what was left of the job

    @property
    def seconds(self) -> float | None:
        """From the first moment when all ranks ran to the end, or to now."""
        return None if self.started_at is None else (self.ended_at or time.time()) - self.started_at


@threadsafe
class Event(Struct, frozen=True, kw_only=True):
    """A line of events.jsonl: something that a user who watches wants to know."""

    time: float
    message: str
    node: str | None = None
