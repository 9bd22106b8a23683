"""Copies of the training scripts: taken at launch, and packed for the nodes."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import RecordError, UsageError
from ..files import Folder
from .record import Code

NOT_CODE = ("__pycache__", "*.pyc", ".git", ".*_cache", ".venv")
CODE_LIMIT_BYTES = 64 << 20
# For git to say its commit; it is not worth more.
GIT_SECONDS = 10.0


def snapshot(scripts: Path, target: Folder) -> Code:
    """Copy the scripts into a folder not there yet; return their hash and git commit.

    The copy is on the disk when this returns, but for the name of its folder. Raises UsageError if
    the scripts' folder is missing or too large, OSError if they cannot be copied.
    """
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
    contents = {}
    folders = {target}
    target.make()
    for name in names:
        content = (scripts / name).read_bytes()
        copy = target.file(str(name))
        copy.parent.make()
        mode = (scripts / name).stat().st_mode
        copy.write_new(content, stat.S_IMODE(mode) & 0o777 | stat.S_IWUSR)
        contents[str(name)] = content
        folders.update(_folders_to(copy.parent, target))
    for folder in folders:
        folder.sync()
    return Code(sha256=_digest(contents), git_commit=_git_commit(scripts))


def _folders_to(folder: Folder, top: Folder) -> Iterator[Folder]:
    """Yield a folder and those above it, up to another one."""
    while folder != top:
        yield folder
        folder = folder.parent


def pack(code: Folder, launched: Code) -> bytes:
    """Pack a copy of the scripts into a compressed tar.

    Raises RecordError unless it is as launched: whoever can write into the experiments folder must
    not be able to run code on the nodes.
    """
    import tarfile  # late: only a launch needs it

    contents = {}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        try:
            for name in sorted(_files_in(code), key=Path):
                with code.file(name).open() as file:
                    facts = archive.gettarinfo(arcname=name, fileobj=file)
                    contents[name] = file.read()
                facts.size = len(contents[name])
                archive.addfile(facts, io.BytesIO(contents[name]))
        except OSError as error:
            raise RecordError(f"{error.filename}: {error.strerror}") from error
    if _digest(contents) != launched.sha256:
        raise RecordError(
            f"{code.path}: not the scripts as they were launched; they are not sent to any node. "
            "Launch the job anew"
        )
    return packed.getvalue()


def _files_in(folder: Folder, below: str = "") -> Iterator[str]:
    """Yield the names of all files of the copy, without those that Python and tools add to it."""
    for entry in folder.entries():
        name = f"{below}{entry.name}"
        if _is_ignored(Path(name)):
            continue
        if entry.is_folder:
            yield from _files_in(folder.folder(entry.name), f"{name}/")
        else:
            yield name


def _digest(contents: Mapping[str, bytes]) -> str:
    """Hash files with their names, in the order given."""
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()


def _git_commit(folder: Path) -> str | None:
    import shutil
    import subprocess

    if not shutil.which("git"):
        return None
    argv = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _is_ignored(path: Path) -> bool:
    return any(Path(part).match(pattern) for part in path.parts for pattern in NOT_CODE)
