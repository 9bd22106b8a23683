"""The lab's controller, which logs in by OpenSSH's own program."""

from __future__ import annotations

import pytest

from tests.hosts.conftest import cluster, home, host, login

__all__ = ["cluster", "home", "host", "login"]


@pytest.fixture
def transport() -> str:
    """Not paramiko."""
    return "openssh"
