"""Removal of links leading out of a folder received from a node."""

from __future__ import annotations

import contextlib
import os
import posixpath

# As many as the kernel follows: more lead nowhere.
HOPS_MOST = 40


def remove_stray_links(folder: str) -> None:
    """Remove the links in a folder leading out of it, at any depth, and those with an absolute target.

    A link may leave the folder by way of another one: `a -> deep/up/..` looks harmless, but leads
    out if `deep/up` is a link to `..`. Neither an rsync before 3.4 nor `leads_inside` notices that.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with (
            contextlib.suppress(OSError),
            os.scandir(posixpath.join(folder, inside)) as found,
        ):
            for entry in found:
                path = posixpath.join(inside, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_symlink() and _leads_out(folder, path):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)  # noqa: PTH108


def _leads_out(folder: str, path: str) -> bool:
    """Follow a link name by name, never through one; a folder that is kept open may have no path of its own."""
    here: list[str] = []
    ahead = path.split("/")[::-1]
    hops = 0
    while ahead:
        name = ahead.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            if not here:
                return True
            here.pop()
            continue
        try:
            target = os.readlink(posixpath.join(folder, *here, name))  # noqa: PTH115
        except OSError:
            # No link, or nothing at all.
            here.append(name)
            continue
        if posixpath.isabs(target):
            return True
        hops += 1
        if hops > HOPS_MOST:
            return False
        ahead += target.split("/")[::-1]
    return False
