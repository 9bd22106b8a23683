"""The chaos suite for pytest: one a worker, for it puts other disks under its hosts."""

import os
from collections.abc import Iterator

import pytest

from tests.chaos.suite import Suite, suite
from ugro_tasks.errors import ToolMissing


@pytest.fixture(scope="session")
def chaos() -> Iterator[Suite]:
    """Rounds are played on it, one after the other."""
    try:
        with suite() as made:
            yield made
    except ToolMissing as why:
        if os.environ.get("CI"):
            pytest.fail(why.text)
        pytest.skip(why.text)
