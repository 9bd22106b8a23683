"""The machines and defaults that every other module works from: `Cluster` and its parts.

    cluster = load_cluster()               # of ugro_tasks.cluster_file: reads ./cluster.yaml
    cluster.master.address                 # '192.168.1.100'
    cluster.select("gpu-master,gpu2")      # the same cluster with two nodes, ranks 0 and 1
    Cluster.model_validate_json(cluster.model_dump_json()) == cluster

Everything here is resolved: no `${VAR}`, nothing that has to be looked up in a second place. A path
on a node may still begin with `~/`, the home of the node's own user; only the node knows it.
"""

import ipaddress
import logging
import re
import sys
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from ugro_tasks.errors import UsageError

MANAGERS = Literal["existing", "venv", "uv", "pixi"]
DEFAULT_PROJECT = "~/ugro"
PACKAGE = Path(__file__).parent


def shown(value: object) -> str:
    """A value from a file as a message can hold it: quoted, escaped, and never long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[0]}"


def matching(pattern: str, rule: str) -> AfterValidator:
    """A check that the whole text matches `pattern`; the fault reads "<the text> <rule>"."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"{shown(value)} {rule}")
        return value

    return AfterValidator(check)


def _port(value: int) -> int:
    if not 1 <= value <= 65535:
        raise ValueError(f"{value} is not a port (1-65535)")
    return value


def _jump(value: str) -> str:
    if port := re.search(r":([0-9]+)$", value):
        _port(int(port[1]))
    return value


def _address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError(
            f"{shown(value)} is not an IP address; names do not work here, write for example "
            f"192.168.1.100 (on the machine, `ip -brief address` shows it)"
        ) from error
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{shown(value)} is no machine's own address")
    return str(address)


def _log_format(value: str) -> str:
    try:
        logging.Formatter(value)
    except ValueError as error:
        raise ValueError(
            f"{shown(value)} is not a log format of Python's logging; "
            f"a good one is '%(asctime)s %(levelname)s %(message)s'"
        ) from error
    return value


# A line of text that cannot play tricks in a terminal, a command line or a file.
Line = Annotated[str, matching(r"[^\x00-\x1f\x7f-\x9f]+", "must be one line of plain text")]
Word = Annotated[
    str,
    matching(r"[^\s\x00-\x1f\x7f-\x9f-][^\x00-\x1f\x7f-\x9f]*", "must not begin with '-' or a space"),
]
NodeName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        "is not a node name: use letters, digits, '.', '_' and '-', a letter or digit first",
    ),
]
HostName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}",
        "is not a host name: use letters, digits, '.', '_' and '-', a letter or digit first",
    ),
]
UserName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}",
        "is not a user name: use letters, digits, '.', '_', '+' and '-'",
    ),
]
Jump = Annotated[
    str,
    matching(
        r"([A-Za-z0-9_][\w.+-]*@)?([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?",
        "is not one jump host: write user@host:port (for a chain, use ProxyJump in ~/.ssh/config)",
    ),
    AfterValidator(_jump),
]
NodePath = Annotated[
    str,
    matching(r"~|~?/[^\x00-\x1f\x7f]*", "is not a path on a node: begin it with '/' or '~/'"),
]
Program = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.+-]*|~?/[^\x00-\x1f\x7f]+",
        "is not a program: write its name, or a path that begins with '/' or '~/'",
    ),
]
Script = Annotated[
    str,
    matching(
        r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*\.py",
        "is not a script: write the name of a .py file inside the scripts folder",
    ),
]
Port = Annotated[
    int,
    AfterValidator(_port),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535}),
]
Address = Annotated[str, AfterValidator(_address)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


class Fact(BaseModel):
    """What was read once and stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(Fact):
    """The Python environment that trains on a node, and what the cluster file promises of it."""

    manager: MANAGERS
    name: Word = "default"
    path: NodePath | None = None
    python: Program | None = None
    python_version: Word | None = None
    torch_version: Word | None = None
    cuda_version: Word | None = None

    def interpreter(self, project: str) -> str:
        """The environment's python on a node whose project folder is `project`."""
        if self.manager == "existing":
            return self.python or "python3"
        within = f".pixi/envs/{self.name}" if self.manager == "pixi" else ".venv"
        return f"{self.path or f'{project}/{within}'}/bin/python"


class Node(Fact):
    """One machine, with everything that is needed to reach it and to start a rank there."""

    name: NodeName
    rank: Annotated[int, Field(ge=0)]
    """0 is the master."""
    transport: Literal["ssh", "local"] = "ssh"
    address: Address
    """An IP address, for the rendezvous and for SSH."""
    hostname: HostName | None = None
    user: UserName | None = None
    """None: the ssh configuration decides; so too for `ssh_port` and `jump`."""
    ssh_port: Port | None = None
    jump: Jump | None = None
    python: Program = "python3"
    """The interpreter that runs node.py."""
    project: NodePath = DEFAULT_PROJECT
    """UGRO's folder on the node."""
    gpu_model: Line | None = None
    """What the file promises; None: no GPU is promised."""
    vram_gb: PositiveFloat | None = None
    slot: NodeName = "node"
    """The name of the node's lease. Nodes that share one machine have one each."""
    environment: Environment


class Lora(Fact):
    """Low-rank adapters: what `train_production.py` trains beside the frozen model."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: tuple[Word, ...] = ("q_proj", "v_proj")


class TrainingDefaults(Fact):
    """What `inv launch` takes where no flag says otherwise."""

    # The names in the file; in Python, and in a stored cluster, the short ones.
    model_config = ConfigDict(populate_by_name=True)

    script: Annotated[Script, Field(validation_alias="default_script")] = "train_production.py"
    """The script in the scripts folder that every rank runs."""
    model: Annotated[Word, Field(validation_alias="default_model")] = "unsloth/tinyllama-bnb-4bit"
    dataset: Annotated[Word, Field(validation_alias="default_dataset")] = "wikitext"
    epochs: Annotated[PositiveInt, Field(validation_alias="default_epochs")] = 1
    learning_rate: Annotated[PositiveFloat, Field(validation_alias="default_learning_rate")] = 2e-4
    batch_size_per_gpu: PositiveInt = 1
    """Sequences per GPU and micro-step."""
    gradient_accumulation_steps: PositiveInt = 8
    max_seq_length: PositiveInt = 2048
    """Tokens per sequence."""
    lora: Lora = Lora()


class Timeouts(Fact):
    """How long UGRO waits for what, in seconds."""

    connect_seconds: PositiveFloat = 5.0
    """For a node to answer, login included."""
    start_seconds: PositiveFloat = 60.0
    """For a node to prepare its rank, and again to start it."""
    rendezvous_seconds: PositiveInt = 300
    """For the ranks to find each other; `communication.timeout_seconds` is the same."""
    stop_grace_seconds: PositiveFloat = 15.0
    """Between TERM and KILL, so that a script can write a checkpoint."""
    heartbeat_seconds: PositiveFloat = 2.0
    """Between two signs of life of a node that has nothing else to say."""
    agent_linger_seconds: PositiveFloat = 120.0
    """That the agent stays, with its connections open, after the last job."""


class Logging(Fact):
    """UGRO's own log files, not the training's."""

    level: Level = "INFO"
    format: Annotated[str, AfterValidator(_log_format)] = (
        "[%(asctime)s] %(name)s - %(levelname)s - %(message)s"
    )
    """As Python's logging understands it."""
    keep_days: PositiveInt = 7


def _gang(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    if sorted(node.rank for node in nodes) != list(range(len(nodes))) or not nodes:
        raise ValueError("the nodes' ranks must run from 0 without gaps")
    if len({node.name for node in nodes}) < len(nodes):
        raise ValueError("two nodes have the same name")
    return tuple(sorted(nodes, key=lambda node: node.rank))


class Cluster(Fact):
    """The nodes, sorted by rank, and the defaults of everything that runs on them."""

    name: Line
    location: Line | None = None
    description: Line | None = None
    nodes: Annotated[tuple[Node, ...], AfterValidator(_gang)]
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

    @property
    def master(self) -> Node:
        """The node of rank 0, where the ranks meet."""
        return self.nodes[0]

    def select(self, names: str | None) -> Self:
        """The cluster with only the nodes in `names` ("gpu1,gpu2"), in the order of their ranks and
        ranked anew from 0; None gives the whole cluster.

        Raises UsageError for an unknown name, a name given twice, and an empty one.
        """
        if names is None:
            return self
        wanted = [name.strip() for name in names.split(",")]
        known = {node.name: node for node in self.nodes}
        for name, count in Counter(wanted).items():
            if name not in known:
                raise UsageError(_unknown_node(name, names, list(known)))
            if count > 1:
                raise UsageError(f"--nodes {names}: {name} is given {count} times; name it once.")
        chosen = [node for node in self.nodes if node.name in wanted]
        ranked = tuple(node.model_copy(update={"rank": rank}) for rank, node in enumerate(chosen))
        return self.model_copy(update={"nodes": ranked})


def _unknown_node(name: str, names: str, known: list[str]) -> str:
    what = f"there is no node {shown(name)}" if name else "a name is empty"
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"--nodes {shown(names)[1:-1]}: {what}. {hint}The nodes are: {', '.join(known)}."


def shipped_scripts() -> Path:
    """The scripts that came with UGRO: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "scripts"
    return installed if installed.is_dir() else PACKAGE.parent / "scripts"


def shipped_or(scripts: Path) -> Path:
    """`scripts` where it exists, else the shipped ones."""
    return scripts if scripts.is_dir() else shipped_scripts()


def local_cluster(root: Path) -> Cluster:
    """The built-in cluster: three nodes on this machine that train on the CPU, in `root`/.ugro."""
    environment = Environment(manager="venv", path=str(root / ".ugro" / "env"))
    nodes = tuple(
        Node(
            name=name,
            rank=rank,
            transport="local",
            address="127.0.0.1",
            python=sys.executable,
            project=str(root / ".ugro" / "nodes" / name),
            slot=name,
            environment=environment,
        )
        for rank, name in enumerate(("local0", "local1", "local2"))
    )
    return Cluster(
        name="local",
        description="three ranks on this machine's CPU",
        nodes=nodes,
        environment=environment,
        training=TrainingDefaults(
            script="train_single_test.py",
            model="char-transformer",
            dataset="shakespeare",
            epochs=3,
            learning_rate=3e-3,
        ),
        root=root,
        experiments=root / "experiments",
        scripts=shipped_or(root / "scripts"),
        logs=root / "logs",
        source="local",
    )
