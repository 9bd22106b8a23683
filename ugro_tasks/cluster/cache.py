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
# The exceptions of reading an entry that is missing, damaged or from another program.
DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


def local_path(path: str, home: Path) -> Path:
    """Return a user's path on this machine, with a leading `~/` expanded."""
    if path == "~" or path.startswith("~/"):
        return home / path[2:]
    return Path(path)


def user_home(environ: Mapping[str, str]) -> Path:
    """Return the user's home on this machine."""
    return Path(environ.get("HOME") or Path.home())


class CacheEntry:
    """The cache entry for one cluster file in its present state."""

    def __init__(self, path: Path, content: bytes, environ: Mapping[str, str]) -> None:
        self.environ = environ
        inputs = {
            "version": __version__,
            "code": _hash_of_the_code(),
            "package": str(HERE),
            "user": os.getuid(),
            "path": str(path),
            "variables": _variables(content, environ, "HOME", "USER", "LOGNAME"),
        }
        key = hashlib.sha256(json.dumps(inputs).encode() + content).hexdigest()
        self.home = user_home(environ)
        cache = Path(environ.get("XDG_CACHE_HOME") or self.home / ".cache")
        self.folder = cache / "ugro" / "clusters"
        self.path = self.folder / f"{key}.json"

    def read(self) -> Cluster | None:
        """Return the cached cluster; None if there is no valid entry."""
        try:
            digest, _, content = self.path.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != digest:
                # One flipped bit in an address would be another machine.
                return None
            kept = json.loads(content)
            cluster = Cluster.from_json(kept["cluster"])
            logging_file = logging_content(cluster.root)
            state = _state_of_files(cluster, logging_file, self.environ)
            return cluster if kept["seen"] == state else None
        except DAMAGED:
            return None

    def write(self, cluster: Cluster, logging_file: bytes) -> None:
        """Write the entry, readable by this user only, and remove the oldest ones.

        `logging_file` is the content of config/logging.yaml used for the cluster.
        """
        # Late: reading an entry, as most commands do, needs none of it.
        from ..files import File

        if not self.home.is_dir():
            return
        with contextlib.suppress(OSError, UnicodeError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = _state_of_files(cluster, logging_file, self.environ)
            kept = {"cluster": cluster.as_json(), "seen": state}
            content = json.dumps(kept).encode()
            digest = hashlib.sha256(content).hexdigest().encode()
            File(self.folder, self.path.name).replace(digest + b"\n" + content)
            self._remove_old_entries()

    def _remove_old_entries(self) -> None:
        entries = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in entries[:-ENTRIES_KEPT]:
            old.unlink()


def _hash_of_the_code() -> str:
    """Hash the names and contents of this folder's modules and of the training schema; takes 0.2 ms."""
    found = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.py")), shipped(TRAINING_SCHEMA)]:
        content = path.read_bytes()
        head = f"{path.name} {len(content)}\n"
        found.update(head.encode())
        found.update(content)
    return found.hexdigest()


def _variables(
    content: bytes, environ: Mapping[str, str], *others: str
) -> dict[str, str | None]:
    """Return {name: value} of the `${NAME}` in a file, and of `others`; None for an unset variable."""
    names = set(others)
    names.update(name.decode() for name in VARIABLES.findall(content))
    return {name: environ.get(name) for name in sorted(names)}


def _state_of_files(
    cluster: Cluster, logging_file: bytes, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Return the state of the other files on this machine that influence the cluster."""
    scripts = sorted({cluster.root / "scripts", cluster.scripts})
    paths = [cluster.root / lock for lock in LOCKS.values()]
    paths += scripts
    paths += [folder / "constraints.txt" for folder in scripts]
    state: dict[str, Any] = {
        str(path): [path.is_file(), path.is_dir()] for path in paths
    }
    digest = hashlib.sha256(logging_file).hexdigest()
    state[LOGGING_FILE] = [digest, _variables(logging_file, environ)]
    return state
