"""The network as a node sees it: real sockets on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ugro_tasks.node import network
from ugro_tasks.node.network import BALLAST, interfaces, peer_port, try_ports

HERE = "127.0.0.1"
NONCE = "0123456789abcdef"


def requests_of(count: int, salt: int, **more: Any) -> list[dict[str, Any]]:
    """What each of so many nodes on this machine is asked."""
    where = [{"address": HERE, "salt": salt + rank} for rank in range(count)]
    return [
        {
            "role": "neither", "port_seconds": 2.0, "nonce": NONCE,
            "peers": [where[rank], where[(rank + 1) % count]], **more,
        }
        for rank in range(count)
    ]  # fmt: skip


def at_once(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{} for _ in requests]
    threads = [
        threading.Thread(target=lambda n=n, r=r: found[n].update(try_ports(r)))
        for n, r in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def salt() -> Iterator[int]:
    """Of ports that are free now."""
    with socket.create_server((HERE, 0)) as some:
        port = some.getsockname()[1]
    yield port


def test_each_of_three_finds_the_next(salt: int) -> None:
    begun = time.monotonic()
    for facts in at_once(requests_of(3, salt)):
        peers = facts["peers"]
        assert (peers["listens"], peers["heard"], peers["reached"]) == (True, True, {"ok": True})
    assert time.monotonic() - begun < 2.0


def test_nobody_there_is_told_after_the_time(salt: int) -> None:
    request = requests_of(2, salt, port_seconds=0.2)[0]
    peers = try_ports(request)["peers"]
    assert (peers["listens"], peers["heard"]) == (True, False)
    assert peers["reached"] == {"ok": False, "connected": False, "error": "Connection refused"}


def test_a_port_that_is_taken_is_no_proof_of_anything(salt: int) -> None:
    request = requests_of(2, salt, port_seconds=0.2)[0]
    with socket.create_server((HERE, peer_port(salt))):
        assert try_ports(request)["peers"]["listens"] is False


def test_who_takes_connections_and_says_nothing_is_told_from_who_refuses(salt: int) -> None:
    request = requests_of(2, salt, port_seconds=0.2)[0]
    with socket.create_server((HERE, peer_port(salt + 1))):
        reached = try_ports(request)["peers"]["reached"]
    assert reached == {"ok": False, "connected": True, "error": "timed out"}


def test_a_stranger_does_not_count(salt: int) -> None:
    request = requests_of(2, salt, port_seconds=1.0)[0]

    def call() -> None:
        while True:
            try:
                with socket.create_connection((HERE, peer_port(salt))) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return
            except ConnectionRefusedError:
                time.sleep(0.01)

    thread = threading.Thread(target=call)
    thread.start()
    assert try_ports(request)["peers"]["heard"] is False
    thread.join()


def test_a_jumbo_frame_is_filled_and_a_first_flight_is_not() -> None:
    assert 9000 < len(NONCE) + len(BALLAST) < 10 * 1448


def test_the_ports_are_those_that_the_kernel_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "read_text", lambda _: "50000\t50009\n")
    assert {peer_port(salt) for salt in range(100)} == set(range(50000, 50010))


def test_the_interfaces_of_this_machine() -> None:
    found = interfaces()["lo"]
    assert (found["addresses"][0], found["mask"]) == (HERE, "255.0.0.0")
    assert found["mtu"] > 1500
