"""UGRO's own files: no link, pipe, device or socket in their place is followed, and no write is half."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ugro_tasks.files import File, Folder, Held


@pytest.fixture
def records(tmp_path: Path) -> Folder:
    """Return a folder of records, beside files that must stay as they are."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "state.json").write_text("precious")
    folder = Folder(tmp_path / "experiments", "exp1")
    folder.path.mkdir(parents=True)
    return folder


def link(path: Path) -> None:
    path.symlink_to("../../victim")


def dangling(path: Path) -> None:
    path.symlink_to("../../nothing")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


PLANTED = [link, dangling, pipe, folder, listener]


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("place", ["state.json", "logs/rank0.log"])
def test_what_is_no_plain_file_is_neither_read_nor_written(
    records: Folder, plant: Callable[[Path], None], place: str
) -> None:
    records.folder("logs").make()
    file = records.file(place)
    plant(file.path)
    for work in (file.open, file.read, file.size, file.open_to_change):
        with pytest.raises(OSError) as caught:
            work()
        assert caught.value.filename == str(file.path)
    for write in (file.append_lines, file.append_stream):
        with pytest.raises(OSError, match=r"UGRO|Is a directory"):
            write(b"forged")
    assert (records.path.parent.parent / "victim").read_text() == "precious"
    assert not (records.path.parent.parent / "nothing").exists()


@pytest.mark.parametrize("plant", [link, dangling, pipe, listener])
def test_a_replaced_file_takes_the_place_of_what_was_planted(
    records: Folder, plant: Callable[[Path], None]
) -> None:
    file = records.file("state.json")
    plant(file.path)
    file.replace(b"{}")
    assert stat.S_ISREG(file.path.lstat().st_mode)
    assert file.read() == b"{}"
    assert (records.path.parent.parent / "victim").read_text() == "precious"


@pytest.mark.parametrize("name", ["exp1", "exp1/deep", "exp1/deep/deeper"])
def test_no_folder_on_the_way_may_be_a_link(records: Folder, name: str) -> None:
    planted = records.root / name
    planted.parent.mkdir(parents=True, exist_ok=True)
    if planted.exists():
        planted.rmdir()
    planted.symlink_to(records.path.parent.parent / "elsewhere")
    folder = Folder(records.root, f"{name}")
    file = folder.file("state.json")
    acts: list[Callable[[], object]] = [
        file.read,
        lambda: file.append_lines(b"forged"),
        lambda: file.replace(b"forged"),
        lambda: folder.file("new").append_lines(b"x\n"),
        folder.folder("new").make,
        lambda: folder.remove("state.json"),
        file.remove,
    ]
    for act in acts:
        with pytest.raises(OSError, match=r"no f.* of UGRO's"):
            act()
    assert folder.entries() == []
    assert folder.size("state.json") == 0
    there = records.path.parent.parent / "elsewhere"
    assert [path.name for path in there.iterdir()] == ["state.json"]
    assert (there / "state.json").read_text() == "precious"


def test_the_root_may_be_reached_by_a_link(records: Folder, tmp_path: Path) -> None:
    """The experiments folder is the user's choice."""
    (tmp_path / "shortcut").symlink_to(records.root)
    records.file("state.json").replace(b"{}")
    assert Folder(tmp_path / "shortcut", "exp1").file("state.json").read() == b"{}"


def test_a_missing_file_is_empty_and_cannot_be_opened(records: Folder) -> None:
    file = records.file("none")
    assert (file.read(), file.size(), file.exists()) == (b"", 0, False)
    with pytest.raises(FileNotFoundError):
        file.open()
    file.remove()


def test_files_are_made_for_their_owner_only(records: Folder) -> None:
    made = [records.file(name) for name in ("a", "b", "c", "d")]
    made[0].append_lines(b"x\n")
    made[1].append_stream(b"x")
    made[2].replace(b"x")
    made[3].create(b"x")
    assert {stat.S_IMODE(file.path.stat().st_mode) for file in made} == {0o600}


def test_a_file_is_created_once(records: Folder) -> None:
    file = records.file("key")
    file.create(b"first")
    file.create(b"second")
    assert file.read() == b"first"
    assert [entry.name for entry in records.entries()] == ["key"]


def test_a_removed_folder_takes_no_other_with_it(records: Folder) -> None:
    (records.path / "old").mkdir()
    (records.path / "old" / "out").symlink_to(records.path.parent.parent / "elsewhere")
    (records.path / "link").symlink_to(records.path.parent.parent / "elsewhere")
    records.remove("old")
    records.remove("link")
    records.remove("never there")
    assert records.entries() == []
    assert (records.path.parent.parent / "elsewhere" / "state.json").exists()


def test_sizes_count_no_links(records: Folder) -> None:
    (records.path / "deep" / "deeper").mkdir(parents=True)
    (records.path / "deep" / "a").write_bytes(b"12")
    (records.path / "deep" / "deeper" / "b").write_bytes(b"345")
    (records.path / "deep" / "link").symlink_to(records.path.parent.parent / "victim")
    assert records.size("deep") == 5
    assert records.folder("deep").size("a") == 2


def test_a_short_write_is_taken_back(
    records: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = records.file("events.jsonl")
    file.append_lines(b"whole\n")

    class Full:
        """A file on a disk with room for three bytes."""

        def __init__(self, opened: object) -> None:
            self.opened = opened

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.opened.close()  # type: ignore[attr-defined]

        def write(self, content: bytes) -> int:
            return self.opened.write(content[:3])  # type: ignore[attr-defined,no-any-return]

        def __getattr__(self, name: str) -> object:
            return getattr(self.opened, name)

    opened = file._opened(os.O_RDWR | os.O_APPEND)
    monkeypatch.setattr(File, "_opened", lambda *_: Full(opened))
    with pytest.raises(OSError) as caught:
        file.append_lines(b"half a line\n")
    assert caught.value.errno == errno.ENOSPC
    assert file.read() == b"whole\n"


@pytest.mark.parametrize(
    ("disk", "full"),
    [
        ({"f_bavail": 10**9, "f_files": 10**6, "f_favail": 10**6}, False),
        ({"f_bavail": 1000, "f_files": 10**6, "f_favail": 10**6}, True),
        ({"f_bavail": 10**9, "f_files": 10**6, "f_favail": 900}, True),
        ({"f_bavail": 10**9, "f_files": 3000, "f_favail": 59}, True),
        ({"f_bavail": 10**9, "f_files": 3000, "f_favail": 61}, False),
        ({"f_bavail": 10**9, "f_files": 0, "f_favail": 0}, False),
    ],
    ids=str,
)
def test_room_is_left_for_bytes_and_for_files(
    records: Folder,
    monkeypatch: pytest.MonkeyPatch,
    disk: dict[str, int],
    full: bool,
) -> None:
    """Thousands of empty files from a node must not take the last ones either."""
    told = SimpleNamespace(f_blocks=10**9, f_frsize=4096, **disk)
    monkeypatch.setattr(os, "statvfs", lambda _: told)
    file = records.file("gpu.jsonl")
    if full:
        with pytest.raises(OSError, match="No space left"):
            file.append_lines(b"x\n", leaving_room=True)
        with pytest.raises(OSError, match="No space left"):
            file.append_stream(b"x\n")
    else:
        file.append_lines(b"x\n", leaving_room=True)
    file.append_lines(b"own\n", leaving_room=False)
    assert file.read() == (b"own\n" if full else b"x\nown\n")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_synchronise_folders_is_written_to(
    records: Folder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    records.file("state.json").replace_durably(b"{}", records.file(".state.json.copy"))
    records.sync()
    assert records.file("state.json").read() == b"{}"


def test_a_disk_that_fails_is_not_passed_over(
    records: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        records.file("x").replace_durably(b"{}", records.file(".x.copy"))


def test_a_file_is_created_once_without_hard_links_too(
    records: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    file = records.file("signing.key")
    file.create(b"first")
    file.create(b"second")
    assert file.read() == b"first"
    assert {entry.name for entry in records.entries()} == {"signing.key"}


# ---- a folder that is kept open ----


def test_a_folder_kept_open_is_reached_wherever_it_is_moved_to(records: Folder) -> None:
    held = records.held()
    archive = records.path.parent / "archive"
    archive.mkdir()
    records.path.rename(archive / "renamed")
    records.path.mkdir()
    held.file("state.json").replace(b"{}")
    assert (archive / "renamed/state.json").read_bytes() == b"{}"
    assert held.file("state.json").path == records.path / "state.json"
    assert list(records.path.iterdir()) == []
    inside = subprocess.run(
        ["ls", held.folder("").place], check=True, capture_output=True, text=True
    )
    assert inside.stdout == "state.json\n"


def test_a_folder_kept_open_inside_another_one_is_found_by_its_path_alone(
    records: Folder,
) -> None:
    above = Folder(records.path.parent).held()
    job = above.folder(records.path.name).held()
    assert isinstance(job.root, Held)
    assert job.root.is_at_its_path()
    records.path.parent.rename(records.path.parent.with_name("aside"))
    assert not job.root.is_at_its_path()
    records.path.mkdir(parents=True)
    assert not job.root.is_at_its_path()
    job.file("state.json").replace(b"{}")
    assert Path(job.place, "state.json").exists()
    job.root.take_up_again()
    job.file("here").replace(b"")
    assert [path.name for path in records.path.iterdir()] == ["here"]


def test_only_a_folder_that_is_really_gone_was_deleted(records: Folder) -> None:
    held = records.held()
    assert isinstance(held.root, Held)
    moved = records.path.parent / "moved"
    records.path.rename(moved)
    assert not held.root.was_deleted
    assert not held.root.is_at_its_path()
    moved.rmdir()
    assert held.root.was_deleted
    with pytest.raises(FileNotFoundError):
        held.file("state.json").replace(b"{}")


def test_a_restored_folder_is_taken_up_again_by_all_that_knew_it(
    records: Folder,
) -> None:
    held = records.held()
    state = held.file("state.json")
    records.path.rmdir()
    records.path.mkdir()
    assert isinstance(held.root, Held)
    held.root.take_up_again()
    state.replace(b"{}")
    assert (records.path / "state.json").read_bytes() == b"{}"


def test_no_link_is_taken_up_in_place_of_a_folder(records: Folder) -> None:
    held = records.held()
    records.path.rmdir()
    records.path.symlink_to(records.path.parent.parent / "elsewhere")
    assert isinstance(held.root, Held)
    with pytest.raises(OSError, match="UGRO"):
        held.root.take_up_again()
    with pytest.raises(OSError, match="UGRO"):
        records.held()
