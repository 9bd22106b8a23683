"""Clusters that this user's commands have read before: a file that is as it was need not be checked again.

To check one takes pydantic and YAML, a quarter of the time that `inv health` takes. What was read is kept in
`~/.cache/ugro/clusters/<key>.json`. The key is a hash over all that the cluster was made from: the file, where it lies,
the variables that stand in it, and this folder's code with config/training_schema.yaml, which alone say what a file
means. What else was looked at stands inside: whether a lock file is there, and what config/logging.yaml held.
Nothing depends on an entry: one that is damaged, or that cannot be written, is as none.
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
    """Return a path as a user writes it, with `~/` for this machine's user."""
    return (
        home_folder / path[2:] if path == "~" or path.startswith("~/") else Path(path)
    )


def home(environ: Mapping[str, str]) -> Path:
    """Return the user's home on this machine."""
    return Path(environ.get("HOME") or Path.home())


class Remembered:
    """The entry for one cluster file as it is now."""

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
        """Return the cluster that the file was when it was last checked; None where that is not known."""
        try:
            digest, _, content = self.entry.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != digest:
                return None  # one flipped bit of an address would be another machine
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
        """Remember it, for this user only, with what config/logging.yaml held when it was made."""
        from ..files import replace_file  # what reads an entry needs none of it

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
    """Hash the modules of this folder and the training schema, names and content; 0.2 ms."""
    found = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.py")), shipped(TRAINING_SCHEMA)]:
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _variables(
    content: bytes, environ: Mapping[str, str], *others: str
) -> dict[str, str | None]:
    """Return the values of the variables that a file names, and of others."""
    names = {*others, *(name.decode() for name in VARIABLES.findall(content))}
    return {name: environ.get(name) for name in sorted(names)}


def _seen(
    cluster: Cluster, logging_file: bytes, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Look at what of this machine's files the cluster depends on, beside its own."""
    scripts = {cluster.root / "scripts", cluster.scripts}
    paths = [cluster.root / lock for lock in LOCKS.values()]
    paths += sorted(scripts) + sorted(folder / "constraints.txt" for folder in scripts)
    seen: dict[str, Any] = {
        str(path): [path.is_file(), path.is_dir()] for path in paths
    }
    digest = hashlib.sha256(logging_file).hexdigest()
    seen[LOGGING_FILE] = [digest, _variables(logging_file, environ)]
    return seen
