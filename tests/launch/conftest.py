"""A user of UGRO for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, LabHost
from tests.launch.ugro import Ugro


@pytest.fixture
def ugro(lab: Lab, hosts: list[LabHost], tmp_path: Path) -> Iterator[Ugro]:
    """UGRO with an experiments folder of its own; its agent is ended afterwards."""
    made = Ugro(lab, tmp_path)
    yield made
    made.close()
