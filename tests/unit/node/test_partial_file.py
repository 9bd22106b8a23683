"""A partial file that two transfers want at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.factories import file_told
from ugro_tasks.node.receiver import Receiver
from ugro_tasks.node.tree import PARTIAL_FOLDER, Unfit


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("came", [b"", b"con"], ids=["from its start", "half way"])
def test_two_transfers_of_one_file_do_not_write_to_it_together(
    here: Path, came: bytes
) -> None:
    """The first may be one whose link is dead: the second takes over what came, and the first cannot name it."""
    if came:
        (here / PARTIAL_FOLDER).mkdir()
        (here / PARTIAL_FOLDER / "file").write_bytes(came)
    first = Receiver(str(here))
    second = Receiver(str(here))
    for made in (first, second):
        made.expect([["f", "file", 5, 0o644, 7]])
        assert [want[1] for want in made.wants()] == [len(came)]
    content = b"content"
    first.write("file", len(came), content[len(came) : 5])
    second.write("file", len(came), content[len(came) :])
    first.write("file", 5, content[5:])
    assert first.finish_file(file_told("file", content))
    assert first.errors == ["file: another transfer is bringing it"]
    assert not (here / "file").exists()
    assert second.finish_file(file_told("file", content))
    assert second.errors == []
    assert (here / "file").read_bytes() == content
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_part_that_changed_while_another_held_it_is_not_taken_over(
    here: Path,
) -> None:
    part = here / PARTIAL_FOLDER / "file"
    part.parent.mkdir()
    part.write_bytes(b"con")
    holder = Receiver(str(here))
    made = Receiver(str(here))
    for receiving in (holder, made):
        receiving.expect([["f", "file", 5, 0o644, 7]])
        list(receiving.wants())
    holder.write("file", 3, b"tent")
    part.write_bytes(b"xxxxxxx")
    made.write("file", 3, b"tent")
    assert made.errors == ["file: another transfer is bringing it"]
    holder.close()
    assert [path.name for path in part.parent.iterdir()] == ["file"]


def test_a_part_that_another_transfer_has_continued_is_not_gone_on_with(
    here: Path,
) -> None:
    (here / PARTIAL_FOLDER).mkdir()
    (here / PARTIAL_FOLDER / "file").write_bytes(b"con")
    made = Receiver(str(here))
    made.expect([["f", "file", 5, 0o644, 7]])
    assert [want[1] for want in made.wants()] == [3]
    (here / PARTIAL_FOLDER / "file").write_bytes(b"conte")
    with pytest.raises(Unfit):
        made.write("file", 3, b"tent")
    made.close()
