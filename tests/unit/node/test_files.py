"""Files of a job's folder on a node, which its script may replace by anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ugro_tasks.node.files import open_plain, read_json, read_text


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_itself(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("plant", [pipe, endless, to_itself, listening, folder])
def test_what_is_no_regular_file_is_none_and_is_not_waited_for(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = tmp_path / "exit.json"
    plant(path)
    with pytest.raises(FileNotFoundError):
        open_plain(str(path))
    assert read_text(str(path)) == ""
    assert read_json(str(path)) is None


def test_a_file_is_read_also_by_a_link_of_its_owner(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"code": 0}')
    (tmp_path / "exit.json").symlink_to("elsewhere")
    assert read_json(str(tmp_path / "exit.json")) == {"code": 0}
    assert read_text("/proc/self/comm").strip()
