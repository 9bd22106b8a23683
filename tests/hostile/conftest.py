"""The lab's controller for those tests here that need real SSH, by each of its transports."""

import pytest

from tests.hosts.conftest import cluster, home, login, one_node_is_away

__all__ = ["cluster", "home", "login", "one_node_is_away"]


@pytest.fixture(params=["paramiko", "openssh"])
def transport(request: pytest.FixtureRequest) -> str:
    """What a node that lies is logged in to by."""
    return str(request.param)
