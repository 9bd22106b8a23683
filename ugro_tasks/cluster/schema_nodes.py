"""The keys of one machine in a cluster file; the sentence below a key explains it."""

from typing import Annotated, Literal

from pydantic import Field

from .fields import (
    Address,
    HostName,
    Jump,
    Line,
    NodeName,
    NodePath,
    Port,
    PositiveFloat,
    PositiveInt,
    Program,
    Rank,
    Section,
    SshName,
    UserName,
    Word,
)
from .model import MANAGERS


class EnvironmentSection(Section):
    """The Python environment of the training. A node's own section overrides the cluster's."""

    manager: MANAGERS | None = None
    """The tool of `inv sync-envs`: `pixi`, `uv` or `venv`; `existing`: UGRO makes no environment and uses the
    one on the node. Default: `pixi` if conda_env is given, `existing` if python is; else by the lock in the project:
    pixi.lock, uv.lock, constraints.txt in the scripts folder; without any: `existing`."""
    name: Word | None = None
    """The pixi environment, or uv's dependency group; default: `default`, with uv the project itself."""
    conda_env: Word | None = None
    """The same as name."""
    path: NodePath | None = None
    """The environment's folder on the node; default: `.venv` or `.pixi/envs/<name>` in the project."""
    python: Program | None = None
    """With manager `existing`: the interpreter with torch; default: `python3`. With `venv` and `uv`: the base of
    the environment; default: any of python_version, else the Python running UGRO's own program."""
    python_version: Word | None = None
    """The version required on the nodes, as far as it is written: 3.11 fits 3.11.9."""
    torch_version: Word | None = None
    cuda_version: Word | None = None


class Hardware(Section):
    """The machine's hardware; `inv health` compares it with the real one."""

    gpu_model: Line | None = None
    """As in nvidia-smi, or a part of it. Without it no GPU is expected."""
    vram_gb: PositiveFloat | None = None
    cpu_cores: PositiveInt | None = None
    """For the reader; not checked."""
    ram_gb: PositiveFloat | None = None
    """For the reader; not checked."""


class NodePaths(Section):
    """Folders on the node; `~/` is the home of the node's own user."""

    project: NodePath | None = None
    """UGRO's folder; default: paths.project_root, else ~/ugro."""
    home: NodePath | None = None
    """Accepted, not needed."""
    scripts: NodePath | None = None
    """Accepted, not needed: every launch brings its own copy of the scripts."""


class NodeSection(Section):
    """One machine."""

    ip: Address
    """The machine's own address in the nodes' common network."""
    hostname: HostName | None = None
    user: UserName | None = None
    """The user to log in as; without it the ssh configuration decides."""
    ssh: SshName | None = None
    """What one types after `ssh` to reach the machine, if that is neither its hostname nor its ip."""
    transport: Literal["ssh", "openssh", "paramiko", "local"] = "ssh"
    """`local`: this node is the machine running UGRO itself. `ssh`: UGRO chooses between `openssh`,
    the program of that name, and `paramiko`, a library, which is faster."""
    ssh_port: Port | None = None
    """Without it the ssh configuration decides; then 22."""
    jump: Jump | None = None
    """A host to go through: user@host:port. Without it the ssh configuration decides."""
    python: Program = "python3"
    """Any Python from 3.8 on, for UGRO's own program on the node. Training has its own."""
    hardware: Hardware | None = None
    paths: NodePaths | None = None
    environment: EnvironmentSection | None = None


class Master(NodeSection):
    """The node of rank 0, where the ranks meet."""

    name: NodeName | None = None
    """Default: the hostname."""
    port: Port | None = None
    """The same as ssh_port."""
    rank: Annotated[int, Field(ge=0, le=0)] | None = None


class Worker(NodeSection):
    """A node of rank 1 or more."""

    name: NodeName
    rank: Rank | None = None
    """Default: the place in the list, from 1."""


class NamedNode(NodeSection):
    """A machine in the form with `nodes`."""

    rank: Rank | None = None
    """0 is the master. Default: the place in the file, from 0."""
    role: Literal["master", "worker"] | None = None
    gpu: Line | None = None
    vram_gb: PositiveFloat | None = None
