"""A nursery of ranks, and what they train on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.ranks import Nursery

MAKE_INPUTS = Path(__file__).parent / "make_inputs.py"


@pytest.fixture(scope="session")
def nursery(
    training_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nursery]:
    """Ends with the session, and its ranks with it."""
    made = Nursery(training_python, tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def inputs(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models and data sets; see make_inputs.py."""
    folder = tmp_path_factory.mktemp("inputs")
    made = nursery.start([str(MAKE_INPUTS), str(folder)]).end()
    assert made.code == 0, made.said
    return folder
