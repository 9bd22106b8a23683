"""The package manager of a project, recognised by its lock file."""

from __future__ import annotations

from pathlib import Path

LOCKS = {"pixi": "pixi.lock", "uv": "uv.lock"}


def manager_by_lock(root: Path, scripts: Path) -> str:
    """Return the manager of the project's lock, `venv` for pins in the scripts, else `existing`."""
    present = [manager for manager, lock in LOCKS.items() if (root / lock).is_file()]
    if (scripts / "constraints.txt").is_file():
        present.append("venv")
    return present[0] if present else "existing"
