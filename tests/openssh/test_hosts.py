"""What holds of hosts, logged in to by OpenSSH's own program: the tests are those of `tests/hosts`."""

from tests.hosts.test_files import *  # noqa: F403
from tests.hosts.test_hosts import *  # noqa: F403
