"""The contents of the files of a cluster, as bytes; build.py interprets them."""

from __future__ import annotations

from pathlib import Path

from ..errors import ClusterFileError

MAX_BYTES = 1 << 20
LOGGING_FILE = "config/logging.yaml"


def content_of(path: Path) -> bytes:
    """Read the file at `path`. Raises ClusterFileError if it is unreadable or over MAX_BYTES."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ClusterFileError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise ClusterFileError(
            f"{path} is over 1 MiB; nobody writes that much about a cluster."
        )
    return content


def logging_content(root: Path) -> bytes:
    """Read config/logging.yaml of the project in `root`; empty without such a file. Raises ClusterFileError."""
    path = root / LOGGING_FILE
    try:
        there = path.is_file()
    except OSError as error:
        raise ClusterFileError(f"{path} cannot be read: {error.strerror}.") from error
    return content_of(path) if there else b""
