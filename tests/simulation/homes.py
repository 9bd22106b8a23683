"""Where the records of a simulated job lie: in memory, or on the disk as those of a real one."""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

from __future__ import annotations

import errno
import io
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast

from tests.unit.agent.power_cut import Tree, materialise
from tests.unit.factories import make_cluster, make_node, make_record, make_scripts
from ugro_tasks.cluster.model import Timeouts
from ugro_tasks.files import Entry, Folder
from ugro_tasks.jobs.experiments import Experiments

TIMEOUTS = Timeouts(away_seconds=30.0, return_seconds=20.0, stop_grace_seconds=7.0)


@cache
def queued_job(ranks: int, local: int, restarts: int, min_nodes: int | None) -> Tree:
    """Give the files of an experiments folder with one queued job, by their names: {name: content}."""
    nodes = tuple(
        make_node(rank, **({"transport": "local"} if rank < local else {}))
        for rank in range(ranks)
    )
    with TemporaryDirectory() as folder:
        root = Path(folder)
        cluster = make_cluster(root, nodes, timeouts=TIMEOUTS)
        record = make_record(
            cluster, sync=False, max_restarts=restarts, min_nodes=min_nodes
        )
        experiments = Experiments(cluster.experiments)
        experiments.create(record, make_scripts(root / "scripts"))
        return {
            str(path.relative_to(experiments.folder)): (
                path.read_bytes() if path.is_file() else None
            )
            for path in experiments.folder.rglob("*")
        }


class Home(Protocol):
    """An experiments folder, as the agent and a test see it."""

    experiments: Experiments

    def read(self, name: str) -> bytes:
        """Read a file, by its name in the folder."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, as nobody of UGRO does."""


class OnDisk:
    """An experiments folder on the disk."""

    def __init__(self, folder: Path, contents: Tree) -> None:
        self.folder = folder
        materialise(contents, folder)
        self.experiments = Experiments(folder)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)


class InMemory:
    """An experiments folder in memory, under the same code but for `files.py`."""

    def __init__(self, contents: Tree) -> None:
        self.contents = dict(contents)
        self.experiments: Experiments = _Experiments(
            Path("/in-memory"), cast("Folder", MemoryFolder(self.contents))
        )

    def read(self, name: str) -> bytes:
        return self.contents[name] or b""

    def write(self, name: str, content: bytes) -> None:
        self.contents[name] = content


class _Experiments(Experiments):
    """An experiments folder that is listed in memory, too."""

    def _entries(self) -> list[Any]:
        contents = self.files.contents  # type: ignore[attr-defined]
        return [
            _TopEntry(name, is_folder=content is None)
            for name, content in contents.items()
            if "/" not in name
        ]


class _TopEntry:
    def __init__(self, name: str, *, is_folder: bool) -> None:
        self.name = name
        self._is_folder = is_folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._is_folder


class MemoryFolder:
    """A `Folder` of files in memory."""

    root = None

    def __init__(self, contents: Tree, name: str = "") -> None:
        self.contents = contents
        self.name = name

    @property
    def path(self) -> Path:
        return Path("/in-memory", self.name)

    def held(self) -> MemoryFolder:
        return self

    def file(self, name: str) -> MemoryFile:
        return MemoryFile(self.contents, f"{self.name}/{name}".lstrip("/"))

    def folder(self, name: str) -> MemoryFolder:
        return MemoryFolder(self.contents, f"{self.name}/{name}".lstrip("/"))

    def entries(self) -> list[Entry]:
        return []  # none that anybody asks for

    def sync(self) -> None:
        """Have nothing to synchronise."""


class MemoryFile:
    """A `File` in memory."""

    def __init__(self, contents: Tree, name: str) -> None:
        self.contents = contents
        self.name = name

    @property
    def path(self) -> Path:
        return Path("/in-memory", self.name)

    def open(self) -> io.BytesIO:
        content = self.contents.get(self.name)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self.path))
        return io.BytesIO(content)

    def read(self, offset: int = 0) -> bytes:
        return (self.contents.get(self.name) or b"")[offset:]

    def size(self) -> int:
        return len(self.read())

    def exists(self) -> bool:
        return self.name in self.contents

    def owner(self) -> int | None:
        return os.geteuid() if self.name in self.contents else None

    def append_lines(self, lines: bytes, *, leaving_room: bool = False) -> int:
        self.contents[self.name] = self.read() + lines
        return 0

    def overwrite(self, content: bytes) -> None:
        self.contents[self.name] = content + self.read(len(content))

    def replace_durably(self, content: bytes, copy: MemoryFile) -> None:
        self.contents[copy.name] = content
        self.contents[self.name] = content

    def sync(self) -> None:
        """Have nothing to synchronise."""
