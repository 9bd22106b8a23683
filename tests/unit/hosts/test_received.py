"""What a transfer leaves in a folder here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.unit.ended import small_disk
from ugro_tasks.hosts.received import remove_strays
from ugro_tasks.node import partial_file
from ugro_tasks.node.partial_file import PartialFile
from ugro_tasks.node.tree import open_beneath


def test_only_empty_folders_of_partial_files_are_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / ".ugro-partial" / "model.bin"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (tmp_path / "checkpoint-10" / ".ugro-partial").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    remove_strays(str(tmp_path))
    assert kept.exists()
    assert (tmp_path / "empty").exists()
    assert not (tmp_path / "checkpoint-10" / ".ugro-partial").exists()


def test_a_disk_that_takes_no_file_keeps_no_folder_for_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 8) as small:
        # The folder takes the last number of a file.
        remount = ["mount", "-o", "remount,nr_inodes=2", str(small)]
        subprocess.run(remount, check=True)
        with pytest.raises(OSError, match="No space left"):
            partial(small)
        remove_strays(str(small))
        assert list(small.iterdir()) == []


def test_a_partial_files_folder_may_be_removed_by_another_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is empty until the file is in it."""
    missed: list[str] = []

    def missing_once(folder: str, path: str, flags: int, *, create: bool) -> int:
        if not missed:
            missed.append(path)
            raise FileNotFoundError(2, "No such file or directory")
        return open_beneath(folder, path, flags, create=create)

    monkeypatch.setattr(partial_file, "open_beneath", missing_once)
    partial(tmp_path).close()
    assert missed == [".ugro-partial/model.bin"]
    assert (tmp_path / ".ugro-partial" / "model.bin").exists()


def partial(folder: Path) -> PartialFile:
    return PartialFile(
        str(folder), "model.bin", offset=0, digest=None, alive=lambda: None
    )
