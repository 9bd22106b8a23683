"""The network as seen by this node: its interfaces, and connections to the other nodes."""

from __future__ import annotations

import array
import contextlib
import fcntl
import select
import socket
import struct
import threading
import time
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from .files import Json, read_text
from .ports import bindable, is_kept_elsewhere, look_at_port

SIOCGIFCONF, SIOCGIFNETMASK = 0x8912, 0x891B
IFREQ_BYTES = 16 + (24 if struct.calcsize("P") == 8 else 16)
ADDRESSES_ASKED = 512
# The resolver itself would wait much longer for a dead DNS server.
RESOLVE_SECONDS = 1.0
# For a peer connected at the last moment to send its greeting.
GREETING_SECONDS = 0.5
STALLED_SECONDS = 0.3
# More than a jumbo frame, so that a full-size packet is sent, and less than an initial window of
# ten usual packets.
PEER_BYTES = 12 << 10
USUAL_PORTS = "32768 60999"


def resolve_later(name: str) -> Callable[[], Optional[str]]:
    """Start resolving a name; return a function giving its IPv4 address, None without an answer."""
    found: List[str] = []

    def look() -> None:
        with contextlib.suppress(OSError):
            found.append(socket.gethostbyname(name))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    deadline = time.monotonic() + RESOLVE_SECONDS

    def finish() -> Optional[str]:
        thread.join(max(0.0, deadline - time.monotonic()))
        return found[0] if found else None

    return finish


def interfaces() -> Dict[str, Json]:
    """Return {name: {addresses, mask, mtu}} of all network interfaces.

    Addresses are in the order seen by gloo and NCCL, which take the first; the mask is that one's.
    """
    found: Dict[str, Json] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            mtu = read_text("/sys/class/net/%s/mtu" % name).strip()
            found[name] = {
                "addresses": [],
                "mask": None,
                "mtu": int(mtu) if mtu else None,
            }
        for name, address in ipv4_addresses(asked):
            if name in found:
                found[name]["addresses"].append(address)
        for name, facts in found.items():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(
                    asked, SIOCGIFNETMASK, struct.pack("256s", name.encode()[:15])
                )
                facts["mask"] = socket.inet_ntoa(answer[20:24])
    for line in read_text("/proc/net/if_inet6").splitlines():
        raw, name = line.split()[0], line.split()[-1]
        if name in found:
            found[name]["addresses"].append(
                socket.inet_ntop(socket.AF_INET6, bytes.fromhex(raw))
            )
    return found


def ipv4_addresses(asked: socket.socket) -> Iterator[Tuple[str, str]]:
    """Yield (interface, address) of all IPv4 addresses, secondary ones too; see netdevice(7)."""
    answer = array.array("B", bytes(IFREQ_BYTES * ADDRESSES_ASKED))
    request = struct.pack("iP", len(answer), answer.buffer_info()[0])
    length = struct.unpack("iP", fcntl.ioctl(asked, SIOCGIFCONF, request))[0]
    raw = answer.tobytes()
    for at in range(0, length, IFREQ_BYTES):
        label = raw[at : at + 16].split(b"\0")[0].decode("utf-8", "replace")
        yield label.partition(":")[0], socket.inet_ntoa(raw[at + 20 : at + 24])


def try_ports(request: Json) -> Json:
    """Test the rendezvous (see ports.py), and connections between the nodes.

    Each node listens on a port from gloo's and NCCL's range, and visits some others on theirs.
    """
    deadline = time.monotonic() + request["port_seconds"]
    nonce = request["nonce"].encode()
    facts: Json = {}
    threads = [
        threading.Thread(target=lambda: facts.update(look_at_port(request, deadline)))
    ]
    asked = request.get("peers")
    if asked:
        peers = facts["peers"] = {
            "seconds": request["port_seconds"],
            "port": peer_port(asked["salt"], request["port"]),
            "reached": {},
        }
        threads.append(
            threading.Thread(
                target=lambda: peers.update(
                    await_peers(request, peers["port"], deadline)
                )
            )
        )
        for name, peer in asked["visits"].items():

            def visit(name: str = name, peer: Json = peer) -> None:
                port = peer_port(peer["salt"], request["port"])
                peers["reached"][name] = visit_peer(
                    asked["name"], peer["address"], port, nonce, deadline
                )

            threads.append(threading.Thread(target=visit))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return facts


# ---- from node to node ----


def peer_port(salt: int, rendezvous: int) -> int:
    """Return a port from the kernel's range for clients, but never the rendezvous's.

    gloo and NCCL take theirs from the same range.
    """
    first, last = map(
        int,
        (read_text("/proc/sys/net/ipv4/ip_local_port_range") or USUAL_PORTS).split(),
    )
    port = first + salt % (last - first + 1)
    return port if port != rendezvous else port + 1


def greeting(nonce: bytes, name: str) -> bytes:
    """Return the message between two nodes: as large as full-size packets, and of one length."""
    return (nonce + b" " + name.encode()).ljust(PEER_BYTES, b" ")


def await_peers(request: Json, port: int, deadline: float) -> Json:
    """Listen for the visits of other nodes: {listens, heard}.

    `listens` is False if the port is taken; `heard` are the names in complete greetings.
    """
    address, asked, nonce = (
        request["address"],
        request["peers"],
        request["nonce"].encode(),
    )
    words = {greeting(nonce, name): name for name in asked["visited_by"]}
    heard: List[str] = []
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(bindable(address))
        if is_kept_elsewhere(port):
            return {"listens": False, "heard": []}
        try:
            listener.bind((address, port))
        except OSError:
            return {"listens": False, "heard": []}
        listener.listen(64)
        said: Dict[socket.socket, bytes] = {listener: b""}
        while words and time.monotonic() < deadline + (
            GREETING_SECONDS if len(said) > 1 else 0
        ):
            patience = max(0.05, deadline - time.monotonic())
            for ready in select.select(list(said), [], [], patience)[0]:
                if ready is listener:
                    with contextlib.suppress(OSError):
                        peer = open_sockets.enter_context(listener.accept()[0])
                        said[peer] = b""
                        # It fits into a new connection's buffer, so it does not block.
                        peer.settimeout(GREETING_SECONDS)
                        peer.sendall(greeting(nonce, asked["name"]))
                    continue
                chunk = b""
                with contextlib.suppress(OSError):
                    chunk = ready.recv(PEER_BYTES)
                said[ready] += chunk
                if said[ready] in words:
                    heard.append(words.pop(said[ready]))
                if not chunk or len(said[ready]) >= PEER_BYTES:
                    del said[ready]
    return {"listens": True, "heard": heard}


def visit_peer(
    name: str, address: str, port: int, nonce: bytes, deadline: float
) -> Json:
    """Try to greet another node until the deadline: {tried, ok}, with {stalled, error} on failure.

    Stalled means connected, but without the data sent by the peer.
    """
    visit = {"ok": False, "stalled": False, "error": "no answer"}
    while time.monotonic() < deadline:
        connected_at = float("inf")
        try:
            with socket.create_connection(
                (address, port), max(0.05, deadline - time.monotonic())
            ) as host:
                connected_at = time.monotonic()
                host.settimeout(max(0.05, deadline - time.monotonic()))
                if receive(host, PEER_BYTES).startswith(nonce):
                    host.sendall(greeting(nonce, name))
                    return {"tried": port, "ok": True}
                visit["error"] = "something else listens there"
        except OSError as fault:
            visit["error"] = fault.strerror or str(fault)
            visit["stalled"] = (
                isinstance(fault, socket.timeout)
                and time.monotonic() - connected_at > STALLED_SECONDS
            )
        time.sleep(0.02)
    return dict(visit, tried=port)


def receive(peer: socket.socket, count: int) -> bytes:
    """Receive a number of bytes, fewer if the peer closes; raises OSError."""
    received = b""
    while len(received) < count:
        chunk = peer.recv(count - len(received))
        if not chunk:
            break
        received += chunk
    return received
