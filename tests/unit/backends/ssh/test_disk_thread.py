"""A disk that does not answer is waited for only so long."""

from __future__ import annotations

import threading

import pytest

from lab.tools import wait_until
from ugro_tasks.backends.ssh.disk_thread import DiskThread


def test_work_gives_its_result_or_its_error() -> None:
    disk = DiskThread()
    assert disk.do(lambda: 6 * 7) == 42
    with pytest.raises(FileNotFoundError):
        disk.do(lambda: open("/nowhere/at/all"))  # noqa: SIM115
    disk.close()


def test_a_disk_that_does_not_answer_is_an_error_until_it_does() -> None:
    disk = DiskThread(answer_seconds=0.05)
    answers = threading.Event()
    for _ in range(3):
        with pytest.raises(OSError, match="does not answer"):
            disk.do(answers.wait)
    answers.set()

    def is_back() -> bool:
        try:
            return disk.do(lambda: True)
        except OSError:
            return False

    wait_until(is_back, "the disk to be back")
    disk.close()
