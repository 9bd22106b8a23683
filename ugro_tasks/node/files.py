"""Small files of a node."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Dict, Optional

Json = Dict[str, Any]


def expand(path: str) -> str:
    """A leading ~/ becomes this node's home."""
    return os.path.expanduser(path) if path.startswith("~/") else path


def read_text(path: str) -> str:
    """The file as text, invalid bytes replaced; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def read_json(path: str) -> Optional[Json]:
    """The object in a file of this package; None where there is none."""
    raw = read_text(path)
    return json.loads(raw) if raw else None


def read_object(path: str) -> Optional[Json]:
    """The JSON object in a file that anybody may have written; None where there is none."""
    try:
        found = read_json(path)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: str, value: Json) -> None:
    """Whole or not at all, readable by this user only."""
    temporary = "%s.%d" % (path, os.getpid())
    try:
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as file:
            json.dump(value, file)
        os.replace(temporary, path)
    except OSError:  # the disk is full: no half of it may stay
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte to a file, which takes as many at a time as it likes."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def state_folder() -> str:
    """~/.ugro: leases and what is remembered between requests. It may be missing where the home cannot be written."""
    path = os.path.expanduser("~/.ugro")
    with contextlib.suppress(OSError):  # who has to write into it says so
        os.makedirs(path, mode=0o700, exist_ok=True)
    return path
