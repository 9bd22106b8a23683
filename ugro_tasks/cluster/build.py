"""The text of a cluster file -> `Cluster`; whatever is wrong with it comes at once, line by line.

Its imports take a fifth of a command's start: whoever needs it imports it late.
"""

import os
import pwd
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ClusterFileError
from .cache import here, home
from .consistency import check_batch_sizes, check_machines, check_synonyms
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
    shipped_or,
)
from .schema import ClusterFile, NodesFile
from .schema_nodes import EnvironmentSection, Hardware, Master, NamedNode, NodePaths, NodeSection
from .values import checked_line, shown
from .yaml_lines import Document, Fault, Loc

MAX_FAULTS_SHOWN = 50


def build(path: Path, content: bytes, environ: Mapping[str, str]) -> Cluster:
    """The cluster that the content of the file at `path` describes; ClusterFileError lists every fault in it."""
    document = Document(_text(path, content), lambda name, loc: _variable(name, loc, environ))
    if not document.data and not document.faults:
        raise _refusal(path, [Fault(1, "the file says nothing: no key in it has a value")])
    form: ClusterFile | NodesFile | None = None
    if document.data:
        check_synonyms(document)
        check_machines(document)
        check_batch_sizes(document)
        by_name = "nodes" in document.data
        form = validate(document, NodesFile) if by_name else validate(document, ClusterFile)
    if form is None:
        raise _refusal(path, document.faults)
    try:
        return _cluster(form, path, home(environ))
    except ValueError as error:  # its values do not go together in a way that no check above has looked for
        raise _refusal(path, [Fault(1, str(error))]) from error


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        fault = Fault(line, f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8")
        raise _refusal(path, [fault]) from error
    if not text.strip():
        raise ClusterFileError(f"{path} is empty; the README shows what belongs in it.")
    return text


def _refusal(path: Path, faults: list[Fault]) -> ClusterFileError:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = [f"  line {line}: {text}" for line, text in faults[:MAX_FAULTS_SHOWN]]
    if len(faults) > MAX_FAULTS_SHOWN:
        lines.append(f"  and {len(faults) - MAX_FAULTS_SHOWN} more")
    return ClusterFileError("\n".join([f"{path} cannot be used: {count}", *lines]))


def _variable(name: str, loc: Loc, environ: Mapping[str, str]) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{shown('${' + name + '}')}: only ${{NAME}} is understood")
    on_a_node = loc[0] in ("nodes", "workers", "environment") or loc[:2] == ("cluster", "master")
    if name == "HOME" and on_a_node:
        raise ValueError("${HOME} is this machine's; for the home on the node write ~/")
    value = environ.get(name)
    if not value and name in ("USER", "LOGNAME"):  # cron and containers do not set them
        value = pwd.getpwuid(os.getuid()).pw_name
    if not value:
        raise ValueError(f"${{{name}}} is not set here; `export {name}=...` or write the value out")
    return value


def _cluster(form: ClusterFile | NodesFile, path: Path, home_folder: Path) -> Cluster:
    folder = path.parent.parent if path.parent.name in ("config", "clusters") else path.parent
    paths = form.paths
    root = folder / here(paths.project_root or "", home_folder)

    def inside(*choices: str | None) -> Path | None:
        return next((root / here(choice, home_folder) for choice in choices if choice), None)

    scripts = inside(paths.scripts)
    form = form.model_copy(
        update={"environment": _with_manager(form.environment, root, scripts or root / "scripts")}
    )
    data = inside(paths.data) or root
    experiments = inside(paths.experiments, paths.results) or data / "experiments"
    log_file = inside(form.logging.file)
    beside = log_file.parent if log_file else experiments.parent / "logs"
    if isinstance(form, ClusterFile):
        communication = form.cluster.communication
        master_port, rendezvous_seconds = communication.master_port, communication.timeout_seconds
    else:
        master_port, rendezvous_seconds = form.cluster.master_port, None
    timeouts = {"rendezvous_seconds": rendezvous_seconds} if rendezvous_seconds else {}
    # What is not written stays not given: config/training_defaults.yaml may say otherwise.
    training = form.training.model_dump(exclude={"gradient_accumulation"}, exclude_unset=True)
    if form.training.gradient_accumulation:
        training["gradient_accumulation_steps"] = form.training.gradient_accumulation
    return Cluster(
        name=form.cluster.name or checked_line(path.stem),
        location=form.cluster.location,
        description=form.cluster.description,
        nodes=_nodes(form),
        master_port=master_port,
        environment=_environment(form.environment),
        training=TrainingDefaults.given(**training),
        timeouts=Timeouts(**form.timeouts.model_dump() | timeouts),
        logging=Logging(**form.logging.model_dump(exclude={"file"})),
        root=root,
        experiments=experiments,
        scripts=scripts or shipped_or(root / "scripts"),
        logs=inside(paths.logs) or beside,
        source=str(path),
    )


def _nodes(form: ClusterFile | NodesFile) -> tuple[Node, ...]:
    entries: list[tuple[str, int, NodeSection]]
    if isinstance(form, NodesFile):
        named = enumerate(form.nodes.items())
        entries = [(name, _either(node.rank, place), node) for place, (name, node) in named]
    else:
        master = form.cluster.master
        entries = [(master.name or master.hostname or "master", 0, master)]
        workers = enumerate(form.workers, start=1)
        entries += [(node.name, _either(node.rank, place), node) for place, node in workers]
    machines = Counter(node.ip for _, _, node in entries)
    return tuple(_node(name, rank, node, form, alone=machines[node.ip] == 1) for name, rank, node in entries)


def _node(name: str, rank: int, node: NodeSection, form: ClusterFile | NodesFile, *, alone: bool) -> Node:
    hardware, paths = node.hardware or Hardware(), node.paths or NodePaths()
    common = form.paths
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
        project=paths.project or common.project_base or common.project_root or DEFAULT_PROJECT,
        gpu_model=hardware.gpu_model or (node.gpu if isinstance(node, NamedNode) else None),
        vram_gb=hardware.vram_gb or (node.vram_gb if isinstance(node, NamedNode) else None),
        slot="node" if alone else name,
        environment=_environment(form.environment, node.environment),
    )


def _environment(common: EnvironmentSection, own: EnvironmentSection | None = None) -> Environment:
    """The cluster's environment with the node's own keys over it. A node with another manager takes
    neither path nor python from the cluster: they belong to the cluster's manager.
    """
    said = _environment_keys(common)
    if own is not None:
        keys = _environment_keys(own)
        if keys.get("manager", said.get("manager")) != said.get("manager"):
            said = {key: value for key, value in said.items() if key not in ("path", "python")}
        said |= keys
    return Environment(**{"manager": "existing", **said})


def _with_manager(section: EnvironmentSection, root: Path, scripts: Path) -> EnvironmentSection:
    """The section with the manager whose lock lies in the project, where it does not say what makes the environment."""
    if section.manager or section.conda_env or section.python:
        return section
    return section.model_copy(update={"manager": manager_by_lock(root, scripts)})


def _environment_keys(section: EnvironmentSection) -> dict[str, Any]:
    said: dict[str, Any] = section.model_dump(exclude_none=True)
    if conda_env := said.pop("conda_env", None):
        said = {"name": conda_env, "manager": "pixi"} | said
    return said


def _either(value: int | None, default: int) -> int:
    return default if value is None else value
