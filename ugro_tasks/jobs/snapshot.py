"""Copies of the training scripts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..errors import UsageError
from .record import Code

NOT_CODE = ("__pycache__", "*.pyc", ".git", ".*_cache", ".venv")
CODE_LIMIT_BYTES = 64 << 20


def _snapshot(scripts: Path, target: Path) -> Code:
    """Copy the scripts; return their hash and git commit.

    Raises UsageError if the folder is missing or too large.
    """
    import shutil
    import subprocess

    if not scripts.is_dir():
        raise UsageError(
            f"{scripts}: no such folder; set paths.scripts in the cluster file"
        )
    files = [
        path
        for path in scripts.rglob("*")
        if path.is_file() and not _is_ignored(path.relative_to(scripts))
    ]
    size = sum(path.stat().st_size for path in files)
    if size > CODE_LIMIT_BYTES:
        raise UsageError(
            f"{scripts}: {size >> 20} MiB would travel with each launch (limit {CODE_LIMIT_BYTES >> 20} MiB); "
            "keep data elsewhere and pass its path"
        )
    digest = hashlib.sha256()
    for path in sorted(files):
        copy = target / path.relative_to(scripts)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        digest.update(
            os.fsencode(path.relative_to(scripts)) + b"\0" + copy.read_bytes()
        )
    commit = subprocess.run(
        ["git", "-C", str(scripts), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ) if shutil.which("git") else None  # fmt: skip
    known = commit.stdout.strip() if commit and commit.returncode == 0 else None
    return Code(sha256=digest.hexdigest(), git_commit=known)


def _is_ignored(path: Path) -> bool:
    return any(Path(part).match(pattern) for part in path.parts for pattern in NOT_CODE)
