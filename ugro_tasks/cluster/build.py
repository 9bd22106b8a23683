"""The text of a cluster file -> `Cluster`; all faults are reported together, with their lines.

Its imports take a fifth of a command's start, so importers load it late.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..errors import ClusterFileError
from .cache import here, home
from .consistency import check_batch_sizes, check_machines, check_synonyms
from .content import logging_content
from .documents import document_of, refusal, text_of
from .local import shipped_or
from .locks import manager_by_lock
from .logging_file import laid_under
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
        raise refusal(
            path, [Fault(1, "the file says nothing: no key in it has a value")]
        )
    form = _form(document) if document.data else None
    if form is None:
        raise refusal(path, document.faults)
    root = _root(form, path, home(environ))
    logging_file = logging_content(root)
    logging = laid_under(form.logging, root, logging_file, environ)
    whole = form.model_copy(update={"logging": logging})
    try:
        return _cluster(whole, path, root, home(environ)), logging_file
    except ValueError as error:
        # The checks above missed an inconsistency between values.
        raise refusal(path, [Fault(1, str(error))]) from error


def with_logging_file(
    cluster: Cluster, content: bytes, environ: Mapping[str, str]
) -> Cluster:
    """Return the cluster with the content of config/logging.yaml in place of its own logging.

    Raises ClusterFileError with every fault in that file.
    """
    section = laid_under(LoggingSection(), cluster.root, content, environ)
    logs = cluster.logs
    if section.file:
        logs = (cluster.root / here(section.file, home(environ))).parent
    return msgspec.structs.replace(cluster, logging=_logging(section), logs=logs)


def _form(document: Document) -> Form | None:
    """Validate the document; return None if it has any fault, listed in `document.faults`."""
    check_synonyms(document)
    check_machines(document)
    check_batch_sizes(document)
    if "nodes" in document.data:
        return validate(document, NodesFile)
    return validate(document, ClusterFile)


def _cluster(form: Form, path: Path, root: Path, home_folder: Path) -> Cluster:
    folders = _folders(form, root, home_folder)
    environment = _with_manager(form.environment, root, folders.scripts)
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
        scripts=folders.scripts if form.paths.scripts else shipped_or(folders.scripts),
        logs=folders.logs,
        source=str(path),
    )


def _root(form: Form, path: Path, home_folder: Path) -> Path:
    """Return the project's folder on this machine."""
    folder = path.parent
    if folder.name in ("config", "clusters"):
        folder = folder.parent
    return folder / here(form.paths.project_root or "", home_folder)


class Folders(NamedTuple):
    """The project's folders on this machine; `scripts` may be missing."""

    experiments: Path
    scripts: Path
    logs: Path


def _folders(form: Form, root: Path, home_folder: Path) -> Folders:
    paths = form.paths

    def inside(*choices: str | None) -> Path | None:
        """Return the first given choice as a path below the project's root, None without one."""
        return next(
            (root / here(choice, home_folder) for choice in choices if choice), None
        )

    data = inside(paths.data) or root
    experiments = inside(paths.experiments, paths.results) or data / "experiments"
    log_file = inside(form.logging.file)
    logs = log_file.parent if log_file else experiments.parent / "logs"
    return Folders(
        experiments=experiments,
        scripts=inside(paths.scripts) or root / "scripts",
        logs=inside(paths.logs) or logs,
    )


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
    entries = (
        _named_nodes(form) if isinstance(form, NodesFile) else _master_and_workers(form)
    )
    machines = Counter(node.ip for _, _, node in entries)
    return tuple(
        _node(
            name,
            rank,
            node,
            common=form.paths,
            slot="node" if machines[node.ip] == 1 else name,
            environment=_environment(environment, node.environment),
        )
        for name, rank, node in entries
    )


def _named_nodes(form: NodesFile) -> list[tuple[str, int, NodeSection]]:
    """List (name, rank, section) of each node; the rank defaults to the place in the file."""
    return [
        (name, place if node.rank is None else node.rank, node)
        for place, (name, node) in enumerate(form.nodes.items())
    ]


def _master_and_workers(form: ClusterFile) -> list[tuple[str, int, NodeSection]]:
    """List (name, rank, section) of each node; the rank defaults to the place in the list."""
    master = form.cluster.master
    entries: list[tuple[str, int, NodeSection]] = [
        (master.name or master.hostname or "master", 0, master)
    ]
    for place, worker in enumerate(form.workers, start=1):
        entries.append(
            (worker.name, place if worker.rank is None else worker.rank, worker)
        )
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
    paths = node.paths or NodePaths()
    return Node(
        name=name,
        rank=rank,
        transport=node.transport,
        address=node.ip,
        hostname=node.hostname,
        user=node.user,
        ssh_port=node.ssh_port or (node.port if isinstance(node, Master) else None),
        jump=node.jump,
        python=node.python,
        project=paths.project
        or common.project_base
        or common.project_root
        or DEFAULT_PROJECT,
        gpu_model=hardware.gpu_model
        or (node.gpu if isinstance(node, NamedNode) else None),
        vram_gb=hardware.vram_gb
        or (node.vram_gb if isinstance(node, NamedNode) else None),
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
    said = _environment_keys(common)
    if own is not None:
        keys = _environment_keys(own)
        if keys.get("manager", said.get("manager")) != said.get("manager"):
            said = {
                key: value
                for key, value in said.items()
                if key not in ("path", "python")
            }
        said |= keys
    return Environment(**{"manager": "existing", **said})


def _with_manager(
    section: EnvironmentSection, root: Path, scripts: Path
) -> EnvironmentSection:
    """Set the manager by the lock file in the project, unless the section implies one."""
    if section.manager or section.conda_env or section.python:
        return section
    return section.model_copy(update={"manager": manager_by_lock(root, scripts)})


def _environment_keys(section: EnvironmentSection) -> dict[str, Any]:
    """Return the given keys, with `conda_env` as `name` and manager pixi."""
    said: dict[str, Any] = section.model_dump(exclude_none=True)
    conda_env = said.pop("conda_env", None)
    if conda_env:
        said = {"name": conda_env, "manager": "pixi"} | said
    return said
