"""A user of UGRO for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, LabHost
from lab.ugro import Ugro


@pytest.fixture
def ugro(lab: Lab, hosts: list[LabHost], tmp_path: Path) -> Iterator[Ugro]:
    """UGRO on two hosts with an experiments folder of its own; its agent is ended afterwards.

    Most promises need no third host, and two start in two thirds of the time.
    """
    made = Ugro(lab, tmp_path, hosts=2)
    yield made
    made.close()
