"""The outputs of a job's ranks in its folder, and UGRO's own notes about their checkpoints.

    outputs/<rank>/                       the files written by a rank
    manifests/<rank>/<checkpoint>.json    its checkpoints that are here whole
    checkpoints -> outputs/0/checkpoints  and the other `LINKED` ones, for people; never followed

A folder made before format 2 has rank 0's outputs among UGRO's own files, the other ranks' in
ranks/<rank>/, and the manifests beside the checkpoints. It is read as it is, and changed to the new
layout before anything is fetched into it.
"""

from __future__ import annotations

import contextlib
import os
import re

from ..files import Entry, File, Folder
from ..node.protocol import MANIFEST_SUFFIX

# Folders of rank 0 with a link in the job's folder.
LINKED = ("checkpoints", "artifacts", "tensorboard")
CHECKPOINTS = "checkpoints"
# See `File.replace`.
HALF_WRITTEN = re.compile(r"\.+(?:config|state)\.json(?:\.copy)?\.(\d+)\.\d+")
# UGRO's own names in a folder made before format 2; all others were written by rank 0.
OWN_BEFORE = {
    "config.json", "state.json", "events.jsonl", "metrics.jsonl", "gpu.jsonl", "code", "logs", "ranks", "stop",
    "manifests", ".config.json.copy", ".state.json.copy",
}  # fmt: skip


class Outputs:
    """The outputs in one job's folder."""

    def __init__(self, files: Folder) -> None:
        self._files = files
        self._outputs = files.folder("outputs")
        self._is_new = False

    def of(self, rank: int) -> Folder:
        """Return the folder for the outputs of a rank."""
        if not self._is_old():
            return self._outputs.folder(str(rank))
        return self._files if rank == 0 else self._files.folder(f"ranks/{rank}")

    def checkpoints(self, rank: int) -> Folder:
        """Return the folder for a rank's checkpoint files; shared files are in rank 0's."""
        return self.of(rank).folder(CHECKPOINTS)

    def manifest(self, rank: int, checkpoint: str) -> File:
        """Return the file saying that a rank's part of a checkpoint is here whole."""
        if self._is_old():
            return self.checkpoints(rank).file(f"{checkpoint}{MANIFEST_SUFFIX}")
        return self._files.file(f"manifests/{rank}/{checkpoint}.json")

    def manifests(self, rank: int) -> list[File]:
        """Return the manifests of a rank here, sorted by name."""
        folder = self._files.folder(f"manifests/{rank}")
        suffix = ".json"
        if self._is_old():
            folder = self.checkpoints(rank)
            suffix = MANIFEST_SUFFIX
        names = [entry.name for entry in folder.entries() if entry.is_file]
        return [folder.file(name) for name in names if name.endswith(suffix)]

    def ranks(self) -> list[int]:
        """Return rank 0 and every rank with a folder for its outputs."""
        folder = self._files.folder("ranks") if self._is_old() else self._outputs
        found = {0}
        for entry in folder.entries():
            if entry.is_folder and entry.name.isdecimal():
                found.add(int(entry.name))
        return sorted(found)

    def all_checkpoints(self) -> dict[str, dict[int, Entry]]:
        """Return {checkpoint: {rank: its folder or file}}, whole or not."""
        found: dict[str, dict[int, Entry]] = {}
        for rank in self.ranks():
            for entry in self.checkpoints(rank).entries():
                hidden = entry.name.startswith(".")
                if not hidden and not entry.name.endswith(MANIFEST_SUFFIX):
                    found.setdefault(entry.name, {})[rank] = entry
        return found

    def make(self, rank: int) -> Folder:
        """Make the folder for a rank's outputs, in the present layout, and return it; raises OSError."""
        self.upgrade()
        folder = self.of(rank)
        folder.make()
        return folder

    def remove_link_at_checkpoints(self, rank: int) -> None:
        """Remove a link sent by a node where the folder for checkpoints belongs; raises OSError."""
        for entry in self.of(rank).entries():
            if entry.name == CHECKPOINTS and not entry.is_folder:
                self.of(rank).remove(CHECKPOINTS)

    def remove_if_empty(self, rank: int) -> None:
        """Remove the folder of a rank that wrote nothing."""
        folder = self.of(rank)
        with contextlib.suppress(OSError), folder.parent.opened() as at:
            os.rmdir(str(rank), dir_fd=at)

    def link_for_people(self) -> None:
        """Make the links in the job's folder to rank 0's folders that are here; raises OSError."""
        here = {entry.name for entry in self.of(0).entries() if entry.is_folder}
        with self._files.opened() as at:
            for name in here.intersection(LINKED):
                with contextlib.suppress(FileExistsError):
                    os.symlink(f"outputs/0/{name}", name, dir_fd=at)

    def upgrade(self) -> None:
        """Give the job's folder the present layout; raises OSError.

        Each move is a rename, and the last one makes the layout, so that the next upgrade finishes
        a killed one.
        """
        if not self._is_old():
            return
        making = self._files.folder("outputs.making")
        first = making.folder("0")
        first.make()
        for entry in self._files.entries():
            is_own = entry.name in OWN_BEFORE or entry.name == "outputs.making"
            if not is_own and not HALF_WRITTEN.fullmatch(entry.name):
                self._files.move(entry.name, first)
        for entry in self._files.folder("ranks").entries():
            self._files.folder("ranks").move(entry.name, making)
        for rank in making.entries():
            self._move_manifests(making.folder(f"{rank.name}/{CHECKPOINTS}"), rank.name)
        self._files.move("outputs.making", self._files, "outputs")
        self._files.remove("ranks")
        self.link_for_people()

    def _move_manifests(self, checkpoints: Folder, rank: str) -> None:
        target = self._files.folder(f"manifests/{rank}")
        for entry in checkpoints.entries():
            if entry.is_file and entry.name.endswith(MANIFEST_SUFFIX):
                target.make()
                checkpoint = entry.name.removesuffix(MANIFEST_SUFFIX)
                checkpoints.move(entry.name, target, f"{checkpoint}.json")

    def _is_old(self) -> bool:
        """Return whether the folder was made before format 2."""
        if not self._is_new:
            here = self._files.file("outputs").exists()
            self._is_new = here or not self._files.exists()
        return not self._is_new
