"""The network as a node sees it: real sockets on this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ports import reserved_ports
from tests.unit.factories import salt_of
from ugro_tasks.cluster.values import NODE_NAME_MAX
from ugro_tasks.node import network
from ugro_tasks.node.network import (
    PEER_BYTES,
    greeting,
    interfaces,
    peer_port,
    try_ports,
)

HERE = "127.0.0.1"
NONCE = "0123456789abcdef"
PORT = 29500
PATIENCE_SECONDS = 60.0  # what is there is found long before


def requests_of(count: int, salt: int, **more: Any) -> list[dict[str, Any]]:
    """What each of so many nodes on this machine is asked."""
    names = [f"gpu{rank}" for rank in range(count)]
    visits = {
        name: {"address": HERE, "salt": salt + rank} for rank, name in enumerate(names)
    }
    return [
        {
            "role": "neither", "address": HERE, "port": PORT, "port_seconds": PATIENCE_SECONDS, "nonce": NONCE,
            "peers": {
                "name": name, "salt": salt + rank,
                "visits": {other: visits[other] for other in names if other != name},
                "visited_by": [other for other in names if other != name],
            },
            **more,
        }
        for rank, name in enumerate(names)
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
    """Of three ports in a row that are nobody else's."""
    with reserved_ports(3) as port:
        yield salt_of(port, PORT)


def test_each_of_three_finds_the_others(salt: int) -> None:
    begun = time.monotonic()
    for rank, facts in enumerate(at_once(requests_of(3, salt))):
        others = {f"gpu{other}" for other in range(3) if other != rank}
        peers = facts["peers"]
        assert (peers["listens"], set(peers["heard"]), set(peers["reached"])) == (
            True,
            others,
            others,
        )
        assert all(visit["ok"] for visit in peers["reached"].values())
    assert time.monotonic() - begun < PATIENCE_SECONDS / 2, (
        "they wait although all have met"
    )


def test_nobody_there_is_told_after_the_time(salt: int) -> None:
    request = requests_of(2, salt, port_seconds=0.5)[0]
    peers = try_ports(request)["peers"]
    assert (peers["listens"], peers["heard"]) == (True, [])
    assert peers["reached"]["gpu1"] == {
        "tried": peer_port(salt + 1, PORT), "ok": False, "stalled": False, "error": "Connection refused",
    }  # fmt: skip


def test_a_port_that_is_taken_is_no_proof_of_anything(salt: int) -> None:
    request = requests_of(2, salt, port_seconds=0.5)[0]
    with socket.create_server((HERE, peer_port(salt, PORT))):
        assert try_ports(request)["peers"]["listens"] is False


def test_who_takes_connections_and_says_nothing_is_told_from_who_refuses(
    salt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "STALLED_SECONDS", 0.05)
    request = requests_of(2, salt, port_seconds=1.0)[0]
    with socket.create_server((HERE, peer_port(salt + 1, PORT))):
        visit = try_ports(request)["peers"]["reached"]["gpu1"]
    assert (visit["ok"], visit["stalled"], visit["error"]) == (False, True, "timed out")


@pytest.mark.parametrize(
    "words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 2 * PEER_BYTES]
)
def test_strangers_do_not_count_and_keep_nobody_away(salt: int, words: bytes) -> None:
    requests = requests_of(2, salt)
    strangers: list[socket.socket] = []

    def call() -> None:
        while len(strangers) < 3:
            try:
                strangers.append(
                    socket.create_connection((HERE, peer_port(salt, PORT)))
                )
            except (ConnectionRefusedError, ConnectionResetError):
                # Nobody listens yet, or no longer: a listener that closes resets who still waits.
                time.sleep(0.005)
            else:
                with contextlib.suppress(OSError):
                    strangers[-1].sendall(words)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    first, second = at_once(requests)
    assert (first["peers"]["heard"], second["peers"]["heard"]) == (["gpu1"], ["gpu0"])
    strangers += [socket.socket()] * 3
    thread.join()
    for stranger in strangers:
        stranger.close()


def test_who_speaks_of_another_probe_is_a_stranger(salt: int) -> None:
    requests = requests_of(2, salt, port_seconds=1.0)
    requests[1]["nonce"] = "another"
    first, second = at_once(requests)
    assert (first["peers"]["heard"], second["peers"]["heard"]) == ([], [])
    assert first["peers"]["reached"]["gpu1"]["error"] == "something else listens there"


def test_a_jumbo_frame_is_filled_and_a_first_flight_is_not() -> None:
    assert {
        len(greeting(NONCE.encode(), "x" * length)) for length in (1, NODE_NAME_MAX)
    } == {PEER_BYTES}
    assert 9000 < PEER_BYTES < 10 * 1448


def test_the_ports_are_those_that_the_kernel_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "read_text", lambda _: "50000\t50009\n")
    assert {peer_port(salt, PORT) for salt in range(100)} == set(range(50000, 50010))


def test_the_interfaces_of_this_machine() -> None:
    found = interfaces()["lo"]
    assert (found["addresses"][0], found["mask"]) == (HERE, "255.0.0.0")
    assert found["mtu"] > 1500


def test_the_name_of_this_machine_is_looked_for() -> None:
    assert network.resolve_later("localhost")() == HERE
    assert network.resolve_later("no-such-host.invalid")() is None


def test_a_dns_server_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "RESOLVE_SECONDS", 0.05)
    answer = threading.Event()
    monkeypatch.setattr(socket, "gethostbyname", lambda _: answer.wait())
    assert network.resolve_later("gpu0")() is None
    answer.set()
