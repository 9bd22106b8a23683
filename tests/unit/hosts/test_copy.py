"""Files over a host's own connection: what comes, and what goes on."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ended import small_disk
from tests.unit.factories import make_node
from ugro_tasks.errors import NodeFault
from ugro_tasks.hosts.copy import Copy
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.node.copy import batches
from ugro_tasks.node.receiver import do_nothing
from ugro_tasks.node.source import Source
from ugro_tasks.node.tree import (
    PARTIAL_FOLDER,
)

HERE = LocalHost(make_node(transport="local", address="127.0.0.1"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


def pull(there: Path, here: Path, **options: Any) -> None:
    Copy(HERE).pull(f"{there}/", f"{here}/", **options)


def tree(folder: Path) -> dict[str, Any]:
    """{path: content, or where a link leads, or None of a folder}."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


# ---- what comes ----


def test_a_tree_comes_as_it_is(there: Path, here: Path) -> None:
    (there / "deep" / "er").mkdir(parents=True)
    (there / "empty").touch()
    (there / "deep" / "big").write_bytes(os.urandom(700_000))
    (there / "deep" / "er" / "link").symlink_to("../big")
    (there / "no folder").mkdir(mode=0o750)
    os.mkfifo(there / "pipe")
    pull(there, here)
    assert tree(here) == {
        name: content for name, content in tree(there).items() if name != "pipe"
    }
    for path in (
        path
        for path in there.rglob("*")
        if not path.is_symlink() and path.name != "pipe"
    ):
        ours = (here / path.relative_to(there)).stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )


def test_names_that_are_no_text_come_as_they_are(there: Path, here: Path) -> None:
    name = os.fsdecode(b"bl\xe5b\xe6r \xff")
    (there / name).write_bytes(b"content")
    (there / name).chmod(0o640)
    pull(there, here)
    assert (here / name).read_bytes() == b"content"


def test_nothing_comes_twice(there: Path, here: Path) -> None:
    (there / "file").write_bytes(b"content")
    pull(there, here)
    before = (here / "file").stat()
    assert Copy(HERE).bytes_to_come(f"{there}/", f"{here}/") == 0
    pull(there, here)
    assert (here / "file").stat() == before


def test_a_mode_that_changed_is_followed(there: Path, here: Path) -> None:
    (there / "file").touch(0o600)
    pull(there, here)
    (there / "file").chmod(0o755)
    pull(there, here)
    assert (here / "file").stat().st_mode & 0o7777 == 0o755


def test_a_set_user_id_stays_behind(there: Path, here: Path) -> None:
    (there / "file").touch()
    (there / "file").chmod(0o6755)
    pull(there, here)
    assert (here / "file").stat().st_mode & 0o7777 == 0o755


def test_verify_finds_what_has_the_same_size_and_time(there: Path, here: Path) -> None:
    (there / "file").write_bytes(b"content")
    (there / "same").write_bytes(b"same")
    pull(there, here)
    times = (here / "file").stat()
    (here / "file").write_bytes(b"contenT")
    os.utime(here / "file", ns=(times.st_atime_ns, times.st_mtime_ns))
    pull(there, here)
    assert (here / "file").read_bytes() == b"contenT"
    before = (here / "same").stat().st_ino
    pull(there, here, verify=True)
    assert (here / "file").read_bytes() == b"content"
    assert (here / "same").stat().st_ino == before


def test_verify_is_not_fooled_by_a_part_that_was_left(there: Path, here: Path) -> None:
    (there / "file").write_bytes(b"content")
    pull(there, here)
    (here / PARTIAL_FOLDER).mkdir()
    (here / PARTIAL_FOLDER / "file").write_bytes(b"conte")
    pull(there, here, verify=True)
    assert (here / "file").read_bytes() == b"content"


@pytest.mark.parametrize("damaged", [False, True])
def test_what_has_come_does_not_come_again(
    there: Path, here: Path, damaged: bool
) -> None:
    content = os.urandom(1_000_000)
    (there / "file").write_bytes(content)
    (here / PARTIAL_FOLDER).mkdir(parents=True)
    begun = content[:600_000] if not damaged else b"x" + content[1:600_000]
    (here / PARTIAL_FOLDER / "file").write_bytes(begun)
    told: list[int] = []
    pull(there, here, progress=told.append)
    assert tree(here) == {"file": content}
    assert told == sorted(set(told))
    assert told[-1] == 100


def test_chosen_files_alone_come(there: Path, here: Path) -> None:
    for name in ("a/b/one", "a/two", "three", "logs/four"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(name)
    pull(there, here, files=["a/b/one", "three"])
    assert sorted(name for name, content in tree(here).items() if content) == [
        "a/b/one",
        "three",
    ]
    pull(there, here / "only", only=["/logs"])
    assert sorted(tree(here / "only")) == ["logs", "logs/four"]
    pull(there, here / "not", exclude=["/a/b", "thr*"])
    assert sorted(tree(here / "not")) == ["a", "a/two", "logs", "logs/four"]


def test_a_chosen_file_that_is_not_there_is_told_and_the_others_come(
    there: Path, here: Path
) -> None:
    (there / "one").touch()
    with pytest.raises(NodeFault, match="two: No such file"):
        pull(there, here, files=["one", "two"])
    assert (here / "one").exists()


def test_what_cannot_be_read_is_told_and_the_rest_comes(
    there: Path, here: Path
) -> None:
    (there / "loop").mkdir()
    for name in ("one", "two"):
        (there / name).write_text(name)
    (here / "two").mkdir(parents=True)
    (
        here / "two" / "mine"
    ).touch()  # a folder with something in it gives way to no file
    with pytest.raises(NodeFault, match="two: "):
        pull(there, here)
    assert (here / "one").read_text() == "one"
    assert (here / "two" / "mine").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, here: Path) -> None:
    with pytest.raises(NodeFault, match=f"{tmp_path}/nowhere: No such file"):
        pull(tmp_path / "nowhere", here)


def test_a_full_disk_here_is_an_error_of_this_machine(
    there: Path, tmp_path: Path
) -> None:
    (there / "big").write_bytes(os.urandom(8 << 20))
    with small_disk(tmp_path / "small", 4) as small:
        with pytest.raises(OSError, match="No space left") as raised:
            pull(there, small)
        assert raised.value.errno == errno.ENOSPC
        assert str(small) in str(raised.value.filename)
        assert not (small / "big").exists()


def test_a_push_makes_the_other_side_the_same(there: Path, here: Path) -> None:
    for name in ("deep/one", "two"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    (here / "absolute").symlink_to("/proc/version")
    (there / "old" / "deep").mkdir(parents=True)
    (there / "old" / "deep" / "file").touch()
    (there / "kept").touch()
    Copy(HERE).push(f"{here}/", f"{there}/", delete=True, exclude=["kept"])
    assert tree(there) == {**tree(here), "kept": b""}


def test_a_push_takes_from_a_folder_beside_what_is_there_already(
    there: Path, here: Path
) -> None:
    here.mkdir()
    (here / "file").write_text("content")
    Copy(HERE).push(f"{here}/", f"{there}/first/")
    Copy(HERE).push(
        f"{here}/", f"{there}/second/", link_from=["../first", "../nowhere"]
    )
    assert (there / "first" / "file").stat().st_ino == (
        there / "second" / "file"
    ).stat().st_ino


def test_a_push_to_a_full_disk_is_the_nodes_fault(here: Path, tmp_path: Path) -> None:
    here.mkdir()
    (here / "big").write_bytes(os.urandom(8 << 20))
    with (
        small_disk(tmp_path / "small", 4) as small,
        pytest.raises(NodeFault, match="No space left"),
    ):
        Copy(HERE).push(f"{here}/", f"{small}/to/")


def test_a_file_that_grows_meanwhile_comes_as_it_was(there: Path, here: Path) -> None:
    over = threading.Event()

    def grow() -> None:
        with (there / "log").open("ab") as log:
            while not over.wait(0.001) and log.tell() < 16 << 20:
                log.write(b"a line\n" * 1000)
                log.flush()

    (there / "log").write_bytes(b"begin\n")
    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(5):
            pull(there, here)
    finally:
        over.set()
        thread.join()
    pull(there, here)
    assert (here / "log").read_bytes() == (there / "log").read_bytes()


# ---- the node's own part ----


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(min_size=1, max_size=300), max_size=30))
def test_every_batch_is_a_list_that_a_frame_can_carry(words: list[str]) -> None:
    many = [word * 500 for word in words]
    parts = [json.loads(batch) for batch in batches(many)]
    assert [word for part in parts for word in part] == many
    assert all(
        len(batch) < 1 << 19
        for batch in batches([["f", "\ud800" * 4096, 0, 0, 0]] * 100)
    )


def test_a_source_that_vanished_while_it_was_listed_is_passed_over(there: Path) -> None:
    (there / "deep").mkdir()
    listing = Source(str(there)).entries(do_nothing)
    assert next(listing)[1] == "deep"
    (there / "deep").rmdir()
    assert list(listing) == []
