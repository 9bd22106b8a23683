"""What a power cut may leave of a folder: a recorder of what is done in it, and a model of the disk.

After each call of the operating system by `ugro_tasks/files.py` the folder is compared with what it
was before. A new name is on the disk for sure once its folder was synchronised, and maybe before;
names appear in their order, as file systems with a journal have it. Content is there for sure once
its file was synchronised; before that it may be missing, half there, or NULs.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ugro_tasks.files

CHANGES = ("mkdir", "rename", "replace", "link", "unlink", "fsync", "open")
# {path below the folder: content}, None for a folder; links are not followed by anything, and left out.
Tree = dict[str, bytes | None]


class Named(NamedTuple):
    """Names that one call has given or taken, all or none: (folder, name, its inode or None)."""

    names: list[tuple[int, str, int | None]]


class Written(NamedTuple):
    """The content of a file, not yet synchronised."""

    inode: int
    content: bytes


class Synced(NamedTuple):
    """A file or folder was synchronised."""

    inode: int


Act = Named | Written | Synced


class Recorder:
    """The module `os` for `ugro_tasks/files.py`; it notes what changes below a folder, in order.

    `situation` is asked after each act, for what else must be known of this moment.
    """

    def __init__(self, folder: Path, situation: Callable[[], Any]) -> None:
        self.folder = folder
        self.acts: list[Act] = []
        self.situations: list[Any] = []
        self._situation = situation
        self._lock = threading.RLock()
        self._names: dict[tuple[int, str], int] = {}
        self._contents: dict[int, bytes] = {}
        # Held open, for their numbers not to be given to other files.
        self._held: dict[int, int] = {}
        self.root = folder.stat().st_ino

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in CHANGES:
            return found

        def recorded(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                # What was written through a file object since.
                self._compare()
                result = found(*arguments, **options)
                self._compare()
                if name == "fsync":
                    self._note(Synced(os.fstat(arguments[0]).st_ino))
                return result

        return recorded

    def let_go(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def _note(self, act: Act) -> None:
        self.acts.append(act)
        self.situations.append(self._situation())

    def _compare(self) -> None:
        names: dict[tuple[int, str], int] = {}
        contents: dict[int, bytes] = {}
        for path in sorted(self.folder.rglob("*")):
            # Another thread may rename or remove it meanwhile.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if path.is_symlink():
                    continue
                inode = path.stat().st_ino
                names[path.parent.stat().st_ino, path.name] = inode
                if inode not in self._held:
                    self._held[inode] = os.open(path, os.O_PATH)
                if path.is_file():
                    contents[inode] = path.read_bytes()
        changed: list[tuple[int, str, int | None]] = []
        for (inside, name), inode in names.items():
            if self._names.get((inside, name)) != inode:
                changed.append((inside, name, inode))
        for inside, name in self._names.keys() - names.keys():
            changed.append((inside, name, None))
        for inode, content in contents.items():
            if self._contents.get(inode) != content:
                self._note(Written(inode, content))
        self._contents.update(contents)
        self._names = names
        if changed:
            self._note(Named(changed))


@contextlib.contextmanager
def recorded(
    folder: Path, situation: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Recorder]:
    """Make a context that records what UGRO does below a folder."""
    recorder = Recorder(folder, situation)
    with monkeypatch.context() as patch:
        patch.setattr(ugro_tasks.files, "os", recorder)
        yield recorder
    recorder.let_go()


def outcomes(root: int, acts: list[Act]) -> Iterator[Tree]:
    """Yield each tree that a power cut after these acts may leave."""
    sure: list[Named] = []
    pending: list[Named] = []
    durable: dict[int, bytes] = {}
    latest: dict[int, bytes] = {}
    for act in acts:
        if isinstance(act, Written):
            latest[act.inode] = act.content
        elif isinstance(act, Named):
            pending.append(act)
        else:
            durable[act.inode] = latest.get(act.inode, b"")
            made_sure = [named for named in pending if _is_in(named, act.inode)]
            sure += made_sure
            pending = [named for named in pending if named not in made_sure]
    order = {id(act): number for number, act in enumerate(acts)}
    for kept in range(len(pending) + 1):
        there = sorted([*sure, *pending[:kept]], key=lambda named: order[id(named)])
        names: dict[tuple[int, str], int] = {}
        for named in there:
            for inside, name, inode in named.names:
                names.pop((inside, name), None)
                if inode is not None:
                    names[inside, name] = inode
        for left in (whole, nothing, half, nuls):
            contents = {
                inode: left(durable.get(inode, b""), content)
                for inode, content in latest.items()
            }
            yield dict(_tree(root, names, contents))


def _is_in(named: Named, folder: int) -> bool:
    return any(inside == folder for inside, _, _ in named.names)


def whole(sure: bytes, latest: bytes) -> bytes:
    del sure
    return latest


def nothing(sure: bytes, latest: bytes) -> bytes:
    del latest
    return sure


def half(sure: bytes, latest: bytes) -> bytes:
    return latest[: (len(sure) + len(latest)) // 2] if latest != sure else latest


def nuls(sure: bytes, latest: bytes) -> bytes:
    return sure.ljust(len(latest), b"\0")


def _tree(
    folder: int,
    names: Mapping[tuple[int, str], int],
    contents: Mapping[int, bytes],
    above: str = "",
) -> Iterator[tuple[str, bytes | None]]:
    folders = {inside for inside, _ in names}
    for (inside, name), inode in names.items():
        if inside != folder:
            continue
        if inode in contents:
            yield above + name, contents[inode]
        else:
            yield above + name, None
            if inode in folders:
                yield from _tree(inode, names, contents, f"{above}{name}/")


def materialise(tree: Tree, folder: Path) -> None:
    """Make the tree below a folder."""
    folder.mkdir(parents=True)
    for name, content in sorted(tree.items()):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
