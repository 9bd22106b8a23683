"""The lab's controller for those tests here that need real SSH."""

from tests.hosts.conftest import cluster, home, login

__all__ = ["cluster", "home", "login"]
