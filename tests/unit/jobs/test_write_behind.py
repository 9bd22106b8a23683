"""What is written behind: in order, for as long as it takes, and without anybody waiting."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable

import pytest

from ugro_tasks.errors import NotSigned
from ugro_tasks.jobs import write_behind
from ugro_tasks.jobs.write_behind import WriteBehind

LOG = logging.getLogger("test.write_behind")


class Disk:
    """A disk that may be full, silent or gone for good; `written` has what came onto it."""

    def __init__(self) -> None:
        self.is_full = False
        self.answers = threading.Event()
        self.answers.set()
        self.is_deleted = False
        self.recovered = 0
        self.written: list[str] = []
        self.tried = threading.Event()
        self.behind = WriteBehind(LOG, self._recover, lambda: self.is_deleted)

    def write(self, words: str) -> Callable[[], None]:
        def work() -> None:
            self.tried.set()
            assert self.answers.wait(30)
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device", "state.json")
            self.written.append(words)

        return work

    def put(self, *words: str, of: str | None = None) -> None:
        for word in words:
            self.behind.put(self.write(word), of=of)

    def _recover(self) -> None:
        self.recovered += 1


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(write_behind, "RETRY_SECONDS", 0.01)


def test_all_is_written_in_its_order() -> None:
    disk = Disk()
    disk.put(*"abcdef")
    disk.behind.settle()
    disk.put("g")
    disk.behind.settle()
    assert disk.written == list("abcdefg")


def test_a_full_disk_keeps_nobody_waiting_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk()
    disk.is_full = True
    disk.put(*"abc")
    assert disk.tried.wait(10)
    assert disk.written == []
    disk.is_full = False
    disk.behind.settle()
    assert disk.written == list("abc")
    assert disk.recovered > 0
    assert caplog.text.count("trying again") == 1


def test_a_disk_that_does_not_answer_keeps_nobody_waiting() -> None:
    disk = Disk()
    disk.answers.clear()
    disk.put(*"abc")
    assert disk.tried.wait(10)
    disk.put("d")
    disk.answers.set()
    disk.behind.settle()
    assert disk.written == list("abcd")


def test_of_what_is_written_whole_only_the_newest_waits() -> None:
    disk = Disk()
    disk.answers.clear()
    disk.put("first")
    assert disk.tried.wait(10)
    disk.put("state 1", "state 2", "state 3", of="state")
    disk.put("an event")
    disk.put("state 4", of="state")
    disk.answers.set()
    disk.behind.settle()
    assert disk.written == ["first", "state 3", "an event", "state 4"]


def test_what_can_never_be_written_is_dropped() -> None:
    disk = Disk()
    disk.is_full = disk.is_deleted = True
    disk.put(*"abc")
    disk.behind.settle()
    assert disk.written == []


def test_what_is_abandoned_is_not_written_later() -> None:
    disk = Disk()
    disk.is_full = True
    disk.put(*"abc")
    assert disk.tried.wait(10)
    disk.behind.abandon()
    disk.is_full = False
    assert disk.written == []


def test_an_error_that_is_none_of_the_disk_shows_itself() -> None:
    disk = Disk()

    def refuse() -> None:
        raise NotSigned("exp1: not launched by you")

    disk.behind.put(refuse)
    with pytest.raises(NotSigned):
        disk.behind.settle()
    with pytest.raises(NotSigned):
        disk.put("a")
