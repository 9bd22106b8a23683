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

# See netdevice(7).
SIOCGIFCONF = 0x8912
SIOCGIFNETMASK = 0x891B
# The name of an interface, and a union of the size of a struct ifmap.
IFREQ_BYTES = 40 if struct.calcsize("P") == 8 else 32
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
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asked, SIOCGIFNETMASK, request)
                facts["mask"] = socket.inet_ntoa(answer[20:24])
    for line in read_text("/proc/net/if_inet6").splitlines():
        words = line.split()
        name = words[-1]
        if name in found:
            raw = bytes.fromhex(words[0])
            address = socket.inet_ntop(socket.AF_INET6, raw)
            found[name]["addresses"].append(address)
    return found


def ipv4_addresses(asked: socket.socket) -> Iterator[Tuple[str, str]]:
    """Yield (interface, address) of all IPv4 addresses, secondary ones too; see netdevice(7)."""
    buffer = array.array("B", bytes(IFREQ_BYTES * ADDRESSES_ASKED))
    place, _ = buffer.buffer_info()
    request = struct.pack("iP", len(buffer), place)
    length, _ = struct.unpack("iP", fcntl.ioctl(asked, SIOCGIFCONF, request))
    raw = buffer.tobytes()
    for begin in range(0, length, IFREQ_BYTES):
        entry = raw[begin : begin + IFREQ_BYTES]
        label = entry[:16].split(b"\0")[0].decode("utf-8", "replace")
        # A secondary address has a label such as eth0:1.
        name = label.partition(":")[0]
        yield name, socket.inet_ntoa(entry[20:24])


def try_ports(request: Json) -> Json:
    """Test the rendezvous (see ports.py), and connections between the nodes.

    Each node listens on a port from gloo's and NCCL's range, and visits some others on theirs.
    """
    rendezvous = request["port"]
    deadline = time.monotonic() + request["port_seconds"]
    nonce = request["nonce"].encode()
    facts: Json = {}

    def look() -> None:
        facts.update(look_at_port(request, deadline))

    threads = [threading.Thread(target=look)]
    asked = request.get("peers")
    if asked:
        port = peer_port(asked["salt"], rendezvous)
        reached: Json = {}
        peers: Json = {
            "seconds": request["port_seconds"],
            "port": port,
            "reached": reached,
        }
        facts["peers"] = peers

        def wait() -> None:
            peers.update(await_peers(request, port, deadline))

        def visit(name: str, peer: Json) -> None:
            reached[name] = visit_peer(
                asked["name"],
                peer["address"],
                peer_port(peer["salt"], rendezvous),
                nonce,
                deadline,
            )

        threads.append(threading.Thread(target=wait))
        for visited in asked["visits"].items():
            threads.append(threading.Thread(target=visit, args=visited))
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
    limits = read_text("/proc/sys/net/ipv4/ip_local_port_range") or USUAL_PORTS
    first, last = [int(word) for word in limits.split()]
    port = first + salt % (last - first + 1)
    if port == rendezvous:
        return port + 1
    return port


def greeting(nonce: bytes, name: str) -> bytes:
    """Return the message between two nodes: as large as full-size packets, and of one length."""
    words = nonce + b" " + name.encode()
    return words.ljust(PEER_BYTES, b" ")


def await_peers(request: Json, port: int, deadline: float) -> Json:
    """Listen for the visits of other nodes: {listens, heard}.

    `listens` is False if the port is taken; `heard` are the names in complete greetings.
    """
    address = request["address"]
    peers = request["peers"]
    nonce = request["nonce"].encode()
    own_greeting = greeting(nonce, peers["name"])
    expected = {greeting(nonce, name): name for name in peers["visited_by"]}
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
        # {open connection: its bytes so far}
        said: Dict[socket.socket, bytes] = {}
        while expected:
            # Connected peers have some more time to send their greeting.
            end = deadline + GREETING_SECONDS if said else deadline
            if time.monotonic() >= end:
                break
            patience = max(0.05, deadline - time.monotonic())
            readable, _, _ = select.select([listener, *said], [], [], patience)
            for ready in readable:
                if ready is listener:
                    with contextlib.suppress(OSError):
                        peer, _ = listener.accept()
                        open_sockets.enter_context(peer)
                        said[peer] = b""
                        # It fits into a new connection's buffer, so it does not block.
                        peer.settimeout(GREETING_SECONDS)
                        peer.sendall(own_greeting)
                    continue
                chunk = b""
                with contextlib.suppress(OSError):
                    chunk = ready.recv(PEER_BYTES)
                said[ready] += chunk
                name = expected.pop(said[ready], None)
                if name is not None:
                    heard.append(name)
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
        patience = max(0.05, deadline - time.monotonic())
        try:
            with socket.create_connection((address, port), patience) as host:
                connected_at = time.monotonic()
                host.settimeout(max(0.05, deadline - connected_at))
                said = receive(host, PEER_BYTES)
                if said.startswith(nonce):
                    host.sendall(greeting(nonce, name))
                    return {"tried": port, "ok": True}
                visit["error"] = "something else listens there"
        except OSError as fault:
            waited_seconds = time.monotonic() - connected_at
            is_timeout = isinstance(fault, socket.timeout)
            visit["error"] = fault.strerror or str(fault)
            visit["stalled"] = is_timeout and waited_seconds > STALLED_SECONDS
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
