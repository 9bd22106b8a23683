"""Two nodes, of which the second has a real systemd and logind, and a user of UGRO."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from lab import Lab, LabHost, LabUnavailable
from lab.systemd import SystemdHost, systemd_on
from lab.ugro import Ugro


@pytest.fixture
def ugro(lab: Lab, hosts: list[LabHost], tmp_path: Path) -> Ugro:
    """UGRO on two hosts; on the second it logs in as the user of its systemd."""
    made = Ugro(lab, tmp_path, hosts=2)
    document = yaml.safe_load(made.cluster_file.read_text())
    document["workers"][0]["user"] = "worker"
    made.cluster_file.write_text(yaml.safe_dump(document))
    return made


@pytest.fixture
def boot(lab: Lab, ugro: Ugro) -> Iterator[Callable[..., SystemdHost]]:
    """Boot the second host's systemd, with these lines of logind.conf."""
    with ExitStack() as machines:

        def boot(*logind: str) -> SystemdHost:
            try:
                booted = systemd_on(lab, lab.hosts[1], "\n".join(logind))
                host = machines.enter_context(booted)
            except LabUnavailable as why:
                if os.environ.get("CI"):
                    pytest.fail(str(why))
                pytest.skip(str(why))
            ugro.hosts[1] = host
            return host

        yield boot
        # The agent ends before its node does.
        ugro.close()
