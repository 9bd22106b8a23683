"""The text of a cluster file -> `Cluster`; whatever is wrong with it comes at once, line by line.

Its imports take a fifth of a command's start: whoever needs it imports it late.
"""

import os
import pwd
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ClusterFileError
from .cache import here, home
from .consistency import check_batch_sizes, check_machines, check_synonyms
from .local import shipped_or
from .locks import manager_by_lock
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
from .schema import ClusterFile, NodesFile, Paths, TrainingSection
from .schema_nodes import (
    EnvironmentSection,
    Hardware,
    Master,
    NamedNode,
    NodePaths,
    NodeSection,
)
from .values import checked_line, shown
from .yaml_lines import Document, Fault, Loc

MAX_FAULTS_SHOWN = 50
Form = ClusterFile | NodesFile


def build(path: Path, content: bytes, environ: Mapping[str, str]) -> Cluster:
    """Make the cluster that the content of the file at `path` describes; ClusterFileError lists every fault."""
    document = Document(
        _text(path, content), lambda name, loc: _variable(name, loc, environ)
    )
    if not document.data and not document.faults:
        raise _refusal(
            path, [Fault(1, "the file says nothing: no key in it has a value")]
        )
    form = _form(document) if document.data else None
    if form is None:
        raise _refusal(path, document.faults)
    try:
        return _cluster(form, path, home(environ))
    except ValueError as error:  # its values do not go together in a way that no check above has looked for
        raise _refusal(path, [Fault(1, str(error))]) from error


def _form(document: Document) -> Form | None:
    """Check the document in full; None, with the reasons in `document.faults`, if there is any fault."""
    check_synonyms(document)
    check_machines(document)
    check_batch_sizes(document)
    if "nodes" in document.data:
        return validate(document, NodesFile)
    return validate(document, ClusterFile)


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fault = Fault(
            line,
            f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8",
        )
        raise _refusal(path, [fault]) from error
    if not text.strip():
        raise ClusterFileError(f"{path} is empty; the README shows what belongs in it.")
    return text


def _refusal(path: Path, faults: list[Fault]) -> ClusterFileError:
    """Make the error that lists the faults, each with its line."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = [f"  line {line}: {text}" for line, text in faults[:MAX_FAULTS_SHOWN]]
    if len(faults) > MAX_FAULTS_SHOWN:
        lines.append(f"  and {len(faults) - MAX_FAULTS_SHOWN} more")
    return ClusterFileError("\n".join([f"{path} cannot be used: {count}", *lines]))


def _variable(name: str, loc: Loc, environ: Mapping[str, str]) -> str:
    """Return the value of `${name}` at a place of the file; raises ValueError where it has none."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{shown('${' + name + '}')}: only ${{NAME}} is understood")
    on_a_node = loc[0] in ("nodes", "workers", "environment") or loc[:2] == (
        "cluster",
        "master",
    )
    if name == "HOME" and on_a_node:
        raise ValueError("${HOME} is this machine's; for the home on the node write ~/")
    value = environ.get(name)
    if not value and name in ("USER", "LOGNAME"):  # cron and containers do not set them
        value = pwd.getpwuid(os.getuid()).pw_name
    if not value:
        raise ValueError(
            f"${{{name}}} is not set here; `export {name}=...` or write the value out"
        )
    return value


def _cluster(form: Form, path: Path, home_folder: Path) -> Cluster:
    folders = _folders(form, path, home_folder)
    environment = _with_manager(form.environment, folders)
    return Cluster(
        name=form.cluster.name or checked_line(path.stem),
        location=form.cluster.location,
        description=form.cluster.description,
        nodes=_nodes(form, environment),
        master_port=_master_port(form),
        environment=_environment(environment),
        training=_training(form.training),
        timeouts=_timeouts(form),
        logging=Logging(**form.logging.model_dump(exclude={"file"})),
        root=folders.root,
        experiments=folders.experiments,
        scripts=folders.scripts if form.paths.scripts else shipped_or(folders.scripts),
        logs=folders.logs,
        source=str(path),
    )


class Folders(NamedTuple):
    """The project's folders on this machine; `scripts` need not be there."""

    root: Path
    experiments: Path
    scripts: Path
    logs: Path


def _folders(form: Form, path: Path, home_folder: Path) -> Folders:
    folder = path.parent
    if folder.name in ("config", "clusters"):
        folder = folder.parent
    paths = form.paths
    root = folder / here(paths.project_root or "", home_folder)

    def inside(*choices: str | None) -> Path | None:
        """Return the first that is given, from the project's root on."""
        return next(
            (root / here(choice, home_folder) for choice in choices if choice), None
        )

    data = inside(paths.data) or root
    experiments = inside(paths.experiments, paths.results) or data / "experiments"
    log_file = inside(form.logging.file)
    logs = log_file.parent if log_file else experiments.parent / "logs"
    return Folders(
        root=root,
        experiments=experiments,
        scripts=inside(paths.scripts) or root / "scripts",
        logs=inside(paths.logs) or logs,
    )


def _master_port(form: Form) -> int:
    if isinstance(form, ClusterFile):
        return form.cluster.communication.master_port
    return form.cluster.master_port


def _training(section: TrainingSection) -> TrainingDefaults:
    """Take what is written and no more: config/training_defaults.yaml may say the rest."""
    given = section.model_dump(exclude={"gradient_accumulation"}, exclude_unset=True)
    if section.gradient_accumulation:
        given["gradient_accumulation_steps"] = section.gradient_accumulation
    return TrainingDefaults.given(**given)


def _timeouts(form: Form) -> Timeouts:
    given = form.timeouts.model_dump()
    if isinstance(form, ClusterFile) and form.cluster.communication.timeout_seconds:
        given["rendezvous_seconds"] = form.cluster.communication.timeout_seconds
    return Timeouts(**given)


def _nodes(form: Form, environment: EnvironmentSection) -> tuple[Node, ...]:
    """Make the nodes of either form. Nodes that share a machine have a slot each."""
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
    """List name, rank and section of each node; a rank that is not given is the place in the file."""
    return [
        (name, place if node.rank is None else node.rank, node)
        for place, (name, node) in enumerate(form.nodes.items())
    ]


def _master_and_workers(form: ClusterFile) -> list[tuple[str, int, NodeSection]]:
    """List name, rank and section of each node; a rank that is not given is the place in the list."""
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
    """Lay the node's own keys over the cluster's environment.

    A node with another manager takes neither path nor python from the cluster: they belong to the
    cluster's manager.
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


def _with_manager(section: EnvironmentSection, folders: Folders) -> EnvironmentSection:
    """Fill in the manager whose lock lies in the project, where nothing says what makes the environment."""
    if section.manager or section.conda_env or section.python:
        return section
    return section.model_copy(
        update={"manager": manager_by_lock(folders.root, folders.scripts)}
    )


def _environment_keys(section: EnvironmentSection) -> dict[str, Any]:
    """Return the keys that are given, in one spelling."""
    said: dict[str, Any] = section.model_dump(exclude_none=True)
    conda_env = said.pop("conda_env", None)
    if conda_env:
        said = {"name": conda_env, "manager": "pixi"} | said
    return said
