"""The lab's controller for those tests here that need real SSH."""

from tests.hosts.conftest import cluster, home, login, one_node_is_away

__all__ = ["cluster", "home", "login", "one_node_is_away"]
