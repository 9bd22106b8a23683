"""Small builders: a whole and harmless value, of which a test names only what it is about; and a full disk."""

from __future__ import annotations

import hashlib
import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ugro_tasks.cluster.model import Cluster, Environment, Node, TrainingDefaults
from ugro_tasks.codec import convert
from ugro_tasks.errors import RecordError
from ugro_tasks.hosts.answers import ProbeAnswer
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.plan import LaunchPlan, NodePlan
from ugro_tasks.jobs.record import Code, JobRecord
from ugro_tasks.jobs.spec import JobSpec
from ugro_tasks.node.network import peer_port

EXISTING = Environment(manager="existing", python="/opt/env/bin/python")


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


def make_node(rank: int = 0, **changes: Any) -> Node:
    """A node reached by SSH, 10.0.0.1 and up; nothing contacts it."""
    given: dict[str, Any] = {
        "name": f"gpu{rank}",
        "rank": rank,
        "address": f"10.0.0.{rank + 1}",
        "environment": EXISTING,
    }
    return Node(**{**given, **changes})


def make_cluster(
    root: Path, nodes: int | tuple[Node, ...] = 3, **changes: Any
) -> Cluster:
    """A cluster whose folders lie in `root`."""
    gang = (
        tuple(make_node(rank) for rank in range(nodes))
        if isinstance(nodes, int)
        else nodes
    )
    given: dict[str, Any] = {
        "name": "lab",
        "nodes": gang,
        "environment": EXISTING,
        "training": TrainingDefaults(),
        "root": root,
        "experiments": root / "experiments",
        "scripts": root / "scripts",
        "logs": root / "logs",
        "source": str(root / "cluster.yaml"),
    }
    return Cluster(**{**given, **changes})


def make_probe(**facts: Any) -> ProbeAnswer:
    """What a node told of itself, as it comes over the wire; it has no card and no environment."""
    room = {
        "path": "/x",
        "free_bytes": 1 << 40,
        "total_bytes": 1 << 40,
        "writable": True,
    }
    ran = {"code": 0, "stdout": "", "stderr": ""}
    told: dict[str, Any] = {
        "hostname": "gpu",
        "resolves_to": None,
        "interfaces": {},
        "python": "3.11.7",
        "boot_id": "b",
        "cpus": 8,
        "project": room,
        "shm": room,
        "rsync": None,
        "lease": None,
        "jobs": [],
        "our_pids": [],
        "torch": ran,
        "gpus": ran,
        "apps": ran,
        "started": 1.0,
        "ended": 2.0,
    }
    return convert(ProbeAnswer, {**told, **facts})


def make_scripts(folder: Path, **files: str) -> Path:
    """A scripts folder with a train.py."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text("print('hello')\n")
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text)
    return folder


def make_spec(**changes: Any) -> JobSpec:
    """A spec that can be run."""
    given: dict[str, Any] = {
        "name": "exp1",
        "script": "train.py",
        "model": "tiny",
        "dataset": "text",
        "epochs": 3,
        "learning_rate": 2e-4,
    }
    return JobSpec(**{**given, **changes})


def make_record(cluster: Cluster, **changes: Any) -> JobRecord:
    """The record of a job that has no id yet."""
    given: dict[str, Any] = {
        **msgspec.structs.asdict(make_spec()),
        "job_id": "exp1_<time>",
        "nonce": "c0ffee00",
        "started_at": "2026-01-20T12:00:00+01:00",
        "nodes": tuple(node.name for node in cluster.nodes),
        "code": Code(sha256="", git_commit=None),
        "cluster": cluster.as_json(),
        "ugro_version": "0.1.0",
    }
    return JobRecord(**{**given, **changes})


def asked_to_stop(job: Experiment, *, give_up: bool = False) -> bool:
    """Whether this user asked for the job to be stopped."""
    try:
        request = job.stop_request()
    except RecordError:
        return False
    return request is not None and request.give_up is give_up


def make_node_plan(rank: int = 0, **changes: Any) -> NodePlan:
    """What one node runs."""
    given: dict[str, Any] = {
        "node": f"gpu{rank}",
        "rank": rank,
        "address": f"10.0.0.{rank + 1}",
        "interface": "eth0",
        "token": f"exp1_20260120_120000.c0ffee00:gpu{rank}:node",
        "folder": "/nowhere/jobs/exp1_20260120_120000.c0ffee00",
        "argv": ("true",),
        "env": {},
    }
    return NodePlan(**{**given, **changes})


def make_plan_of(plans: tuple[NodePlan, ...], **changes: Any) -> LaunchPlan:
    """A launch of these nodes."""
    given: dict[str, Any] = {
        "job_id": "exp1_20260120_120000",
        "world_size": len(plans),
        "master_address": "10.0.0.1",
        "master_port": 29500,
        "nodes": plans,
    }
    return LaunchPlan(**{**given, **changes})


def damage(job: Experiment, name: str, content: bytes | None) -> None:
    """Damage a record and its copy; None stands for their loss."""
    for path in (job.folder / name, job.folder / f".{name}.copy"):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)


def file_told(path: str, content: bytes) -> dict[str, Any]:
    """The end of a file, as its source tells of it."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "path": path,
        "size": len(content),
        "mtime_ns": 5,
        "mode": 0o644,
        "sha256": sha256,
    }


def salt_of(port: int, rendezvous: int) -> int:
    """Give the salt by which a node finds this port for its peers."""
    salt = port - peer_port(0, rendezvous)
    assert peer_port(salt, rendezvous) == port
    return salt


@contextmanager
def disk_full_beyond(file_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: what fits is written, the rest is an error, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
