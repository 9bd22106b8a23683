"""The lab's controller, as the lab's own user, put back in order after each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from msgspec.structs import replace

from lab import Lab, LabHost
from tests.hosts.helpers import lab_user
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.cluster.model import Cluster, Timeouts
from ugro_tasks.hosts.fleet import connect
from ugro_tasks.hosts.host import Host
from ugro_tasks.hosts.ssh import way as ssh_way


@pytest.fixture
def home(
    lab: Lab, hosts: list[LabHost], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    """This process is the lab's user; known_hosts and the rest of ~/.ssh are restored afterwards."""
    # What is said of all hosts is asked anew: tests change it within the moment.
    monkeypatch.setattr(ssh_way, "_NOBODY", ssh_way._Nobody())
    with lab_user(lab, monkeypatch):
        yield lab


@pytest.fixture
def one_node_is_away(home: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other nodes look for it for as long as is allowed, which is not long here."""
    monkeypatch.setattr("ugro_tasks.health.probe.PORT_SECONDS", 2.0)


@pytest.fixture
def transport() -> str:
    """What the hosts are logged in to by; `tests/openssh` runs the same tests by the other one."""
    return "paramiko"


@pytest.fixture
def cluster(home: Lab, transport: str) -> Cluster:
    """The lab's cluster, with little patience."""
    loaded = load_cluster(str(home.cluster_file))
    nodes = tuple(replace(node, transport=transport) for node in loaded.nodes)
    # A master and its first command take a moment on a busy machine.
    timeouts = Timeouts(connect_seconds=1 if transport == "paramiko" else 2)
    return replace(loaded, nodes=nodes, timeouts=timeouts)


@pytest.fixture
def login(cluster: Cluster) -> Iterator[Callable[..., Host]]:
    """`login()` is a host for the lab's first node, closed afterwards; `login(1, user="x")` for another, changed."""
    with ExitStack() as stack:

        def make(index: int = 0, **changes: object) -> Host:
            node = replace(cluster.nodes[index], **changes)
            return stack.enter_context(
                closing(connect(node, cluster.timeouts.connect_seconds))
            )

        yield make


@pytest.fixture(params=["over SSH", "local"])
def host(
    request: pytest.FixtureRequest, login: Callable[..., Host], transport: str
) -> Host:
    """The seam, by each of its ends."""
    if request.param == "local":
        return login(transport="local")
    return login(transport=transport)
