"""A cache of parsed clusters, so that an unchanged cluster file is not validated again.

Validation needs pydantic and YAML, a quarter of the time of `inv health`. Entries are stored in
`~/.cache/ugro/clusters/<key>.json`. The key is a hash over all inputs: the file's content and path, the environment
variables it uses, and the code of this folder with config/training_schema.yaml, which define the meaning of a file.
The presence of lock files and a hash of config/logging.yaml are stored inside the entry and compared.

A damaged, missing or unwritable entry is never an error: the file is then validated anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from .content import LOGGING_FILE, logging_content
from .local import TRAINING_SCHEMA, shipped
from .locks import LOCKS
from .model import Cluster

HERE = Path(__file__).parent
ENTRIES_KEPT = 8
VARIABLES = re.compile(rb"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def here(path: str, home_folder: Path) -> Path:
    """Return a user's path on this machine, with a leading `~/` expanded."""
    return (
        home_folder / path[2:] if path == "~" or path.startswith("~/") else Path(path)
    )


def home(environ: Mapping[str, str]) -> Path:
    """Return the user's home on this machine."""
    return Path(environ.get("HOME") or Path.home())


class Remembered:
    """The cache entry for one cluster file in its present state."""

    def __init__(self, path: Path, content: bytes, environ: Mapping[str, str]) -> None:
        self.environ = environ
        made_from = {
            "version": __version__,
            "code": _hash_of_the_code(),
            "package": str(HERE),
            "user": os.getuid(),
            "path": str(path),
            "variables": _variables(content, environ, "HOME", "USER", "LOGNAME"),
        }
        key = hashlib.sha256(json.dumps(made_from).encode() + content).hexdigest()
        self.home = home(environ)
        cache = Path(environ.get("XDG_CACHE_HOME") or self.home / ".cache")
        self.folder = cache / "ugro" / "clusters"
        self.entry = self.folder / f"{key}.json"

    def cluster(self) -> Cluster | None:
        """Return the cached cluster; None if there is no valid entry."""
        try:
            digest, _, content = self.entry.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != digest:
                # One flipped bit in an address would be another machine.
                return None
            kept = json.loads(content)
            cluster = Cluster.from_json(kept["cluster"])
            logging_file = logging_content(cluster.root)
            seen = _seen(cluster, logging_file, self.environ)
            return cluster if kept["seen"] == seen else None
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            return None

    def keep(self, cluster: Cluster, logging_file: bytes) -> None:
        """Write the entry, readable by this user only, and remove the oldest ones.

        `logging_file` is the content of config/logging.yaml used for the cluster.
        """
        # Late: reading an entry, as most commands do, needs none of it.
        from ..files import replace_file

        if not self.home.is_dir():
            return
        with contextlib.suppress(OSError, UnicodeError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen = _seen(cluster, logging_file, self.environ)
            kept = json.dumps({"cluster": cluster.as_json(), "seen": seen}).encode()
            digest = hashlib.sha256(kept).hexdigest().encode()
            replace_file(self.entry, digest + b"\n" + kept)
            entries = sorted(
                self.folder.iterdir(),
                key=lambda path: path.stat().st_mtime,
                reverse=True,
            )
            for old in entries[ENTRIES_KEPT:]:
                old.unlink()


def _hash_of_the_code() -> str:
    """Hash the names and contents of this folder's modules and of the training schema; takes 0.2 ms."""
    found = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.py")), shipped(TRAINING_SCHEMA)]:
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _variables(
    content: bytes, environ: Mapping[str, str], *others: str
) -> dict[str, str | None]:
    """Return {name: value} of the `${NAME}` in a file, and of `others`; None for an unset variable."""
    names = {*others, *(name.decode() for name in VARIABLES.findall(content))}
    return {name: environ.get(name) for name in sorted(names)}


def _seen(
    cluster: Cluster, logging_file: bytes, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Return the state of the other files on this machine that influence the cluster."""
    scripts = {cluster.root / "scripts", cluster.scripts}
    paths = [cluster.root / lock for lock in LOCKS.values()]
    paths += sorted(scripts) + sorted(folder / "constraints.txt" for folder in scripts)
    seen: dict[str, Any] = {
        str(path): [path.is_file(), path.is_dir()] for path in paths
    }
    digest = hashlib.sha256(logging_file).hexdigest()
    seen[LOGGING_FILE] = [digest, _variables(logging_file, environ)]
    return seen
