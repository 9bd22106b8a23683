"""`cluster.yaml` -> `Cluster`; all faults of the file are reported together, with their lines.

    load_cluster()              # UGRO_CLUSTER, else ./cluster.yaml
    load_cluster("lab")         # lab.yaml or clusters/lab.yaml
    load_cluster("local")       # built in: three ranks on this machine's CPU

The keys of the file are in schema.py; build.py makes the Cluster from it. config/logging.yaml in the project has the
keys of `logging:`, for the built-in cluster, too.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import ClusterFileError
from .cache import CacheEntry, local_path, user_home
from .content import content_of, logging_content
from .local import local_cluster
from .model import Cluster
from .values import shown


def load_cluster(
    choice: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
) -> Cluster:
    """Load the cluster named by `choice`: a path, a name, or `local`.

    Without a choice, UGRO_CLUSTER decides, else `cluster.yaml` in `cwd` is read.

    Raises ClusterFileError if there is no such file, or with every fault in it.
    """
    cwd = (cwd or Path.cwd()).resolve()
    source = "--cluster"
    if choice is None:
        source = "UGRO_CLUSTER"
        choice = environ.get("UGRO_CLUSTER") or None
    if choice == "local":
        return _local(cwd, environ)
    is_name = choice is None or (choice.strip() and "\0" not in choice)
    if not is_name:
        raise ClusterFileError(
            f"{source} {shown(choice)} is no cluster's name; leave it out or give one."
        )
    candidates = _candidates(choice, cwd, environ)
    try:
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise ClusterFileError(_not_found(choice, source, candidates))
    except OSError as error:
        raise ClusterFileError(
            f"{error.filename} cannot be read: {error.strerror}."
        ) from error
    return read_cluster_file(path, environ)


def read_cluster_file(path: Path, environ: Mapping[str, str] = os.environ) -> Cluster:
    """Read the cluster file at `path`; raises ClusterFileError with every fault in it."""
    content = content_of(path)
    entry = CacheEntry(path, content, environ)
    cached = entry.read()
    if cached is not None:
        return cached
    # Late, and only for a file that is new or has changed: the forms are a fifth of a command's start.
    from .build import build

    cluster, logging_file = build(path, content, environ)
    entry.write(cluster, logging_file)
    return cluster


def _local(root: Path, environ: Mapping[str, str]) -> Cluster:
    """Make the built-in cluster for the project in `root`, with its config/logging.yaml."""
    plain = local_cluster(root)
    logging_file = logging_content(root)
    if not logging_file:
        return plain
    plain_content = json.dumps(plain.as_json()).encode()
    entry = CacheEntry(Path(plain.source), plain_content, environ)
    cached = entry.read()
    if cached is not None:
        return cached
    from .build import with_logging_file  # late, as above

    cluster = with_logging_file(plain, logging_file, environ)
    entry.write(cluster, logging_file)
    return cluster


def _candidates(
    choice: str | None, cwd: Path, environ: Mapping[str, str]
) -> list[Path]:
    if choice is None:
        return [cwd / "cluster.yaml"]
    path = cwd / local_path(choice, user_home(environ))
    if "/" in choice or path.suffix in (".yaml", ".yml"):
        return [path]
    name = f"{choice}.yaml"
    return [cwd / name, cwd / "clusters" / name, path]


def _not_found(choice: str | None, source: str, candidates: list[Path]) -> str:
    last = candidates[-1]
    if last.is_dir():
        inside = last / "cluster.yaml"
        hint = f"; try {inside}" if inside.is_file() else ""
        return f"{last} is a folder, not a cluster file{hint}."
    if last.exists():
        return f"{last} is not a regular file, so it is not read as a cluster file."
    asked = f" for {source} {shown(choice)}" if choice else ""
    looked = ", ".join(str(path) for path in candidates)
    return (
        f"no cluster file{asked}: looked for {looked}. Name one with --cluster PATH, "
        "write one (the README shows how), "
        "or train on this machine alone: --cluster local"
    )
