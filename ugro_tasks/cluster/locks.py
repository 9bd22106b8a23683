"""The package manager of a project, recognised by its lock file."""

from __future__ import annotations

from pathlib import Path

LOCKS = {"pixi": "pixi.lock", "uv": "uv.lock"}


def manager_by_lock(root: Path, scripts: Path) -> str:
    """Return the manager of the project's lock, `venv` for pins in the scripts, else `existing`."""
    for manager, lock in LOCKS.items():
        if (root / lock).is_file():
            return manager
    if (scripts / "constraints.txt").is_file():
        return "venv"
    return "existing"
