"""Removal of paths in a folder that are not at the source of a transfer."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Callable, Container, ContextManager, Sequence

from .tree import is_excluded


def remove_others(
    folder: str,
    kept: Container[str],
    *,
    exclude: Sequence[str],
    noting: Callable[[str], ContextManager[None]],
    alive: Callable[[], None],
) -> None:
    """Remove every path below a folder except those in `kept` and those matching `exclude`.

    `noting(path)` is a context that records an OSError; `alive` is called for each path.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with noting(inside):
            for found in list(os.scandir(os.path.join(folder, inside))):
                path = os.path.join(inside, found.name)
                alive()
                if is_excluded(path, exclude):
                    continue
                is_folder = found.is_dir(follow_symlinks=False)
                if path in kept and is_folder:
                    waiting.append(path)
                elif path not in kept:
                    with noting(path):
                        _remove(found.path, is_folder)


def _remove(path: str, is_folder: bool) -> None:
    if not is_folder:
        os.unlink(path)
        return
    try:
        shutil.rmtree(path)
    except RecursionError:
        # A tree of a thousand levels, before Python 3.13.
        subprocess.run(["rm", "-rf", "--", path], check=False)
