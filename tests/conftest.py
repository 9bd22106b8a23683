"""The lab's hosts are there for every test that asks for them; and the Python that has torch."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["lab.fixtures", "tests.hostile.profiles"]


@pytest.fixture(scope="session")
def training_python() -> str:
    """An interpreter that has torch; where there is none, CI fails and a developer's run skips."""
    default = Path(__file__).resolve().parents[1] / ".ugro" / "env" / "bin" / "python"
    python = Path(os.environ.get("UGRO_TEST_PYTHON", default))
    if not python.exists():
        reason = f"no training environment: {python} is missing (name another: UGRO_TEST_PYTHON)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return str(python)
