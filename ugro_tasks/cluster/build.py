"""The text of a cluster file -> `Cluster`; all faults are reported together, with their lines.

Its imports take a fifth of a command's start, so importers load it late.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..errors import ClusterFileError
from .cache import local_path, user_home
from .consistency import check_batch_sizes, check_machines, check_synonyms
from .content import logging_content
from .documents import document_of, refusal, text_of
from .local import scripts_or_shipped
from .locks import manager_by_lock
from .logging_file import with_defaults_of_file
from .messages import validate
from .model import (
    DEFAULT_PROJECT,
    Cluster,
    Environment,
    Logging,
    Node,
    Timeouts,
    TrainingDefaults,
)
from .schema import (
    ClusterFile,
    LoggingSection,
    NodesFile,
    Paths,
    TrainingSection,
    written_settings,
)
from .schema_nodes import (
    EnvironmentSection,
    Hardware,
    Master,
    NamedNode,
    NodePaths,
    NodeSection,
)
from .values import checked_line
from .yaml_lines import Document, Fault

Form = ClusterFile | NodesFile


def build(
    path: Path, content: bytes, environ: Mapping[str, str]
) -> tuple[Cluster, bytes]:
    """Make the cluster described by the content of the file at `path`.

    Returns it with the content of config/logging.yaml. Raises ClusterFileError with every fault of
    one of the two files.
    """
    text = text_of(path, content)
    if not text.strip():
        raise ClusterFileError(f"{path} is empty; the README shows what belongs in it.")
    document = document_of(text, environ)
    if not document.data and not document.faults:
        nothing = Fault(1, "the file says nothing: no key in it has a value")
        raise refusal(path, [nothing])
    form = _form(document) if document.data else None
    if form is None:
        raise refusal(path, document.faults)
    home = user_home(environ)
    root = _root(form, path, home)
    logging_file = logging_content(root)
    logging = with_defaults_of_file(form.logging, root, logging_file, environ)
    complete_form = form.model_copy(update={"logging": logging})
    try:
        cluster = _cluster(complete_form, path, root, home)
    except ValueError as error:
        # The checks above missed an inconsistency between values.
        raise refusal(path, [Fault(1, str(error))]) from error
    return cluster, logging_file


def with_logging_file(
    cluster: Cluster, content: bytes, environ: Mapping[str, str]
) -> Cluster:
    """Return the cluster with the content of config/logging.yaml in place of its own logging.

    Raises ClusterFileError with every fault in that file.
    """
    section = with_defaults_of_file(LoggingSection(), cluster.root, content, environ)
    logs = cluster.logs
    if section.file:
        log_file = cluster.root / local_path(section.file, user_home(environ))
        logs = log_file.parent
    return msgspec.structs.replace(cluster, logging=_logging(section), logs=logs)


def _form(document: Document) -> Form | None:
    """Validate the document; return None if it has any fault, listed in `document.faults`."""
    check_synonyms(document)
    check_machines(document)
    check_batch_sizes(document)
    if "nodes" in document.data:
        return validate(document, NodesFile)
    return validate(document, ClusterFile)


def _cluster(form: Form, path: Path, root: Path, home: Path) -> Cluster:
    folders = _folders(form, root, home)
    environment = _with_manager(form.environment, root, folders.scripts)
    scripts = folders.scripts
    if not form.paths.scripts:
        scripts = scripts_or_shipped(scripts)
    return Cluster(
        name=form.cluster.name or checked_line(path.stem),
        location=form.cluster.location,
        description=form.cluster.description,
        nodes=_nodes(form, environment),
        master_port=_master_port(form),
        environment=_environment(environment),
        training=_training(form.training),
        timeouts=_timeouts(form),
        logging=_logging(form.logging),
        root=root,
        experiments=folders.experiments,
        scripts=scripts,
        logs=folders.logs,
        source=str(path),
    )


def _root(form: Form, path: Path, home: Path) -> Path:
    """Return the project's folder on this machine."""
    folder = path.parent
    if folder.name in ("config", "clusters"):
        folder = folder.parent
    return folder / local_path(form.paths.project_root or "", home)


class Folders(NamedTuple):
    """The project's folders on this machine; `scripts` may be missing."""

    experiments: Path
    scripts: Path
    logs: Path


def _folders(form: Form, root: Path, home: Path) -> Folders:
    paths = form.paths

    def inside(choice: str | None) -> Path | None:
        """Return a given path, relative to the project's root; None if none is given."""
        return root / local_path(choice, home) if choice else None

    data = inside(paths.data) or root
    experiments = inside(paths.experiments) or inside(paths.results)
    if experiments is None:
        experiments = data / "experiments"
    log_file = inside(form.logging.file)
    logs = inside(paths.logs)
    if logs is None:
        logs = log_file.parent if log_file else experiments.parent / "logs"
    scripts = inside(paths.scripts) or root / "scripts"
    return Folders(experiments=experiments, scripts=scripts, logs=logs)


def _master_port(form: Form) -> int:
    if isinstance(form, ClusterFile):
        return form.cluster.communication.master_port
    return form.cluster.master_port


def _training(section: TrainingSection) -> TrainingDefaults:
    """Return only the keys given in the file: config/training_defaults.yaml sets the rest."""
    settings: dict[str, dict[str, Any]] = {}
    for setting, value in written_settings(section):
        settings.setdefault(setting.section, {})[setting.key] = value
    return TrainingDefaults(script=section.script, settings=settings)


def _logging(section: LoggingSection) -> Logging:
    return Logging(**section.model_dump(exclude={"file"}))


def _timeouts(form: Form) -> Timeouts:
    given = form.timeouts.model_dump()
    if isinstance(form, ClusterFile) and form.cluster.communication.timeout_seconds:
        given["rendezvous_seconds"] = form.cluster.communication.timeout_seconds
    return Timeouts(**given)


def _nodes(form: Form, environment: EnvironmentSection) -> tuple[Node, ...]:
    """Make the nodes of either form; nodes sharing a machine get a slot each."""
    if isinstance(form, NodesFile):
        entries = _named_nodes(form)
    else:
        entries = _master_and_workers(form)
    nodes_at = Counter(section.ip for _, _, section in entries)
    nodes = []
    for name, rank, section in entries:
        is_alone = nodes_at[section.ip] == 1
        node = _node(
            name,
            rank,
            section,
            common=form.paths,
            slot="node" if is_alone else name,
            environment=_environment(environment, section.environment),
        )
        nodes.append(node)
    return tuple(nodes)


def _named_nodes(form: NodesFile) -> list[tuple[str, int, NodeSection]]:
    """List (name, rank, section) of each node; the rank defaults to the place in the file."""
    entries: list[tuple[str, int, NodeSection]] = []
    for place, (name, node) in enumerate(form.nodes.items()):
        rank = place if node.rank is None else node.rank
        entries.append((name, rank, node))
    return entries


def _master_and_workers(form: ClusterFile) -> list[tuple[str, int, NodeSection]]:
    """List (name, rank, section) of each node; the rank defaults to the place in the list."""
    master = form.cluster.master
    name = master.name or master.hostname or "master"
    entries: list[tuple[str, int, NodeSection]] = [(name, 0, master)]
    for place, worker in enumerate(form.workers, start=1):
        rank = place if worker.rank is None else worker.rank
        entries.append((worker.name, rank, worker))
    return entries


def _node(
    name: str,
    rank: int,
    node: NodeSection,
    *,
    common: Paths,
    slot: str,
    environment: Environment,
) -> Node:
    hardware = node.hardware or Hardware()
    gpu_model = hardware.gpu_model
    vram_gb = hardware.vram_gb
    if isinstance(node, NamedNode):
        gpu_model = gpu_model or node.gpu
        vram_gb = vram_gb or node.vram_gb
    ssh_port = node.ssh_port
    if isinstance(node, Master):
        ssh_port = ssh_port or node.port
    paths = node.paths or NodePaths()
    project = paths.project or common.project_base or common.project_root
    return Node(
        name=name,
        rank=rank,
        transport=node.transport,
        address=node.ip,
        ssh=node.ssh,
        hostname=node.hostname,
        user=node.user,
        ssh_port=ssh_port,
        jump=node.jump,
        python=node.python,
        project=project or DEFAULT_PROJECT,
        gpu_model=gpu_model,
        vram_gb=vram_gb,
        slot=slot,
        environment=environment,
    )


def _environment(
    common: EnvironmentSection, own: EnvironmentSection | None = None
) -> Environment:
    """Make a node's environment: its own keys override the cluster's.

    With another manager, the cluster's path and python do not apply: they belong to the cluster's
    manager.
    """
    keys = _environment_keys(common)
    if own is not None:
        own_keys = _environment_keys(own)
        manager = keys.get("manager")
        if own_keys.get("manager", manager) != manager:
            keys.pop("path", None)
            keys.pop("python", None)
        keys |= own_keys
    return Environment(**{"manager": "existing", **keys})


def _with_manager(
    section: EnvironmentSection, root: Path, scripts: Path
) -> EnvironmentSection:
    """Set the manager by the lock file in the project, unless the section implies one."""
    if section.manager or section.conda_env or section.python:
        return section
    manager = manager_by_lock(root, scripts)
    return section.model_copy(update={"manager": manager})


def _environment_keys(section: EnvironmentSection) -> dict[str, Any]:
    """Return the given keys, with `conda_env` as `name` and manager pixi."""
    keys: dict[str, Any] = section.model_dump(exclude_none=True)
    conda_env = keys.pop("conda_env", None)
    if conda_env:
        keys = {"name": conda_env, "manager": "pixi"} | keys
    return keys
