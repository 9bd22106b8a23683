"""The receiver of a transfer, from a source that sends what it should not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ugro_tasks.node.receiver import Receiver
from ugro_tasks.node.tree import Unfit


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


def told(name: str, content: bytes, **changes: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "path": name,
        "size": len(content),
        "mtime_ns": 5,
        "mode": 0o644,
        "sha256": sha256,
    } | changes


@pytest.fixture
def receiver(here: Path) -> Iterator[Receiver]:
    made = Receiver(str(here))
    yield made
    made.close()


def test_a_file_through_a_link_lands_in_a_folder_of_its_own(
    receiver: Receiver, here: Path
) -> None:
    """A link that came before leads to where UGRO's own records lie; it gives way."""
    (here / "records").mkdir(parents=True)
    (here / "records" / "config.json").write_text("ours")
    (here / "checkpoints").symlink_to("records")
    receiver.expect([["f", "checkpoints/config.json", 5, 0o644, 6]])
    assert [want[0] for want in receiver.wants()] == ["checkpoints/config.json"]
    receiver.write("checkpoints/config.json", 0, b"theirs")
    assert receiver.finish_file(told("checkpoints/config.json", b"theirs"))
    receiver.finish()
    assert (here / "records" / "config.json").read_text() == "ours"
    assert (here / "checkpoints" / "config.json").read_text() == "theirs"


def test_a_link_in_the_place_of_a_file_is_not_written_through(
    receiver: Receiver, here: Path
) -> None:
    here.mkdir()
    (here / "secret").write_text("ours")
    (here / "file").symlink_to("secret")
    receiver.expect([["f", "file", 5, 0o600, 6]])
    list(receiver.wants())
    receiver.write("file", 0, b"theirs")
    assert receiver.finish_file(told("file", b"theirs"))
    assert (here / "secret").read_text() == "ours"
    assert not (here / "file").is_symlink()


def test_bytes_that_are_not_the_sources_get_no_name(
    receiver: Receiver, here: Path
) -> None:
    receiver.expect([["f", "file", 5, 0o644, 5]])
    list(receiver.wants())
    receiver.write("file", 0, b"wrong")
    assert receiver.finish_file(told("file", b"right")) is False
    assert not (here / "file").exists()
    receiver.write("file", 0, b"right")
    assert receiver.finish_file(told("file", b"right")) is True
    assert (here / "file").read_bytes() == b"right"


@pytest.mark.parametrize(
    ("path", "offset"),
    [("other", 0), ("file", 1), ("file", 1 << 40), ("folder", 0), ("../file", 0)],
)
def test_content_that_nobody_asked_for_is_refused(
    receiver: Receiver, path: str, offset: int
) -> None:
    receiver.expect([["f", "file", 5, 0o644, 5], ["d", "folder", 5, 0o755]])
    list(receiver.wants())
    with pytest.raises(Unfit):
        receiver.write(path, offset, b"x")


@pytest.mark.parametrize(
    "changes", [{"path": "other"}, {"path": 7}, {"mode": 0o7777}, {"mtime_ns": "x"}]
)
def test_an_end_that_is_none_is_refused(
    receiver: Receiver, changes: dict[str, Any]
) -> None:
    receiver.expect([["f", "file", 5, 0o644, 1]])
    list(receiver.wants())
    receiver.write("file", 0, b"x")
    with pytest.raises(Unfit):
        receiver.finish_file(told("file", b"x", **changes))


def test_links_come_last_so_that_nothing_is_written_through_them(
    receiver: Receiver, here: Path
) -> None:
    receiver.expect(
        [
            ["l", "a", "b"],
            ["d", "b", 5, 0o755],
            ["l", "out", "../../etc"],
            ["l", "in", "b/c"],
        ]
    )
    list(receiver.wants())
    assert not (here / "a").exists()
    receiver.finish()
    assert {path.name for path in here.rglob("*")} == {"a", "b", "in"}
