"""The lab as pytest fixtures. Without one, its tests are skipped, in CI failed."""

import os
from collections.abc import Iterator

import pytest

from lab.host import LabHost
from lab.lab import Lab
from lab.tools import LabError, LabUnavailable, wait_until


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Bring up three trusted hosts once for all tests; pytest's temporary folders are shared."""
    try:
        lab = Lab.up(share=[tmp_path_factory.getbasetemp()], owned=True)
    except LabUnavailable as why:
        if os.environ.get("CI"):
            pytest.fail(f"no lab: {why}")
        pytest.skip(f"no lab: {why}")
    with lab:
        lab.trust()
        yield lab


@pytest.fixture
def hosts(lab: Lab) -> Iterator[list[LabHost]]:
    """Reset the lab: whole links, no firewall, sshd running, known keys and no GPU.

    Afterwards no process of UGRO may be left on any of them.
    """
    lab.go_online()
    for host in lab.hosts:
        host.reset()
    lab.trust()
    yield lab.hosts

    def left() -> dict[str, list[tuple[int, list[str]]]]:
        return {host.name: host.processes(token=b"UGRO_") for host in lab.hosts}

    try:
        # A supervisor may still be exiting after it has reported the end of its job.
        wait_until(
            lambda: not any(left().values()),
            "UGRO's processes to end",
            timeout_seconds=10,
        )
    except LabError:
        found = left()
        for host in lab.hosts:
            host.kill_all()  # the next test starts clean
        pytest.fail(f"processes of UGRO's left on the hosts: {found}")
