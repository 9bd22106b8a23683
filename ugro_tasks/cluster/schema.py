"""The keys of a cluster file, section by section; the sentence below a key explains it.

`ClusterFile` is the usual form: a `cluster.master` and a list of `workers`. `NodesFile` names all
machines under `nodes` and marks the master by rank 0; every other section is the same in both.
`python -m ugro_tasks.cluster.schema > cluster.schema.json` writes the first for editors.

The keys of one machine are in schema_nodes.py. The keys of TimeoutsSection and LoggingSection, with
their defaults, are those of the records in model.py; a test compares the two. A key of
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
    """A TCP port of the master, reachable from every worker."""
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
    """The project here and, unless a node's own paths say otherwise, on the nodes. Default here: the
    folder of this file, or the one above if that is called `config` or `clusters`."""
    project_base: NodePath | None = None
    """The project on the nodes only."""
    scripts: HerePath | None = None
    """The training scripts; default: `scripts`, or those shipped with UGRO."""
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
    """Low-rank adapters, trained by `train_production.py` beside the frozen model."""

    rank: Annotated[int | None, Setting("lora.rank")] = None
    alpha: Annotated[int | None, Setting("lora.alpha")] = None
    dropout: Annotated[float | None, Setting("lora.dropout")] = None
    target_modules: Annotated[list[str] | None, Setting("lora.target_modules")] = None


class TrainingSection(Section):
    """Defaults of the flags of `inv launch`; config/training_defaults.yaml has those of keys not given here."""

    script: Script = Field(
        default="train_production.py", validation_alias="default_script"
    )
    """The script in the scripts folder, run by every rank."""
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
    """UGRO's time limits, in seconds."""

    connect_seconds: Seconds = 5.0
    """For a node to answer, login included."""
    start_seconds: Seconds = 60.0
    """For a node to prepare its rank, and again to start it."""
    rendezvous_seconds: WholeSeconds = 300
    """For the ranks to find each other; `communication.timeout_seconds` is the same."""
    stop_grace_seconds: Seconds = 15.0
    """Between TERM and KILL, so that a script can write a checkpoint."""
    heartbeat_seconds: Seconds = 2.0
    """Between two signs of life of a node with nothing else to send."""
    away_seconds: Seconds = 60.0
    """With restarts: a node out of reach for so long counts as lost. Without restarts, UGRO waits for it."""
    return_seconds: Seconds = 300.0
    """With restarts: for a lost node to come back, before the job goes on without it or ends."""
    agent_linger_seconds: Seconds = 120.0
    """For the agent to stay, with its connections open, after the last job."""


class LoggingSection(Section):
    """UGRO's own log files, not the training's. Keys not given here may be given in config/logging.yaml."""

    level: Level = "INFO"
    format: LogFormat = "[%(asctime)s] %(name)s - %(levelname)s - %(message)s"
    """As Python's logging understands it."""
    keep_days: PositiveInt = 7
    file: HerePath | None = None
    """The log files lie in its folder, unless paths.logs is given."""


class Sections(Section):
    """The sections common to both forms."""

    paths: Paths = Paths()
    environment: EnvironmentSection = EnvironmentSection()
    training: TrainingSection = TrainingSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    logging: LoggingSection = LoggingSection()


class ClusterFile(Sections):
    """A UGRO cluster: its machines, and the defaults of every training."""

    cluster: ClusterSection
    workers: Annotated[list[Worker], Field(default_factory=list)]


class NodesFile(Sections):
    """The other form: all machines under `nodes`."""

    cluster: NodesCluster = NodesCluster()
    nodes: dict[NodeName, NamedNode]


def written_settings(section: TrainingSection) -> Iterator[tuple[Setting, Any]]:
    """Yield each training setting given in the file, with its value."""
    given = section.model_dump(exclude_unset=True)
    for names, _, setting in _settings_in(TrainingSection, (), ("training",)):
        value: Any = given
        for name in names:
            value = value.get(name, {})
        if value != {}:
            yield setting, value


def place_of(name: str, source: str) -> str:
    """Return the place of a training setting in the cluster file at `source`: path, line and key.

    Reads the file anew, for its line numbers.
    """
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
    """Yield (names of the fields, place in the file, setting) of every setting in a section."""
    for name, info in section.model_fields.items():
        inside, at = (*names, name), (*loc, str(info.validation_alias or name))
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _settings_in(info.annotation, inside, at)
        for part in info.metadata:
            if isinstance(part, Setting):
                yield inside, at, part


def schema() -> dict[str, Any]:
    """Return the JSON schema of `ClusterFile`, described by the sentences below the keys."""
    found = ClusterFile.model_json_schema()
    sections = [found, *found["$defs"].values()]
    for section in sections:
        for field in section["properties"].values():
            _tidy(field)
    return {"$schema": SCHEMA_DIALECT, **found}


def _tidy(field: dict[str, Any]) -> None:
    """Remove noise for an editor's user: titles repeating the key, and defaults of sections."""
    field.pop("title", None)
    if not isinstance(field.get("default"), (str, int, float)):
        field.pop("default", None)
    if "description" in field:
        field["description"] = " ".join(field["description"].split())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
