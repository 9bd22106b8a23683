"""Removal of links leading out of a folder received from a node."""

from __future__ import annotations

import contextlib
import os


def remove_stray_links(folder: str) -> None:
    """Remove the links in a folder leading out of it, at any depth.

    A link may leave the folder by way of another one: `a -> deep/up/..` looks harmless, but leads
    out if `deep/up` is a link to `..`. Neither an rsync before 3.4 nor `leads_inside` notices that.
    """
    root = os.path.realpath(folder)
    waiting = [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                if entry.is_symlink():
                    _remove_where_stray(entry.path, root)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _remove_where_stray(link: str, root: str) -> None:
    leads_to = os.path.realpath(link)
    if leads_to == root or leads_to.startswith(root + os.sep):
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link)  # noqa: PTH108
