"""The training environment of this machine's own nodes, made when a launch first needs it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from .cluster import Cluster
from .errors import EnvironmentFault

STAMP = "made-from.sha256"  # written last: an environment without it is not whole


def ensure_local(cluster: Cluster) -> None:
    """Every local node that trains from a venv has it, made from scripts/requirements.txt; else EnvironmentFault.

    What is done, and what pip says of it, goes to stderr as it comes.
    """
    for path in {
        Path(node.environment.path or f"{node.project}/.venv").expanduser()
        for node in cluster.nodes
        if node.transport == "local" and node.environment.manager == "venv"
    }:
        _ensure(path, cluster.scripts / "requirements.txt")


def _ensure(path: Path, requirements: Path) -> None:
    try:
        wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename}: {error.strerror}; no training environment can be made"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two launches at once: the second waits and finds it made
        stamp = path / STAMP
        if stamp.exists() and stamp.read_text() == wanted:
            return
        sys.stderr.write(f"making the training environment in {path} (once; torch is large)\n")
        # Not what this process was told of other environments.
        clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONHOME", "PYTHONPATH"}}
        python = str(path / "bin/python")
        # This Python's own pip where it has one (Debian's can make no environment with a pip of its own until
        # python3-venv is there); else the new environment's (one made by uv has none).
        own = importlib.util.find_spec("pip") is not None
        make = [sys.executable, "-m", "venv", *(["--without-pip"] if own else []), str(path)]
        pip = [sys.executable, "-m", "pip", "--python", python] if own else [python, "-m", "pip"]
        for step in (make, [*pip, "install", "-r", str(requirements)]):
            done = subprocess.run(step, stdout=sys.stderr, env=clean, check=False)
            if done.returncode != 0:
                raise EnvironmentFault(
                    f"{path}: `{' '.join(step)}` failed with exit code {done.returncode}, see above; "
                    "mend that and launch again, it goes on from there"
                )
        stamp.write_text(wanted)
    finally:
        os.close(lock)
