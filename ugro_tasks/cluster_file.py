"""`cluster.yaml` -> `Cluster`; whatever is wrong with the file comes at once, line by line.

    load_cluster()              # UGRO_CLUSTER, else ./cluster.yaml
    load_cluster("lab")         # lab.yaml or clusters/lab.yaml
    load_cluster("local")       # built in: three ranks on this machine's CPU

What may stand in the file: ugro_tasks.cluster_form.
"""

import ipaddress
import os
import pwd
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ugro_tasks.cluster import (
    DEFAULT_PROJECT,
    Cluster,
    Environment,
    Logging,
    Node,
    TrainingDefaults,
    local_cluster,
    shipped_or,
    shown,
)
from ugro_tasks.cluster_form import (
    ClusterFile,
    EnvironmentSection,
    Hardware,
    Master,
    NamedNode,
    NodePaths,
    NodeSection,
    NodesFile,
)
from ugro_tasks.errors import ClusterFileError
from ugro_tasks.yaml_document import Document, Fault, Loc, written

MAX_BYTES = 1 << 20
MAX_FAULTS_SHOWN = 50

# Two spellings of one thing, as (section, one, other).
SYNONYMS = [
    ("environment", "conda_env", "name"),
    ("master", "port", "ssh_port"),
    ("paths", "results", "experiments"),
    ("training", "gradient_accumulation", "gradient_accumulation_steps"),
]


def load_cluster(
    choice: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
) -> Cluster:
    """The cluster that `choice` (a path, a name, or `local`) means, else UGRO_CLUSTER, else
    `cluster.yaml` in `cwd`.

    Raises ClusterFileError: no such file, or every fault in it.
    """
    cwd = (cwd or Path.cwd()).resolve()
    said_by = "--cluster" if choice is not None else "UGRO_CLUSTER"
    choice = choice if choice is not None else environ.get("UGRO_CLUSTER") or None
    if choice == "local":
        return local_cluster(cwd)
    if choice is not None and (not choice.strip() or "\0" in choice):
        raise ClusterFileError(f"{said_by} {shown(choice)} is no cluster's name; leave it away or give one.")
    candidates = _candidates(choice, cwd, environ)
    try:
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise ClusterFileError(_not_found(choice, said_by, candidates))
    except OSError as error:
        raise ClusterFileError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return read_cluster_file(path, environ)


def read_cluster_file(path: Path, environ: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that the file at `path` describes; ClusterFileError lists every fault in it."""
    document = Document(_text(path), lambda name, loc: _variable(name, loc, environ))
    if not document.data and not document.faults:
        raise _refusal(path, [Fault(1, "the file says nothing: no key in it has a value")])
    form: ClusterFile | NodesFile | None = None
    if document.data:
        _check_synonyms(document)
        _check_machines(document)
        by_name = "nodes" in document.data
        form = document.validate(NodesFile) if by_name else document.validate(ClusterFile)
    if form is None:
        raise _refusal(path, document.faults)
    return _cluster(form, path, _home(environ))


def _candidates(choice: str | None, cwd: Path, environ: Mapping[str, str]) -> list[Path]:
    if choice is None:
        return [cwd / "cluster.yaml"]
    path = cwd / _here(choice, _home(environ))
    if "/" in choice or path.suffix in (".yaml", ".yml"):
        return [path]
    return [cwd / f"{choice}.yaml", cwd / "clusters" / f"{choice}.yaml", path]


def _not_found(choice: str | None, said_by: str, candidates: list[Path]) -> str:
    last = candidates[-1]
    if last.is_dir():
        inside = f"; try {last / 'cluster.yaml'}" if (last / "cluster.yaml").is_file() else ""
        return f"{last} is a folder, not a cluster file{inside}."
    if last.exists():
        return f"{last} is not a regular file, so it is not read as a cluster file."
    asked = f" for {said_by} {shown(choice)}" if choice else ""
    looked = ", ".join(str(path) for path in candidates)
    return (
        f"no cluster file{asked}: looked for {looked}. Name one with --cluster PATH, write one "
        "(the README shows how), or train on this machine alone: --cluster local"
    )


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ClusterFileError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise ClusterFileError(f"{path} is over 1 MiB; that is no cluster file.")
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


def _check_synonyms(document: Document) -> None:
    for loc, section in _sections(document.data, ()):
        for within, one, other in SYNONYMS:
            if loc[-1:] == (within,) and one in section and other in section:
                first = document.line((*loc, other))
                document.fault((*loc, one), f"is the same as {other} on line {first}; keep one")
    communication = ("cluster", "communication", "timeout_seconds")
    timeouts = ("timeouts", "rendezvous_seconds")
    if _at(document.data, communication) and _at(document.data, timeouts):
        first = document.line(communication)
        document.fault(timeouts, f"is the same as {written(communication)} on line {first}; keep one")


def _sections(data: Any, loc: Loc) -> Iterator[tuple[Loc, dict[str, Any]]]:
    if isinstance(data, dict):
        yield loc, data
        items: Iterator[tuple[str | int, Any]] = iter(data.items())
    elif isinstance(data, list):
        items = iter(enumerate(data))
    else:
        return
    for key, value in items:
        yield from _sections(value, (*loc, key))


def _at(data: Any, loc: Loc) -> Any:
    """The value at `loc`; None where the file has none, or something of another kind on the way."""
    for part in loc:
        data = data.get(part) if isinstance(data, dict) else None
    return data


class Machine(NamedTuple):
    """A node as it stands in the file, before anybody knows whether its values are any good."""

    loc: Loc
    keys: dict[str, Any]
    place: int

    def claims(self) -> Iterator[tuple[str, str, object]]:
        """What no other node may have, as (what, key, value); a value that is no good claims nothing."""
        name = self.keys.get("name") or self.keys.get("hostname", "master")
        if self.loc[0] != "nodes" and isinstance(name, str):
            yield "name", "name", name
        rank = self.keys.get("rank", str(self.place))
        if isinstance(rank, str) and rank.isdecimal() and len(rank) < 10:
            yield "rank", "rank", int(rank)
        address = self.keys.get("ip")
        if isinstance(address, str) and self.keys.get("transport") != "local":
            try:
                yield "address", "ip", str(ipaddress.ip_address(address))
            except ValueError:
                return  # the model says so, in better words


def _check_machines(document: Document) -> None:
    """Faults between nodes. They are found in the raw data, so that one bad value hides none."""
    data = document.data
    if "nodes" in data:
        for other in (("workers",), ("cluster", "master")):
            if _at(data, other) is not None:
                line = document.line(("nodes",))
                document.fault(other, f"does not go with `nodes` on line {line}; keep one form")
    elif "cluster" not in data:
        document.fault(("cluster",), "is missing; its `master` is the machine of rank 0")
    elif isinstance(data["cluster"], dict) and "master" not in data["cluster"]:
        what_to_do = "is missing; give the machine of rank 0 here: hostname, ip, user"
        document.fault(("cluster", "master"), what_to_do)
    machines = _machines(data)
    taken: dict[tuple[str, object], Machine] = {}
    for machine in machines:
        for what, key, value in machine.claims():
            first = taken.setdefault((what, value), machine)
            if first is not machine:
                loc = (*machine.loc, key) if key in machine.keys else machine.loc
                where = f"{written(first.loc)} on line {document.line((*first.loc, key))}"
                document.fault(loc, f"{what} {value} is taken by {where}")
        if machine.keys.get("transport") == "local" and "jump" in machine.keys:
            document.fault((*machine.loc, "jump"), "has no use with transport: local; remove it")
    ranked = {rank: machine for (what, rank), machine in taken.items() if what == "rank"}
    if len(ranked) == len(machines):
        _check_ranks(document, ranked)


def _machines(data: dict[str, Any]) -> list[Machine]:
    found: list[tuple[Loc, Any]]
    if "nodes" in data:
        nodes = data["nodes"] if isinstance(data["nodes"], dict) else {}
        found = [(("nodes", name), node) for name, node in nodes.items()]
    else:
        workers = data.get("workers")
        found = [(("cluster", "master"), _at(data, ("cluster", "master")))]
        if isinstance(workers, list):
            found += [(("workers", index), worker) for index, worker in enumerate(workers)]
    return [Machine(loc, node, place) for place, (loc, node) in enumerate(found) if isinstance(node, dict)]


def _check_ranks(document: Document, ranked: dict[Any, Machine]) -> None:
    """Faults of ranks that are all given and all different."""
    if 0 not in ranked:
        if ranked and "nodes" in document.data:
            document.fault(("nodes",), "no node has rank 0; give it to the master")
        return
    count, last = len(ranked), max(ranked)
    if last >= count:
        free = next(rank for rank in range(count) if rank not in ranked)
        document.fault(
            (*ranked[last].loc, "rank"),
            f"rank {last} leaves a gap: {count} nodes have the ranks 0 to {count - 1}, and {free} is free",
        )
    for rank, machine in ranked.items():
        role = machine.keys.get("role")
        if role in ("master", "worker") and (role == "master") != (rank == 0):
            fit = f"{role} does not fit rank {rank}; the master is the node of rank 0"
            document.fault((*machine.loc, "role"), fit)
    promised, ip = _at(document.data, ("cluster", "master_ip")), ranked[0].keys.get("ip")
    if promised and ip and promised != ip:
        where = f"{shown(ip)} on line {document.line((*ranked[0].loc, 'ip'))}"
        fit = f"{shown(promised)} is not the ip of the node of rank 0, {where}"
        document.fault(("cluster", "master_ip"), fit)


def _cluster(form: ClusterFile | NodesFile, path: Path, home: Path) -> Cluster:
    folder = path.parent.parent if path.parent.name in ("config", "clusters") else path.parent
    paths = form.paths
    root = folder / _here(paths.project_root or "", home)

    def here(*choices: str | None) -> Path | None:
        return next((root / _here(choice, home) for choice in choices if choice), None)

    data = here(paths.data) or root
    experiments = here(paths.experiments, paths.results) or data / "experiments"
    log_file = here(form.logging.file)
    beside = log_file.parent if log_file else experiments.parent / "logs"
    if isinstance(form, ClusterFile):
        communication = form.cluster.communication
        master_port, rendezvous_seconds = communication.master_port, communication.timeout_seconds
    else:
        master_port, rendezvous_seconds = form.cluster.master_port, None
    timeouts = {"rendezvous_seconds": rendezvous_seconds} if rendezvous_seconds else {}
    training = form.training.model_dump(exclude={"gradient_accumulation"})
    if form.training.gradient_accumulation:
        training["gradient_accumulation_steps"] = form.training.gradient_accumulation
    return Cluster(
        name=form.cluster.name or path.stem,
        location=form.cluster.location,
        description=form.cluster.description,
        nodes=_nodes(form),
        master_port=master_port,
        environment=_environment(form.environment),
        training=TrainingDefaults.model_validate(training),
        timeouts=form.timeouts.model_copy(update=timeouts),
        logging=Logging.model_validate(form.logging.model_dump(exclude={"file"})),
        root=root,
        experiments=experiments,
        scripts=here(paths.scripts) or shipped_or(root / "scripts"),
        logs=here(paths.logs) or beside,
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
    return Environment.model_validate({"manager": "existing", **said})


def _environment_keys(section: EnvironmentSection) -> dict[str, str]:
    said: dict[str, str] = section.model_dump(exclude_none=True)
    if conda_env := said.pop("conda_env", None):
        said = {"name": conda_env, "manager": "pixi"} | said
    return said


def _either(value: int | None, default: int) -> int:
    return default if value is None else value


def _here(path: str, home: Path) -> Path:
    return home / path[2:] if path == "~" or path.startswith("~/") else Path(path)


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())
