"""What a folder received from a node must not keep, and what a transfer leaves in it."""

from __future__ import annotations

import contextlib
import os
import posixpath

from ..node.tree import PARTIAL_FOLDER

# As many as the kernel follows: more lead nowhere.
HOPS_MOST = 40


def remove_strays(folder: str) -> None:
    """Remove the links leading out of a folder, at any depth, and those with an absolute target.

    A link may leave the folder by way of another one: `a -> deep/up/..` looks harmless, but leads
    out if `deep/up` is a link to `..`. Neither an rsync before 3.4 nor `leads_inside` notices that.

    Empty folders of partial files are removed as well: a disk took the folder, but no file in it.
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
                    if entry.name == PARTIAL_FOLDER:
                        with contextlib.suppress(OSError):
                            os.rmdir(entry.path)  # noqa: PTH106
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
