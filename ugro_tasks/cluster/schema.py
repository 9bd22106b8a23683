"""What can be written in a cluster file, section by section; the sentence below a key explains it.

`ClusterFile` is the form to write: a `cluster.master` and a list of `workers`. `NodesFile` names all
machines under `nodes` and marks the master by rank 0; every other section is the same in both.
`python -m ugro_tasks.cluster_form > cluster.schema.json` writes the first for editors.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from pydantic import BaseModel, ConfigDict, Field, create_model

from . import model as cluster
from .model import MANAGERS, Fact, Logging, Timeouts, TrainingDefaults
from .values import (
    UNSHOWN,
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
    UserName,
    WholeSeconds,
    Word,
    matching,
)

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

HerePath = Annotated[
    str,
    matching(rf"(?!~[^/])[^{UNSHOWN}]+", "is not a path; on this machine `~/` is your own home folder"),
]

# In the file these keys of a record begin with `default_`.
DEFAULTS = ("script", "model", "dataset", "epochs", "learning_rate")


class Section(BaseModel):
    """A part of the file; a key that it does not have is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def form_of(record: type[Fact]) -> type[Section]:
    """The section whose keys are those of the record."""
    hints = get_type_hints(record, include_extras=True)
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(record):
        kind, default = hints[field.name], field.default
        if isinstance(kind, type) and issubclass(kind, Fact):
            kind = form_of(kind)
            default = kind()
        if field.name != "written":
            alias = f"default_{field.name}" if field.name in DEFAULTS else None
            fields[field.name] = (kind, Field(default, validation_alias=alias))
    return create_model(record.__name__, __base__=Section, __doc__=record.__doc__, **fields)


class EnvironmentSection(Section):
    """The Python environment that trains. A node's own section counts before the cluster's."""

    manager: MANAGERS | None = None
    """What `inv sync-envs` makes the environment with: `pixi`, `uv` or `venv`; `existing`: it is there, and nobody
    makes it. Default: `pixi` if conda_env is given, `existing` if python is; else by the lock in the project:
    pixi.lock, uv.lock, constraints.txt in the scripts folder, or none of them: `existing`."""
    name: Word | None = None
    """The pixi environment, or uv's dependency group; default: `default`, with uv the project itself."""
    conda_env: Word | None = None
    """The same as name."""
    path: NodePath | None = None
    """The environment's folder on the node; default: `.venv` or `.pixi/envs/<name>` in the project."""
    python: Program | None = None
    """With manager `existing`: the interpreter that has torch; default: `python3`. With `venv` and `uv`: the one
    that the environment is made from; default: any of python_version, else the one that UGRO's program runs with."""
    python_version: Word | None = None
    """What must be found on the nodes, as far as it is written: 3.11 fits 3.11.9."""
    torch_version: Word | None = None
    cuda_version: Word | None = None


class Hardware(Section):
    """What the machine has; `inv health` holds it against what it finds."""

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
    """The machine's own address in the network that the nodes share."""
    hostname: HostName | None = None
    user: UserName | None = None
    """Who logs in there; without it the ssh configuration decides."""
    transport: Literal["ssh", "local"] = "ssh"
    """`local`: this node is the machine on which UGRO itself runs."""
    ssh_port: Port | None = None
    """Without it the ssh configuration decides; then 22."""
    jump: Jump | None = None
    """A host to go through: user@host:port. Without it the ssh configuration decides."""
    python: Program = "python3"
    """Any Python from 3.8 on; UGRO's own program on the node runs with it. Training has its own."""
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


class Communication(Section):
    """How the ranks find each other."""

    backend: Literal["static", "c10d"] = "static"
    """Both are accepted. The rendezvous is always static, so that ranks stay on their hosts."""
    master_port: Port = 29500
    """A TCP port of the master that every worker can reach."""
    timeout_seconds: WholeSeconds | None = None
    """The same as timeouts.rendezvous_seconds."""


class ClusterSection(Section):
    """The cluster and its master."""

    name: Line | None = None
    location: Line | None = None
    description: Line | None = None
    master: Master
    communication: Communication = Communication()


class NodesCluster(Section):
    """The cluster in the form with `nodes`."""

    name: Line | None = None
    location: Line | None = None
    description: Line | None = None
    master_ip: Address | None = None
    master_port: Port = 29500


class Paths(Section):
    """Folders on this machine; a relative one lies in the project."""

    project_root: NodePath | None = None
    """The project here and, where a node's own paths do not say, there. Default here: the folder of
    this file, or the one above if that is called `config` or `clusters`."""
    project_base: NodePath | None = None
    """The project on the nodes only."""
    scripts: HerePath | None = None
    """The training scripts; default: `scripts`, or those that came with UGRO."""
    experiments: HerePath | None = None
    """One folder a job; default: `experiments`."""
    results: HerePath | None = None
    """The same as experiments."""
    logs: HerePath | None = None
    """UGRO's own logs; default: `logs` beside the experiments."""
    data: HerePath | None = None
    """Holds `experiments` if that is not given itself."""
    config: HerePath | None = None
    """Accepted, not needed."""


class TrainingSection(form_of(TrainingDefaults)):  # type: ignore[misc]
    """What `inv launch` takes where no flag says otherwise."""

    gradient_accumulation: PositiveInt | None = None
    """The same as gradient_accumulation_steps."""


class LoggingSection(form_of(Logging)):  # type: ignore[misc]
    """UGRO's own log files, not the training's."""

    file: HerePath | None = None
    """The log files lie in its folder, unless paths.logs is given."""


_Timeouts: Any = form_of(Timeouts)


class Sections(Section):
    """What both forms have."""

    paths: Paths = Paths()
    environment: EnvironmentSection = EnvironmentSection()
    training: TrainingSection = TrainingSection()
    timeouts: _Timeouts = _Timeouts()
    logging: LoggingSection = LoggingSection()


class ClusterFile(Sections):
    """A UGRO cluster: the machines that train together, and the defaults of what runs on them."""

    cluster: ClusterSection
    workers: Annotated[list[Worker], Field(default_factory=list)]


class NodesFile(Sections):
    """The other form: all machines under `nodes`."""

    cluster: NodesCluster = NodesCluster()
    nodes: dict[NodeName, NamedNode]


def schema() -> dict[str, Any]:
    """The JSON schema of `ClusterFile`, with the sentences below the keys as descriptions."""
    found = ClusterFile.model_json_schema()
    sentences = _sentences()
    for name, model in {**found["$defs"], "ClusterFile": found}.items():
        for key, field in model["properties"].items():
            field.pop("title", None)
            if not isinstance(field.get("default"), (str, int, float)):
                field.pop("default", None)
            sentence = sentences.get((name, key)) or sentences.get((name, key.removeprefix("default_")))
            if sentence:
                field["description"] = sentence
    return {"$schema": SCHEMA_DIALECT, **found}


def _sentences() -> dict[tuple[str, str], str]:
    """(class, key) -> the sentence below it. Read from the source and only here, because pydantic's
    own way of doing so would cost every command 50 ms.
    """
    found: dict[tuple[str, str], str] = {}
    for source in (Path(cluster.__file__), Path(__file__)):
        classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
        for class_ in classes:
            for base in class_.bases:
                # A record, as in `form_of(Record)`, or another section.
                name = base.args[0] if isinstance(base, ast.Call) else base
                if isinstance(name, ast.Name):
                    inherited = [pair for pair in found.items() if pair[0][0] == name.id]
                    found.update({(class_.name, key): text for (_, key), text in inherited})
            for field, below in zip(class_.body, class_.body[1:], strict=False):
                match field, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=key)),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        found[class_.name, key] = " ".join(text.split())
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
