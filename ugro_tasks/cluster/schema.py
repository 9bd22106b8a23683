"""What can be written in a cluster file, section by section; the sentence below a key explains it.

`ClusterFile` is the form to write: a `cluster.master` and a list of `workers`. `NodesFile` names all
machines under `nodes` and marks the master by rank 0; every other section is the same in both.
`python -m ugro_tasks.cluster.schema > cluster.schema.json` writes the first for editors.

What can be written of one machine: schema_nodes.py. The keys of TimeoutsSection and LoggingSection, with
their defaults, are those of the records in model.py; a test holds the two against each other. A key of
TrainingSection or LoraSection is a setting of config/training_schema.yaml, by another name.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from .fields import (
    Address,
    HerePath,
    Level,
    Line,
    LogFormat,
    NodeName,
    NodePath,
    OneLine,
    Port,
    PositiveInt,
    Script,
    Seconds,
    Section,
    Setting,
    WholeSeconds,
)
from .schema_nodes import EnvironmentSection, Master, NamedNode, Worker
from .yaml_lines import Document, Loc
from .yaml_lines import written as dotted

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

    rank: Annotated[int | None, Setting("lora.rank")] = None
    alpha: Annotated[int | None, Setting("lora.alpha")] = None
    dropout: Annotated[float | None, Setting("lora.dropout")] = None
    target_modules: Annotated[list[str] | None, Setting("lora.target_modules")] = None


class TrainingSection(Section):
    """What `inv launch` takes where no flag says otherwise; for what is not said, config/training_defaults.yaml."""

    script: Script = Field(
        default="train_production.py", validation_alias="default_script"
    )
    """The script in the scripts folder that every rank runs."""
    model: Annotated[str | None, Setting("model.name"), OneLine] = Field(
        default=None, validation_alias="default_model"
    )
    dataset: Annotated[str | None, Setting("dataset.name"), OneLine] = Field(
        default=None, validation_alias="default_dataset"
    )
    epochs: Annotated[int | None, Setting("training.num_epochs")] = Field(
        default=None, validation_alias="default_epochs"
    )
    learning_rate: Annotated[float | None, Setting("training.learning_rate")] = Field(
        default=None, validation_alias="default_learning_rate"
    )
    batch_size_per_gpu: Annotated[
        int | str | dict[str, int] | None, Setting("training.batch_size_per_gpu")
    ] = None
    """Sequences per GPU and micro-step: a number for all nodes, `auto` (in the ratio of the cards' memory), or
    a number for each node: `{gpu-master: 3, gpu1: 2, gpu2: 2}`."""
    gradient_accumulation_steps: Annotated[
        int | None, Setting("training.gradient_accumulation_steps")
    ] = None
    max_seq_length: Annotated[int | None, Setting("model.max_seq_length")] = None
    """Tokens per sequence."""
    lora: LoraSection = LoraSection()
    gradient_accumulation: Annotated[
        int | None, Setting("training.gradient_accumulation_steps")
    ] = None
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


def written_settings(section: TrainingSection) -> Iterator[tuple[Setting, Any]]:
    """Yield the training settings that are written in the file, each with its value."""
    written = section.model_dump(exclude_unset=True)
    for names, _, setting in _settings_in(TrainingSection, (), ("training",)):
        value: Any = written
        for name in names:
            value = value.get(name, {})
        if value != {}:
            yield setting, value


def place_of(name: str, source: str) -> str:
    """Say where in the cluster file at `source` a training setting stands; the file is read for it."""
    path = Path(source)
    document = Document(path.read_text("utf-8-sig") if path.is_file() else "")
    for _, loc, setting in _settings_in(TrainingSection, (), ("training",)):
        line = document.line_of_key(loc)
        if f"{setting.section}.{setting.key}" == name and line:
            return f"{source}, line {line}: {dotted(loc)}"
    return f"{source}: {name}"


def _settings_in(
    section: type[BaseModel], names: tuple[str, ...], loc: Loc
) -> Iterator[tuple[tuple[str, ...], Loc, Setting]]:
    """Yield the settings that a section can have, by the names of its fields and by the keys of the file."""
    for name, info in section.model_fields.items():
        inside, at = (*names, name), (*loc, str(info.validation_alias or name))
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _settings_in(info.annotation, inside, at)
        for part in info.metadata:
            if isinstance(part, Setting):
                yield inside, at, part


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
