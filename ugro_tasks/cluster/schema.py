"""What can be written in a cluster file, section by section; the sentence below a key explains it.

`ClusterFile` is the form to write: a `cluster.master` and a list of `workers`. `NodesFile` names all
machines under `nodes` and marks the master by rank 0; every other section is the same in both.
`python -m ugro_tasks.cluster.schema > cluster.schema.json` writes the first for editors.

What can be written of one machine: schema_nodes.py. The keys of LoraSection, TrainingSection,
TimeoutsSection and LoggingSection, with their defaults, are those of the records in model.py; a test
holds the two against each other.
"""

import json
import sys
from typing import Annotated, Any, Literal

from pydantic import Field

from .fields import (
    Address,
    BatchSize,
    HerePath,
    Level,
    Line,
    LogFormat,
    NodeName,
    NodePath,
    Part,
    Port,
    PositiveFloat,
    PositiveInt,
    Script,
    Seconds,
    Section,
    WholeSeconds,
    Word,
)
from .schema_nodes import EnvironmentSection, Master, NamedNode, Worker

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


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


class LoraSection(Section):
    """Low-rank adapters: what `train_production.py` trains beside the frozen model."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Part = 0.05
    target_modules: tuple[Word, ...] = ("q_proj", "v_proj")


class TrainingSection(Section):
    """What `inv launch` takes where no flag says otherwise."""

    script: Script = Field(
        default="train_production.py", validation_alias="default_script"
    )
    """The script in the scripts folder that every rank runs."""
    model: Word = Field(
        default="unsloth/tinyllama-bnb-4bit", validation_alias="default_model"
    )
    dataset: Word = Field(default="wikitext", validation_alias="default_dataset")
    epochs: PositiveInt = Field(default=1, validation_alias="default_epochs")
    learning_rate: PositiveFloat = Field(
        default=2e-4, validation_alias="default_learning_rate"
    )
    batch_size_per_gpu: BatchSize = 1
    """Sequences per GPU and micro-step: a number for all nodes, `auto` (in the ratio of the cards' memory), or
    a number for each node: `{gpu-master: 3, gpu1: 2, gpu2: 2}`."""
    gradient_accumulation_steps: PositiveInt = 8
    max_seq_length: PositiveInt = 2048
    """Tokens per sequence."""
    lora: LoraSection = LoraSection()
    gradient_accumulation: PositiveInt | None = None
    """The same as gradient_accumulation_steps."""


class TimeoutsSection(Section):
    """How long UGRO waits for what, in seconds."""

    connect_seconds: Seconds = 5.0
    """For a node to answer, login included."""
    start_seconds: Seconds = 60.0
    """For a node to prepare its rank, and again to start it."""
    rendezvous_seconds: WholeSeconds = 300
    """For the ranks to find each other; `communication.timeout_seconds` is the same."""
    stop_grace_seconds: Seconds = 15.0
    """Between TERM and KILL, so that a script can write a checkpoint."""
    heartbeat_seconds: Seconds = 2.0
    """Between two signs of life of a node that has nothing else to say."""
    away_seconds: Seconds = 60.0
    """With restarts: a node that is out of reach for so long counts as lost. Without, it is waited for."""
    return_seconds: Seconds = 300.0
    """With restarts: for a lost node to come back, before the job goes on without it or ends."""
    agent_linger_seconds: Seconds = 120.0
    """That the agent stays, with its connections open, after the last job."""


class LoggingSection(Section):
    """UGRO's own log files, not the training's. What is not said here may stand in config/logging.yaml."""

    level: Level = "INFO"
    format: LogFormat = "[%(asctime)s] %(name)s - %(levelname)s - %(message)s"
    """As Python's logging understands it."""
    keep_days: PositiveInt = 7
    file: HerePath | None = None
    """The log files lie in its folder, unless paths.logs is given."""


class Sections(Section):
    """What both forms have."""

    paths: Paths = Paths()
    environment: EnvironmentSection = EnvironmentSection()
    training: TrainingSection = TrainingSection()
    timeouts: TimeoutsSection = TimeoutsSection()
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
    """Return the JSON schema of `ClusterFile`, with the sentences below the keys as descriptions."""
    found = ClusterFile.model_json_schema()
    for section in (found, *found["$defs"].values()):
        for field in section["properties"].values():
            _tidy(field)
    return {"$schema": SCHEMA_DIALECT, **found}


def _tidy(field: dict[str, Any]) -> None:
    """Leave only what an editor's user reads: no title that repeats the key, no default of a section."""
    field.pop("title", None)
    if not isinstance(field.get("default"), (str, int, float)):
        field.pop("default", None)
    if "description" in field:
        field["description"] = " ".join(field["description"].split())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
