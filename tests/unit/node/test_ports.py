"""The rendezvous's port: looked at without being taken from anybody, and kept for one launch."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ugro_tasks.node import ports
from ugro_tasks.node.ports import (
    find_port,
    is_kept_elsewhere,
    keep,
    keep_within,
    keeper_of,
    reach,
)

HERE = "127.0.0.1"
PACKAGE = Path(ports.__file__).parents[1]
ELSEWHERE = "import sys; from node.ports import keep; print(keep(int(sys.argv[1])), flush=True); sys.stdin.read()"


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is free, with nine more behind it; nothing keeps it afterwards."""
    while True:
        found = 20000 + secrets.randbelow(10000)
        if all(ports.bind_error(HERE, found + ahead) is None for ahead in range(10)):
            break
    yield found
    for kept in list(ports._kept):
        keeper_of(kept).close()


@pytest.fixture
def kept_elsewhere(port: int) -> Iterator[int]:
    argv = [sys.executable, "-c", ELSEWHERE, str(port)]
    with subprocess.Popen(
        argv, cwd=PACKAGE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"True\n"
        yield port
        other.kill()


def torchrun_listens(port: int) -> socket.socket:
    """What torchrun does: bind all addresses with SO_REUSEADDR, then listen."""
    store = socket.socket(socket.AF_INET6)
    store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    store.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    store.bind(("::", port))
    store.listen(128)
    return store


def test_a_free_port_is_found_and_nobody_can_connect_to_it(port: int) -> None:
    assert find_port(HERE, port, keep_it=True) == {"port": "free", "free_port": port}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HERE, port), 1)


@pytest.mark.parametrize("keep_it", [False, True])
def test_torchrun_can_listen_whatever_is_looked_at_meanwhile(
    port: int, keep_it: bool
) -> None:
    """The race that was lost once in eight simultaneous launches, a thousand times over."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            find_port(HERE, port, keep_it=keep_it)
            reach(HERE, port, time.monotonic() + 1)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(500):
            torchrun_listens(port).close()
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_where_something_listens_the_next_port_is_found(port: int) -> None:
    with torchrun_listens(port):
        found = find_port(HERE, port, keep_it=False)
    assert (found["port"], found["free_port"]) == ("taken", port + 1)


def test_where_another_launch_keeps_it_the_next_port_is_found(
    kept_elsewhere: int,
) -> None:
    assert is_kept_elsewhere(kept_elsewhere)
    for keep_it in (False, True):
        found = find_port(HERE, kept_elsewhere, keep_it=keep_it)
        assert (found["port"], found["free_port"]) == ("taken", kept_elsewhere + 1)


def test_two_launches_in_the_same_moment_keep_two_ports(port: int) -> None:
    argv = [
        sys.executable, "-c",
        "import sys; from node.ports import find_port;"
        "print(find_port(sys.argv[1], int(sys.argv[2]), keep_it=True)['free_port'], flush=True); sys.stdin.read()",
        HERE, str(port),
    ]  # fmt: skip
    launches = [
        subprocess.Popen(
            argv, cwd=PACKAGE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    found = []
    for launch in launches:
        assert launch.stdout
        found.append(int(launch.stdout.readline()))
    for launch in launches:
        launch.communicate()
    assert sorted(found) == [port, port + 1, port + 2, port + 3]


def test_what_this_process_keeps_is_its_own(port: int) -> None:
    assert keep(port)
    assert keep(port)
    assert not is_kept_elsewhere(port)
    assert find_port(HERE, port, keep_it=True)["free_port"] == port


def test_who_inherits_it_keeps_it_on(port: int) -> None:
    assert keep(port)
    with keeper_of(port) as keeper:
        heir = subprocess.Popen(["sleep", "60"], pass_fds=[keeper.fileno()])
    assert is_kept_elsewhere(port)
    assert not keep_within(port, 0.2)
    heir.kill()
    heir.wait()
    assert keep_within(port, 5)


def test_an_address_of_another_machine_cannot_be_bound(port: int) -> None:
    found = find_port("192.0.2.1", port, keep_it=True)
    assert (found["port"], found["free_port"]) == ("unbindable", None)


def test_no_port_is_left(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "PORTS_TRIED", 1)
    with torchrun_listens(port):
        assert find_port(HERE, port, keep_it=True)["free_port"] is None


def test_a_refusal_shows_that_the_port_is_reached(port: int) -> None:
    assert reach(HERE, port, time.monotonic() + 5)["ok"]
    with torchrun_listens(port):
        assert reach(HERE, port, time.monotonic() + 5)["ok"]


def test_silence_shows_that_it_is_not(port: int) -> None:
    with socket.socket() as deaf:
        deaf.bind((HERE, port))
        # Its queue is full with the first: the kernel answers nobody who comes after.
        deaf.listen(0)
        with socket.create_connection((HERE, port)):
            found = reach(HERE, port, time.monotonic() + 0.5)
    assert found == {"ok": False, "error": "timed out"}
