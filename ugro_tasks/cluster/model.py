"""The machines of a cluster and the defaults of a training: `Cluster` and its parts.

    cluster = load_cluster()                # of file.py: reads ./cluster.yaml
    cluster.master.address                  # '192.168.1.100'
    cluster.subset({"gpu-master", "gpu2"})  # the same cluster with two nodes, ranks 0 and 1
    Cluster.from_json(cluster.as_json()) == cluster

Everything here is resolved: no `${VAR}`, no second place to look up. A path on a node may still
begin with `~/`, the home of the node's own user; only the node knows it.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, Struct, field

from ..codec import convert
from ..errors import UsageError
from .values import NUMBER_MAX, PORT_MAX, RANK_MAX, SECONDS_MAX, checked_line, shown

MANAGERS = Literal["existing", "venv", "uv", "pixi"]
DEFAULT_PROJECT = "~/ugro"
PACKAGE = Path(__file__).parents[1]

# The limits of the numbers. All other rules were checked by the form of the cluster file.
Port = Annotated[int, Meta(ge=1, le=PORT_MAX)]
Rank = Annotated[int, Meta(ge=0, le=RANK_MAX)]
PositiveInt = Annotated[int, Meta(ge=1, le=NUMBER_MAX)]
PositiveFloat = Annotated[float, Meta(gt=0, le=NUMBER_MAX)]
Seconds = Annotated[float, Meta(gt=0, le=SECONDS_MAX)]
WholeSeconds = Annotated[int, Meta(ge=1, le=SECONDS_MAX)]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An immutable record; unknown fields are an error."""


class Environment(Record, frozen=True, kw_only=True):
    """The Python environment of a node's training, and the versions promised by the file."""

    manager: MANAGERS
    name: str = "default"
    path: str | None = None
    python: str | None = None
    python_version: str | None = None
    torch_version: str | None = None
    cuda_version: str | None = None

    def folder(self, project: str) -> str:
        """Return the environment's folder on a node with the project folder `project`."""
        if self.path:
            return self.path
        if self.manager == "pixi":
            return f"{project}/.pixi/envs/{self.name}"
        return f"{project}/.venv"

    def interpreter(self, project: str) -> str:
        """Return the environment's Python on a node with the project folder `project`."""
        if self.manager == "existing":
            return self.python or "python3"
        return f"{self.folder(project)}/bin/python"


class Node(Record, frozen=True, kw_only=True):
    """One machine, with everything needed to reach it and to start a rank there."""

    name: str
    rank: Rank
    """0 is the master."""
    transport: Literal["ssh", "openssh", "paramiko", "local"] = "ssh"
    address: str
    """The IP address among the ranks, also for SSH if `ssh -G` knows no more of the names."""
    ssh: str | None = None
    """What one would type after `ssh`."""
    hostname: str | None = None
    user: str | None = None
    """None: the ssh configuration decides; so too for `ssh_port` and `jump`."""
    ssh_port: Port | None = None
    jump: str | None = None
    python: str = "python3"
    """The interpreter that runs UGRO's program on the node."""
    project: str = DEFAULT_PROJECT
    """UGRO's folder on the node."""
    gpu_model: str | None = None
    """The promised model; None promises no GPU."""
    vram_gb: PositiveFloat | None = None
    slot: str = "node"
    """The name of the node's lease. Nodes that share one machine have one each."""
    environment: Environment

    @property
    def is_local(self) -> bool:
        """Tell whether the node is the machine running UGRO itself."""
        return self.transport == "local"

    @property
    def hides_card(self) -> bool:
        """Tell whether the rank must not see a GPU.

        Several nodes of one machine without a promised GPU must not all take the one it may have.
        """
        return self.slot == self.name and self.gpu_model is None


class TrainingDefaults(Record, frozen=True, kw_only=True):
    """The keys of `training:` given in the cluster file, and no others."""

    script: str = "train_production.py"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By section and key, as in config/training_defaults.yaml."""


class Timeouts(Record, frozen=True, kw_only=True):
    """UGRO's time limits; schema.py explains the keys."""

    connect_seconds: Seconds = 5.0
    start_seconds: Seconds = 60.0
    rendezvous_seconds: WholeSeconds = 300
    stop_grace_seconds: Seconds = 15.0
    heartbeat_seconds: Seconds = 2.0
    away_seconds: Seconds = 60.0
    return_seconds: Seconds = 300.0
    agent_linger_seconds: Seconds = 120.0


class Logging(Record, frozen=True, kw_only=True):
    """UGRO's own log files, not the training's."""

    level: Level = "INFO"
    format: str = "[%(asctime)s] %(name)s - %(levelname)s - %(message)s"
    keep_days: PositiveInt = 7


class Cluster(Record, frozen=True, kw_only=True):
    """The nodes, sorted by rank, and the defaults of everything running on them."""

    name: str
    location: str | None = None
    description: str | None = None
    nodes: tuple[Node, ...]
    master_port: Port = 29500
    environment: Environment
    training: TrainingDefaults = TrainingDefaults()
    timeouts: Timeouts = Timeouts()
    logging: Logging = Logging()
    root: Path
    """The project on this machine; `experiments`, `scripts` and `logs` are on this machine too."""
    experiments: Path
    scripts: Path
    logs: Path
    source: str
    """The cluster file, or `local`."""

    def __post_init__(self) -> None:
        """Sort the nodes by rank; raises ValueError unless ranks run from 0 and names differ."""
        nodes = tuple(sorted(self.nodes, key=lambda node: node.rank))
        ranks = [node.rank for node in nodes]
        if not nodes or ranks != list(range(len(nodes))):
            raise ValueError("the nodes' ranks must run from 0 without gaps")
        names = {node.name for node in nodes}
        if len(names) < len(nodes):
            raise ValueError("two nodes have the same name")
        msgspec.structs.force_setattr(self, "nodes", nodes)

    def as_json(self) -> dict[str, Any]:
        """Return the cluster as plain JSON data; see `from_json`."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """Make a cluster from the data of `as_json`; raises ValueError if it is invalid."""
        _refuse_unsafe_text(plain.get("nodes"))
        current = _without_old_training(plain)
        return convert(cls, current, hook=_path)

    @property
    def master(self) -> Node:
        """Return the node of rank 0, the meeting point of the ranks."""
        return self.nodes[0]

    def select(self, nodes: str | Iterable[str] | None) -> Self:
        """Return the cluster with only these nodes, a list or "gpu1,gpu2"; None selects all.

        They keep their order and get new ranks from 0.

        Raises UsageError for an unknown, repeated or empty name, and for an empty list.
        """
        if nodes is None:
            return self
        given = nodes.split(",") if isinstance(nodes, str) else list(nodes)
        flag = ",".join(given)
        names = [name.strip() for name in given]
        known = [node.name for node in self.nodes]
        for name, count in Counter(names).items():
            if name not in known:
                raise UsageError(_unknown_node(name, flag, known))
            if count > 1:
                raise UsageError(
                    f"--nodes {flag}: {name} is given {count} times; name it once."
                )
        return self.subset(names)

    def subset(self, names: Collection[str]) -> Self:
        """Return the cluster with only these nodes, in order of rank and ranked anew from 0.

        Raises UsageError for an unknown name, and for an empty collection.
        """
        known = [node.name for node in self.nodes]
        choice = f"The nodes are: {', '.join(known)}."
        unknown = sorted(set(names) - set(known))
        if unknown:
            words = ", ".join(shown(name) for name in unknown)
            raise UsageError(f"no node is called {words}. {choice}")
        if not names:
            raise UsageError(f"no node is named. {choice}")
        chosen = [node for node in self.nodes if node.name in names]
        ranked = [
            msgspec.structs.replace(node, rank=rank) for rank, node in enumerate(chosen)
        ]
        return msgspec.structs.replace(self, nodes=tuple(ranked))


def _without_old_training(plain: dict[str, Any]) -> dict[str, Any]:
    """Drop the training settings in the format before UGRO 0.2: a job's record has them all elsewhere, too."""
    training = plain.get("training")
    if not isinstance(training, dict) or "written" not in training:
        return plain
    kept = {}
    if "script" in training:
        kept["script"] = training["script"]
    return {**plain, "training": kept}


def _path(kind: type, value: Any) -> Any:
    """Make a Path, the only type here unknown to msgspec."""
    return kind(value)


def _refuse_unsafe_text(plain: Any) -> None:
    """Raise ValueError for control characters, anywhere in the data.

    The values appear in command lines and on terminals.
    """
    if isinstance(plain, str):
        if plain:
            checked_line(plain)
    elif isinstance(plain, dict):
        _refuse_unsafe_text([*plain, *plain.values()])
    elif isinstance(plain, (list, tuple)):
        for value in plain:
            _refuse_unsafe_text(value)


def _unknown_node(name: str, flag: str, known: list[str]) -> str:
    """Say that there is no such node, and suggest a similar name."""
    what = f"there is no node {shown(name)}" if name else "a name is empty"
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    unquoted = shown(flag)[1:-1]
    return f"--nodes {unquoted}: {what}. {hint}The nodes are: {', '.join(known)}."
