"""The lab's controller, as the lab's own user, put back in order after each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.lab import Lab, LabHost
from ugro_tasks.cluster import Cluster, Timeouts
from ugro_tasks.cluster_file import load_cluster
from ugro_tasks.hosts import Host, connect


@pytest.fixture
def home(lab: Lab, hosts: list[LabHost], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """This process is the lab's user; known_hosts and the rest of ~/.ssh are restored afterwards."""
    monkeypatch.setenv("HOME", str(lab.home))
    monkeypatch.setenv("UGRO_CLUSTER", str(lab.cluster_file))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    # Nobody waits this long for a node that the test took away.
    monkeypatch.setattr("ugro_tasks.health.PORT_SECONDS", 1.0)
    monkeypatch.setattr("ugro_tasks.setup.RESET_GRACE_SECONDS", 0.5)
    folder = lab.home / ".ssh"
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in folder.iterdir()}
    yield lab
    for path in folder.iterdir():
        path.unlink()
    for path, (content, mode) in before.items():
        path.touch(mode)
        path.chmod(mode)
        path.write_bytes(content)


@pytest.fixture
def cluster(home: Lab) -> Cluster:
    """The lab's cluster, with little patience."""
    loaded = load_cluster(str(home.cluster_file))
    return loaded.model_copy(update={"timeouts": Timeouts(connect_seconds=1)})


@pytest.fixture
def login(cluster: Cluster) -> Iterator[Callable[..., Host]]:
    """`login()` is a host for the lab's first node, closed afterwards; `login(1, user="x")` for another, changed."""
    with ExitStack() as stack:

        def make(index: int = 0, **changes: object) -> Host:
            node = cluster.nodes[index].model_copy(update=changes)
            return stack.enter_context(closing(connect(node, cluster.timeouts.connect_seconds)))

        yield make


@pytest.fixture(params=["ssh", "local"])
def host(request: pytest.FixtureRequest, login: Callable[..., Host]) -> Host:
    """The seam, by each of its ends."""
    return login(transport=request.param)
