"""All hosts at once, with hosts that contact nothing."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fabric import ThreadingGroup

from tests.unit.factories import make_cluster, make_node
from ugro_tasks.cluster.model import Node
from ugro_tasks.errors import (
    HostError,
    HostUnreachable,
    NodeFault,
    RecordError,
    UgroError,
)
from ugro_tasks.hosts.fleet import Fleet
from ugro_tasks.hosts.host import Host
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.hosts.ssh.host import SshHost

WAIT_SECONDS = 30.0


class Silent:
    """A host of a kind of its own, on which nothing happens."""

    round_trip_seconds = 0.0

    def __init__(self, node: Node) -> None:
        self.node = node
        self.closed = False

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        raise NotImplementedError

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Any:
        raise NotImplementedError

    def rsync_remote(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def fleet_of(*nodes: Node) -> Fleet:
    fleet: Fleet = Fleet.from_connections([Silent(node) for node in nodes])
    return fleet


@pytest.fixture
def fleet() -> Fleet:
    return fleet_of(make_node(0), make_node(1), make_node(2))


def test_a_fleet_is_a_group_of_hosts_of_each_kind(tmp_path: Path) -> None:
    nodes = (make_node(0), make_node(1, transport="local"))
    with Fleet.of(make_cluster(tmp_path, nodes)) as fleet:
        assert isinstance(fleet, ThreadingGroup)
        assert [type(host) for host in fleet] == [SshHost, LocalHost]


def test_all_are_at_work_at_once(fleet: Fleet) -> None:
    met = threading.Barrier(3, timeout=WAIT_SECONDS)
    places = fleet.map(lambda _: met.wait())
    assert sorted(places.values(), key=str) == [0, 1, 2]


def test_results_come_in_the_order_of_the_hosts_whoever_is_done_first(
    fleet: Fleet,
) -> None:
    last_is_done = threading.Event()

    def work(host: Host) -> int:
        if host.node.rank < 2:
            assert last_is_done.wait(WAIT_SECONDS)
        else:
            last_is_done.set()
        return host.node.rank

    assert list(fleet.map(work).items()) == [("gpu0", 0), ("gpu1", 1), ("gpu2", 2)]


def test_a_host_that_fails_is_data_beside_the_others(fleet: Fleet) -> None:
    lost = HostUnreachable("gpu1", "no route to it")

    def work(host: Host) -> str:
        if host.node.rank == 1:
            raise lost
        return "done"

    assert fleet.map(work) == {"gpu0": "done", "gpu1": lost, "gpu2": "done"}


def test_all_hosts_may_fail(fleet: Fleet) -> None:
    def work(host: Host) -> str:
        raise NodeFault(host.node.name, "no")

    found = fleet.map(work)
    assert {name: isinstance(error, HostError) for name, error in found.items()} == {
        "gpu0": True,
        "gpu1": True,
        "gpu2": True,
    }


def test_a_result_may_be_none_or_an_error_that_was_not_raised(fleet: Fleet) -> None:
    assert fleet.map(lambda _: None) == {"gpu0": None, "gpu1": None, "gpu2": None}
    returned = ValueError("a value")
    assert fleet.map(lambda _: returned) == dict.fromkeys(
        ["gpu0", "gpu1", "gpu2"], returned
    )


@pytest.mark.parametrize("bug", [ZeroDivisionError, SystemExit, KeyError])
def test_a_bug_is_raised_when_the_others_are_done(
    fleet: Fleet, bug: type[BaseException]
) -> None:
    done: list[str] = []

    def work(host: Host) -> None:
        if host.node.rank == 0:
            raise bug
        time.sleep(0.05)
        done.append(host.node.name)

    with pytest.raises(bug):
        fleet.map(work)
    assert sorted(done) == ["gpu1", "gpu2"]


@pytest.mark.parametrize("kind", ["ssh", "local"])
def test_two_nodes_of_one_address_answer_each_for_itself(
    tmp_path: Path, kind: str
) -> None:
    first = make_node(0, transport=kind, address="10.0.0.1", user="x")
    second = make_node(1, transport=kind, address="10.0.0.1", user="x")
    with Fleet.of(make_cluster(tmp_path, (first, second))) as fleet:
        assert fleet.map(lambda host: host.node.rank) == {"gpu0": 0, "gpu1": 1}


def test_a_fleet_without_hosts_has_nothing_to_do() -> None:
    assert fleet_of().map(lambda host: host.node.name) == {}


def test_ctrl_c_ends_the_wait_while_hosts_are_still_at_work(fleet: Fleet) -> None:
    released = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def work(host: Host) -> None:
        if host.node.rank == 1:
            signal.pthread_kill(main, signal.SIGINT)
        released.wait(WAIT_SECONDS)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), fleet:
        fleet.map(work)
    assert time.monotonic() - begun < WAIT_SECONDS / 2
    assert all(host.closed for host in fleet)
    released.set()


def test_threads_at_work_do_not_keep_the_program_from_ending(fleet: Fleet) -> None:
    assert all(fleet.map(lambda _: threading.current_thread().daemon).values())


# ---- work by node name ----


def test_each_node_does_its_own_work_and_the_others_are_left_alone(
    fleet: Fleet,
) -> None:
    asked: list[str] = []

    def work(word: str, host: Host) -> str:
        asked.append(host.node.name)
        return f"{word} {host.node.name}"

    told = fleet.each({"gpu2": partial(work, "stop"), "gpu0": partial(work, "start")})
    assert list(told.items()) == [("gpu2", "stop gpu2"), ("gpu0", "start gpu0")]
    assert sorted(asked) == ["gpu0", "gpu2"]


def test_the_work_of_all_nodes_is_done_at_once(fleet: Fleet) -> None:
    together = threading.Barrier(3, timeout=WAIT_SECONDS)
    told = fleet.each({f"gpu{rank}": lambda _: together.wait() for rank in range(3)})
    assert sorted(told.values(), key=str) == [0, 1, 2]


@pytest.mark.parametrize(
    "error", [HostUnreachable("gpu1", "no route"), RecordError("the disk is full")]
)
def test_an_error_of_one_node_is_its_result(fleet: Fleet, error: UgroError) -> None:
    def fail(host: Host) -> str:
        raise error

    work: dict[str, Callable[[Host], str]] = {
        "gpu0": lambda host: host.node.name,
        "gpu1": fail,
    }
    assert fleet.each(work) == {"gpu0": "gpu0", "gpu1": error}


def test_a_bug_in_the_work_of_a_node_is_raised(fleet: Fleet) -> None:
    with pytest.raises(ZeroDivisionError):
        fleet.each({"gpu1": lambda _: 1 // 0})


def test_no_work_gives_nothing(fleet: Fleet) -> None:
    assert fleet.each({}) == {}
