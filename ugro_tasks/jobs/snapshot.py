"""Copies of the training scripts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..errors import UsageError
from .record import Code

NOT_CODE = ("__pycache__", "*.pyc", ".git", ".*_cache", ".venv")
CODE_LIMIT_BYTES = 64 << 20


def snapshot(scripts: Path, target: Path) -> Code:
    """Copy the scripts; return their hash and git commit.

    Raises UsageError if the folder is missing or too large.
    """
    import shutil  # late: only a launch needs it

    if not scripts.is_dir():
        raise UsageError(
            f"{scripts}: no such folder; set paths.scripts in the cluster file"
        )
    names = [path.relative_to(scripts) for path in scripts.rglob("*") if path.is_file()]
    names = sorted(name for name in names if not _is_ignored(name))
    size = sum((scripts / name).stat().st_size for name in names)
    if size > CODE_LIMIT_BYTES:
        raise UsageError(
            f"{scripts}: {size >> 20} MiB would travel with each launch (limit {CODE_LIMIT_BYTES >> 20} MiB); "
            "keep data elsewhere and pass its path"
        )
    digest = hashlib.sha256()
    for name in names:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(scripts / name, copy)
        digest.update(os.fsencode(name) + b"\0" + copy.read_bytes())
    return Code(sha256=digest.hexdigest(), git_commit=_git_commit(scripts))


def _git_commit(folder: Path) -> str | None:
    import shutil
    import subprocess

    if not shutil.which("git"):
        return None
    argv = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _is_ignored(path: Path) -> bool:
    return any(Path(part).match(pattern) for part in path.parts for pattern in NOT_CODE)
